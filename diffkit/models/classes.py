"""Classes by name or number, as models that are conditioned on them take them."""

from __future__ import annotations

from diffkit.errors import UsageError, did_you_mean
from diffkit.types import ModelInfo


def class_label(name: str | int | None, info: ModelInfo) -> int:
    """Return the label of a class: one of its names, or its number where no class has that name.

    None or "" is the null class, whose label comes after all others.

    Raises:
        UsageError: Not a class of this model, or no class for a model that was trained without a null class.
    """
    if name is None or name == "":
        if not info.null:
            raise UsageError(
                "this model was trained without a null class", "Give a class (`classes`), and leave `guidance` out."
            )
        return len(info.classes)
    text = str(name)
    if text in info.classes:
        return info.classes.index(text)
    if text in info.synonyms:
        return info.synonyms[text]
    if text.isdecimal() and int(text) < len(info.classes):
        return int(text)
    raise UsageError(
        f"class {name!r} is not one of the model's {len(info.classes)}",
        did_you_mean(text, [*info.classes, *info.synonyms]),
    )
