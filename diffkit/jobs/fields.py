"""What fields of a job are made of: names of options, images by path or from memory, messages of wrong values."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
)

from diffkit.errors import DataError, UsageError

if TYPE_CHECKING:
    from PIL import Image
    from pydantic.fields import FieldInfo

MEMORY = "memory:"  # what stands in a picture's metadata for an image that no file holds, with the hash of its pixels


@dataclass(frozen=True)
class Option:
    """How the command line calls a field.

    Attributes:
        names: Without dashes, the long one first; a second one behind a slash stands for the opposite: "raw/ema".
        metavar: What stands for its value in the help.
        argument: It is no option but a positional argument.
    """

    names: tuple[str, ...] = ()
    metavar: str | None = None
    argument: bool = False


def opt(*names: str, metavar: str | None = None) -> Option:
    """Call a field's option by these names; without any, by the field's name with dashes."""
    return Option(names, metavar)


def arg(metavar: str) -> Option:
    """Make a field a positional argument."""
    return Option(metavar=metavar, argument=True)


def _image_file(value: Any) -> Path | Image.Image | None:
    if value is None or isinstance(value, Path):
        return value
    if isinstance(value, str):
        if value.startswith(MEMORY):
            raise DataError(
                "it was drawn from an image in memory, which no file holds", "Draw it again by the Python function."
            )
        return Path(value)
    if type(value).__module__.startswith("PIL."):
        image: Image.Image = value
        return image
    raise ValueError("must be the path of an image, or a PIL image")


def _image_text(value: Path | Image.Image | None) -> str | None:
    if value is None or isinstance(value, Path):
        return None if value is None else str(value)
    return MEMORY + pixel_digest(value)


def pixel_digest(image: Image.Image) -> str:
    """Return the SHA-256 of an image's mode, size and pixels."""
    return hashlib.sha256(f"{image.mode} {image.size} ".encode() + image.tobytes()).hexdigest()


# A path, or a PIL image.
ImageFile = Annotated[
    Any,
    PlainValidator(_image_file),
    PlainSerializer(_image_text),
    WithJsonSchema({"type": "string", "format": "path"}),
]


def explain(error: ValidationError, fields: Mapping[str, FieldInfo]) -> UsageError:
    """Return the first of pydantic's errors as ours: the argument, the value, what is allowed; its hint is the help."""
    item = error.errors(include_url=False)[0]
    if item["type"] == "value_error" and str(item["ctx"]["error"]).startswith("`"):
        return UsageError(str(item["ctx"]["error"]))
    name = ".".join(str(part) for part in item["loc"] if not isinstance(part, int))
    shown = repr(item["input"])
    about = fields.get(str(item["loc"][0])) if item["loc"] else None
    return UsageError(
        f"`{name}` is {shown if len(shown) < 60 else shown[:57] + '...'}; it {plain_words(item['msg'])}",
        (about.description or "") if about else "",
    )


def plain_words(text: str) -> str:
    """Put what pydantic says of a value as messages here do: "must be at most 3"."""
    text = (text[:1].lower() + text[1:]).removeprefix("value error, ").replace("input should be", "must be")
    return text.replace("greater than or equal to", "at least").replace("less than or equal to", "at most")


def numbers(text: str | Sequence[int], name: str, example: str) -> list[int]:
    """Read whole numbers with commas.

    Raises:
        ValueError: Something else; the message has an example.
    """
    try:
        return [int(part) for part in (text.split(",") if isinstance(text, str) else text)]
    except ValueError:
        raise ValueError(f"`{name}` is {text!r}; give whole numbers with commas, {example}") from None


def size_of(text: str, name: str) -> tuple[int, int]:
    """Read WIDTHxHEIGHT, or one number for a square, as (height, width).

    Raises:
        UsageError: It is no size.
    """
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and len(side) < 6 and int(side) for side in sides):
        raise UsageError(f"`{name}` {text!r} is no size in pixels", "Give for example 768x512 or 512.")
    return int(sides[-1]), int(sides[0])


def _with_commas(value: Any) -> Any:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else value


WITH_COMMAS = BeforeValidator(_with_commas)  # a list or tuple becomes the text that the command line takes


def _as_size(value: Any) -> Any:
    return str(value) if type(value) is int else value


ONE_SIDE = BeforeValidator(_as_size)  # in Python a square may be given by a number; the rest reads a text


def whole_numbers(example: str) -> AfterValidator:
    """Let a text of whole numbers with commas pass, or None; `example` is shown with others."""

    def check(value: str | None, info: ValidationInfo) -> str | None:
        if value is not None:
            numbers(value, str(info.field_name), example)
        return value

    return AfterValidator(check)


def decimals_of(text: str) -> list[float]:
    """Return the numbers of a text that `decimals` let pass."""
    return [float(part) for part in text.split(",")]


def decimals(example: str) -> AfterValidator:
    """Let a text of finite numbers, 0 or more, with commas pass, or None; `example` is shown with others."""

    def check(value: str | None, info: ValidationInfo) -> str | None:
        try:
            good = value is None or all(0.0 <= number < math.inf for number in decimals_of(value))
        except ValueError:
            good = False
        if not good:
            raise ValueError(f"`{info.field_name}` is {value!r}; give numbers, 0 or more, with commas, {example}")
        return value

    return AfterValidator(check)
