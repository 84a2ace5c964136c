"""Anagrams: one picture, several views, a prompt for each. From words to an `Illusion`; drawing is in `illusion.py`.

Source: Geng et al., Visual Anagrams, arXiv:2311.17919.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from diffkit.errors import UsageError
from diffkit.illusions.drawing import Illusion
from diffkit.illusions.views import parse_view
from diffkit.types import View

LOG = logging.getLogger("diffkit.tasks")

USUAL_VIEW = "flip"


def make_anagram(prompts: Sequence[str], views: Sequence[str] = (), **options: Any) -> Illusion:
    """Make an anagram from prompts (or classes) and the names of views.

    With one view less than prompts, the first prompt is seen plainly; two prompts without a view are seen plainly and
    flipped. One prompt is shown in every view.

    Args:
        prompts: One per view, or a single one.
        views: As `diffkit views` lists them.
        options: Further fields of `Illusion`.

    Raises:
        UsageError: No prompts, numbers that do not go together, or an unknown view.
        DataError: A permutation's file cannot be used.
    """
    if not prompts:
        raise UsageError("an anagram of no prompts", "Give --p1 and --p2, or for a model with classes --c1 and --c2.")
    names = list(views) or ([USUAL_VIEW] if len(prompts) <= 2 else [])
    seen: list[View] = [parse_view(name) for name in names]
    said = list(prompts)
    if len(said) == 1:
        seen = seen if len(seen) > 1 else [parse_view("identity"), *seen]
        said = said * len(seen)
        LOG.info("one prompt: it is shown in every view (%s)", ", ".join(view.spec for view in seen))
    elif len(seen) == len(said) - 1:
        seen = [parse_view("identity"), *seen]
    if len(seen) != len(said):
        shown = ", ".join(names) or "none"
        raise UsageError(
            f"{len(said)} prompts and {len(seen)} views ({shown})",
            "Give one --view per prompt, in their order; or one less, and the first prompt is the picture as it is.",
        )
    return Illusion(tuple(said), tuple(seen), **options)
