"""Hybrids: one picture, split into parts, a prompt for each. From words to an `Illusion`; drawing is in `illusion.py`.

Source: Geng et al., Factorized Diffusion, arXiv:2404.11615.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from diffkit.errors import UsageError
from diffkit.illusions.drawing import Illusion
from diffkit.illusions.filters import parse_filter
from diffkit.illusions.views import parse_view
from diffkit.pictures.images import cut_square, open_image, to_tensor

USUAL_SPLIT = "low_high:2"
# Of the model inside the package, whose strokes are a large part of its 32 pixels: 73 % of 128 hybrids read as wanted,
# where the usual split and guidance 4 gave 56 % of 64 (benchmarks/glyph_tricks.py).
SMALL_SPLIT, SMALL_GUIDANCE = "low_high:6", 8.0
_LARGEST = 1024  # of a reference: the last stage's pictures


def make_hybrid(
    prompts: Sequence[str | None],
    split: str = USUAL_SPLIT,
    views: Sequence[str] = (),
    *,
    reference: Tensor | None = None,
    fixed: int = 0,
    **options: Any,
) -> Illusion:
    """Make a hybrid from prompts (or classes) and the name of a filter.

    Args:
        prompts: One per part, in the filter's order (low before high); with a reference the fixed part's is None or
            left out.
        split: As `diffkit views` lists them.
        views: One per prompt; plainly when left out.
        reference: (1, C, H, W) in [-1, 1]: a picture that part `fixed` is taken from.
        fixed: A part's number.
        options: Further fields of `Illusion`.

    Raises:
        UsageError: Numbers that do not go together, or an unknown filter or view.
    """
    parts = parse_filter(split)
    said = list(prompts)
    if reference is not None:
        if not 0 <= fixed < parts.parts:
            raise UsageError(f"--fixed {fixed}: {split} has the parts {_parts(parts)}", "Give one of these numbers.")
        if len(said) == parts.parts:
            if said[fixed] is not None:
                raise UsageError(
                    f"part {fixed} ({parts.part_names[fixed]}) comes from --reference, and has the prompt"
                    f" {said[fixed]!r}, too", f"Leave that prompt out, or give another --fixed: {_parts(parts)}."
                )  # fmt: skip
            del said[fixed]
    needed = parts.parts - (reference is not None)
    if len(said) != needed or None in said:
        given = sum(word is not None for word in said)
        raise UsageError(
            f"{given} prompts for {needed} parts of {split}", f"Give one each, in this order: {_parts(parts)}."
        )
    seen = tuple(parse_view(name) for name in views)
    words = tuple(word for word in said if word is not None)
    return Illusion(words, seen, split=parts, reference=reference, fixed=fixed, **options)


def read_reference(path: Path) -> Tensor:
    """Open a photo as a reference: its middle square, (1, 3, S, S) in [-1, 1].

    Raises:
        DataError: No usable picture.
    """
    picture = open_image(path)
    return to_tensor(cut_square(picture, min(_LARGEST, *picture.size)), 3)


def _parts(split: Any) -> str:
    return ", ".join(f"{k} {name}" for k, name in enumerate(split.part_names))
