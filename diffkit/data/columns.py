"""Which columns of a table hold the images, the classes and the captions: found by type and name, or named.

A caption that is missing or null is the empty text, from which a model learns to draw without a prompt; so images
without a caption stay in the set. There is no empty class: where one is missing, the column is not used, or refused if
the user named it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffkit.errors import DataError, did_you_mean

LOG = logging.getLogger("diffkit.data")

IMAGE_NAMES = ("image", "img", "images", "picture", "photo", "pixel_values", "png", "jpg", "jpeg", "webp", "bytes")
CLASS_NAMES = (
    "label", "labels", "class", "classes", "fine_label", "category", "target", "class_name", "cls", "class_label",
)  # fmt: skip
CAPTION_NAMES = ("caption", "text", "captions", "prompt", "description", "sentence", "title", "txt", "en_text")
# What a column may hold that the user names; one that is only found is held to less.
_IMAGE_KINDS = ("image", "bytes")
_CLASS_KINDS = ("class", "int", "text", "float")
_CAPTION_KINDS = ("text", "texts", "class", "int", "float")


@dataclass(frozen=True)
class Columns:
    """The columns that training reads; None where there is none."""

    image: str
    label: str | None
    caption: str | None


def find_columns(
    kinds: Mapping[str, str],
    *,
    image: str | None = None,
    label: str | None = None,
    caption: str | None = None,
    what: str = "the dataset",
    hint: str = "",
) -> Columns:
    """Pick the columns of a table.

    Args:
        kinds: Column name -> "image", "bytes", "class", "text", "texts" (lists of them), "int", "float", "empty" (null
            everywhere) or "other".
        image: The image column's name; found when None. Likewise `label` and `caption`, where "none" means not to
            use any.
        label: See `image`.
        caption: See `image`.
        what: What an error calls the table.
        hint: The next step where a named column is not there; left out: the nearest name.

    Raises:
        DataError: A named column is not there or holds something else, or there is no image column; the message lists
            the columns.
    """

    def named(name: str | None, option: str, allowed: Sequence[str]) -> str | None:
        if name is not None and name not in kinds:
            nearest = did_you_mean(name, kinds) if kinds else ""
            raise DataError(f"{option} {name!r} is not in {what}; its columns: {_list(kinds)}", hint or nearest)
        if name is not None and kinds[name] not in allowed:
            holds = "is null everywhere" if kinds[name] == "empty" else f"is {kinds[name]}, not {' or '.join(allowed)}"
            raise DataError(f"{option} {name!r} of {what} {holds}; its columns: {_list(kinds)}", "Name another column.")
        return name

    found = Columns(
        image=named(image, "image_column", _IMAGE_KINDS) or _image(kinds, what),
        label=None if label == "none" else named(label, "class_column", _CLASS_KINDS) or _label(kinds),
        caption=None
        if caption == "none"
        else named(caption, "caption_column", _CAPTION_KINDS) or _by_name(kinds, CAPTION_NAMES, ("text", "texts")),
    )
    if label is None and found.label is not None and found.label == found.caption:
        found = Columns(found.image, None, found.caption)
    return found


def _list(kinds: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in kinds.items()) or "none"


def _by_name(kinds: Mapping[str, str], names: Sequence[str], allowed: Sequence[str]) -> str | None:
    lower = {name.lower(): name for name in reversed(list(kinds))}
    return next((lower[n] for n in names if n in lower and kinds[lower[n]] in allowed), None)


def _image(kinds: Mapping[str, str], what: str) -> str:
    images = [name for name, kind in kinds.items() if kind == "image"]
    name = _by_name(kinds, IMAGE_NAMES, ("image",)) or (images[0] if images else None)
    name = name or _by_name(kinds, IMAGE_NAMES, ("bytes",)) or next((n for n, k in kinds.items() if k == "bytes"), None)
    if name is None:
        raise DataError(
            f"no image column in {what}; its columns: {_list(kinds)}",
            "Name the column: `dataset.image_column=NAME`.",
        )
    if len(images) > 1:
        LOG.info("%s has several image columns (%s); %r is used", what, ", ".join(images), name)
    return name


def _label(kinds: Mapping[str, str]) -> str | None:
    classes = [name for name, kind in kinds.items() if kind == "class"]
    best = _by_name(kinds, CLASS_NAMES, ("class",)) or (classes[0] if classes else None)
    return best or _by_name(kinds, CLASS_NAMES, ("int", "text"))


def feature_kinds(features: Mapping[str, Any]) -> dict[str, str]:
    """Describe the features of a `datasets` table for `find_columns`."""
    return {name: _kind(feature) for name, feature in features.items()}


def names_of(feature: Any) -> list[str] | None:
    """Return the names that a ClassLabel feature of `datasets` gives to its integers; None for any other."""
    from datasets import ClassLabel

    return list(feature.names) if isinstance(feature, ClassLabel) else None


def value_kinds(records: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Describe the columns of records for `find_columns`, by all their values but the nulls."""
    seen: dict[str, set[str]] = {}
    for record in records:
        for name, value in record.items():
            seen.setdefault(name, set()).update(() if value is None else (_value_kind(value),))
    return {name: _common(kinds) for name, kinds in seen.items()}


def _value_kind(value: Any) -> str:
    if isinstance(value, list):
        return "texts" if all(isinstance(item, str) for item in value if item is not None) else "other"
    kinds = {"str": "text", "int": "int", "bool": "int", "float": "float"}
    return kinds.get(type(value).__name__, "other")


def _common(kinds: set[str]) -> str:
    """One kind for a column that holds several."""
    if not kinds:
        return "empty"
    if kinds <= {"int", "float", "text"}:
        return next(kind for kind in ("text", "float", "int") if kind in kinds)
    return "texts" if kinds <= {"text", "texts"} else "other"


def _kind(feature: Any) -> str:
    name, dtype = type(feature).__name__, str(getattr(feature, "dtype", ""))
    if name == "Image":
        return "image"
    if name == "ClassLabel":
        return "class"
    if isinstance(feature, dict):
        return "bytes" if "bytes" in feature else "other"
    if name in ("List", "Sequence", "LargeList", "list"):
        inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
        return "texts" if _kind(inner) == "text" else "other"
    if dtype == "null":
        return "empty"
    if "binary" in dtype:
        return "bytes"
    if "string" in dtype:
        return "text"
    if dtype.startswith(("int", "uint", "bool")):
        return "int"
    return "float" if dtype.startswith(("float", "double", "half")) else "other"


def first_text(value: Any, names: Sequence[str] | None = None) -> str:
    """A caption column's value as one text: of several the first, of a class its name, and "" for null."""
    if isinstance(value, (list, tuple)):
        value = value[0] if value else None
    if value is None:
        return ""
    return names[value] if names is not None and isinstance(value, int) and value >= 0 else str(value)


def say_uncaptioned(missing: int, total: int, what: str) -> None:
    """Say in one line how many images have no caption, and what that means."""
    if missing:
        LOG.info("%d of %d images of %s have no caption; theirs is the empty text", missing, total, what)


def encode_classes(
    values: Sequence[Any], names: Sequence[str] | None, column: str, *, named: bool, what: str
) -> tuple[np.ndarray[Any, np.dtype[np.int64]] | None, list[str] | None]:
    """Turn a class column into numbers 0..K-1 and names.

    Args:
        values: One value per image: integers, or texts; a mixture is taken as texts. None and NaN are no class.
        names: The names a ClassLabel feature gives to the integers, or None: the distinct values in order.
        column: The column's name, for messages.
        named: Whether the user named the column; one that was only found is left out, with a notice, where it does
            not serve.
        what: What an error calls the table.

    Returns:
        (labels (N,), names), or (None, None) where a found column does not serve.

    Raises:
        DataError: Images without a class in a column that the user named.
    """
    missing = sum(v is None or (not isinstance(v, str) and (v < 0 or v != v)) for v in values)
    if missing:
        text = f"{missing} of {len(values)} images have no class in column {column!r} of {what}"
        if named:
            raise DataError(
                f"{text}, and a class cannot be left out",
                "Fill the column, choose another split or column, or give `dataset.class_column=none`.",
            )
        LOG.info("%s; classes are not used", text)
        return None, None
    if len({isinstance(v, str) for v in values}) > 1:
        values = [str(v) for v in values]
    if names:
        labels = np.asarray(values, dtype=np.int64)
        if len(labels) and int(labels.max()) >= len(names):
            raise DataError(
                f"class {int(labels.max())} in column {column!r} of {what}, which names {len(names)} classes"
            )
        return labels, list(names)
    distinct = sorted(set(values))
    if not named and len(distinct) > max(2, len(values) // 2):
        LOG.info("column %r of %s has %d different values; not taken as classes", column, what, len(distinct))
        return None, None
    index = {value: k for k, value in enumerate(distinct)}
    return np.asarray([index[v] for v in values], dtype=np.int64), [str(v) for v in distinct]
