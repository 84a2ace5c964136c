"""Losses that guide sampling: what a picture is pulled towards, as rows by name, and several of them at once.

A loss says of each clean estimate of a batch how far it is from a wish; `gradients.gradient` turns its slope into a
change of the prediction. Written `NAME:VALUE@SCALE`, `color:#3070ff@40`; further fields of a row follow the value,
`image:photo.png,side=8@40`. Rows that need a model of their own (`clip`, `classifier`) are in `evaluation.losses`.
Importing this module imports no torch: a guide can be refused before that is there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, get_type_hints

from diffkit.errors import UsageError
from diffkit.pictures.images import parse_color
from diffkit.registry import Registry

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Loss:
    """Base of the rows: a frozen dataclass whose first field is what follows the name, and others follow by name.

    Attributes:
        name: Its name in the registry.
        scale: The weight of its gradient where none is given.
    """

    name: ClassVar[str]
    scale: ClassVar[float] = 1.0

    @classmethod
    def read(cls, value: str, **options: Any) -> Self:
        """Make a row of the value and the further fields.

        Raises:
            UsageError: The value says nothing.
        """
        return cls(value, **options)  # type: ignore[call-arg]

    @property
    def value(self) -> str:
        """What `read` was given."""
        return str(getattr(self, fields(self)[0].name))  # type: ignore[arg-type]

    def check(self) -> None:
        """Do nothing if all that it needs is there; no weights are read.

        Raises:
            DiffkitError: A file, a model or a class is missing.
        """

    def files(self) -> list[Path]:
        """Return the files that it reads; their hashes go into a picture's metadata."""
        return []

    def of(self, images: Tensor, random: Sequence[torch.Generator]) -> Tensor:
        """Return the loss of each picture; lower is nearer to the wish.

        Args:
            images: (B, 1 or 3, H, W), about [-1, 1].
            random: One generator per picture, on the CPU, for whatever is drawn.

        Returns:
            (B,), each of its own picture alone.
        """
        raise NotImplementedError


LOSSES: Registry[Loss] = Registry("guide")


@LOSSES.register("color")
@dataclass(frozen=True)
class Color(Loss):
    """Mean absolute error to a colour. Source: the Hugging Face diffusion course, unit 2.

    Attributes:
        color: A name or `#rrggbb`.
        side: Of side x side means over equal boxes in place of all pixels: at 1 the mean of the picture has the colour,
            and its parts may differ. 0: of all pixels.
        soft: Errors below it, in units of half the way from black to white, count by their squares (Huber's function),
            or steps would jump to and fro over the colour. 0: the plain absolute error.
    """

    scale: ClassVar[float] = 40.0
    color: str
    side: int = 0
    soft: float = 0.4

    def __post_init__(self) -> None:
        if not self.color:
            raise UsageError("guide color: no colour", "Give color:red, or color:#rrggbb.")
        if not 0 <= self.soft <= 2:
            raise UsageError(f"guide color: soft {self.soft:g} is not in 0..2", "0 is the plain absolute error.")
        self.rgb  # noqa: B018  (refuses what is no colour)
        _check_side(self)

    @property
    def rgb(self) -> tuple[int, int, int]:
        """Red, green and blue in 0..255."""
        try:
            return parse_color(self.color)
        except UsageError as error:
            raise UsageError(f"guide color: {self.color!r} is no colour", error.hint) from None

    def of(self, images: Tensor, random: Sequence[torch.Generator]) -> Tensor:
        """See `Loss`; a grey picture counts as three equal channels."""
        from diffkit.pictures.tensors import in_channels

        wanted = images.new_tensor(self.rgb).reshape(1, 3, 1, 1) / 127.5 - 1.0
        error = _boxes(in_channels(images, 3) - wanted, self.side).abs()
        if self.soft:
            error = error.where(error >= self.soft, error.square() / (2 * self.soft) + self.soft / 2)
        return error.mean((1, 2, 3))


@LOSSES.register("image")
@dataclass(frozen=True)
class Image(Loss):
    """Half the mean squared error to a picture, cut to the size of what is drawn.

    Attributes:
        file: The picture.
        side: Compare no more than side x side means over equal boxes: colours and layout, and no detail. 0: all pixels.
    """

    scale: ClassVar[float] = 40.0
    file: str
    side: int = 0

    def __post_init__(self) -> None:
        if not self.file:
            raise UsageError("guide image: no picture named", "Give image:FILE.")
        _check_side(self)

    def check(self) -> None:
        """Open the picture."""
        _reference(self.file, 4, 4, 3)

    def files(self) -> list[Path]:
        """Return the picture's."""
        return [Path(self.file)]

    def of(self, images: Tensor, random: Sequence[torch.Generator]) -> Tensor:
        """See `Loss`."""
        height, width = images.shape[-2:]
        error = images - _reference(self.file, width, height, images.shape[1]).to(images)
        return _boxes(error, self.side).square().mean((1, 2, 3)) / 2


@lru_cache(maxsize=8)
def _reference(file: str, width: int, height: int, channels: int) -> Tensor:
    from diffkit.pictures.images import cut, open_image, with_channels
    from diffkit.pictures.tensors import to_tensor

    return to_tensor(with_channels(cut(open_image(file), width, height), channels))


def _check_side(row: Color | Image) -> None:
    if not 0 <= row.side <= 4096:
        raise UsageError(f"guide {row.name}: side {row.side} is not in 0..4096", "0 compares all pixels.")


def _boxes(error: Tensor, side: int) -> Tensor:
    from torch.nn.functional import adaptive_avg_pool2d

    height, width = error.shape[-2:]
    return adaptive_avg_pool2d(error, (min(side, height), min(side, width))) if side else error


@dataclass(frozen=True)
class Guide:
    """A loss and the weight of its gradient; below 0 pictures are pushed away from the wish."""

    loss: Loss
    scale: float

    @property
    def spec(self) -> str:
        """How it is written, with everything that may be left out: what `parse_guide` makes it from."""
        more = [f"{name}={getattr(self.loss, name)}" for name in options_of(type(self.loss))]
        return f"{self.loss.name}:{','.join([self.loss.value, *more])}@{self.scale:g}"


def options_of(row: type[Loss]) -> list[str]:
    """Return the fields of a row that are written NAME=VALUE behind its value."""
    found = fields(row)[1:]  # type: ignore[arg-type]
    return [f.name for f in found if f.init and f.metadata.get("spelled", True)]


def parse_guide(text: str) -> Guide:
    """Make a guide from `NAME:VALUE[,FIELD=VALUE...][@SCALE]`; a value may hold commas, colons and @.

    Raises:
        UsageError: An unknown name, a value that is none, or a field or scale that is no number.
    """
    head, at, tail = text.rpartition("@")
    given = _number(tail) if at else None
    name, colon, rest = (text if given is None else head).partition(":")
    row = LOSSES[name.strip()]
    if not colon:
        raise UsageError(f"guide {text!r} has no value", f"Write {name.strip()}:VALUE@SCALE.")
    names = options_of(row)
    value, *pairs = re.split(rf",\s*(?=(?:{'|'.join(names)})=)", rest) if names else [rest]
    hints, options = get_type_hints(row), {}
    for key, _, word in (pair.partition("=") for pair in pairs):
        try:
            options[key] = hints[key](word.strip())
        except ValueError:
            raise UsageError(f"guide {text!r}: {key} is {word!r}, not a {hints[key].__name__}") from None
    scale = row.scale if given is None else given
    if not math.isfinite(scale):
        raise UsageError(f"guide {text!r}: the scale is no finite number", f"The usual one is {row.scale:g}.")
    return Guide(row.read(value.strip(), **options), scale)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def total(
    guides: Sequence[Guide], seeds: Sequence[int], place: Callable[[Tensor], int]
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the weighted sum of losses as a function of images and the timestep.

    What a loss draws depends on the picture's seed and the step alone: on no other picture, nor on other losses.

    Args:
        guides: The losses and their scales.
        seeds: One per picture.
        place: From a timestep to its place in the grid.
    """

    def loss(images: Tensor, t: Tensor) -> Tensor:
        step = place(t)
        found = images.new_zeros(images.shape[0])
        for guide in guides:
            found = found + guide.scale * guide.loss.of(images, _generators(seeds, step))
        return found

    return loss


def _generators(seeds: Sequence[int], step: int) -> list[torch.Generator]:
    import torch

    digests = [blake2b(f"guide {seed} {step}".encode(), digest_size=8).digest() for seed in seeds]
    return [torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little") >> 1) for digest in digests]
