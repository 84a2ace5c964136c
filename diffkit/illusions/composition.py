"""How prompts share a picture: the views they are seen in, or the parts of a split that each of them draws.

What the prompts are is the job's business; nothing is drawn here, see `drawing.py`. Sources: Visual Anagrams,
arXiv:2311.17919; Factorized Diffusion, arXiv:2404.11615.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from diffkit.engine.settings import check_shares
from diffkit.errors import UsageError
from diffkit.illusions.filters import Split, parse_filter
from diffkit.illusions.views import parse_view
from diffkit.types import View

REFERENCE = "the reference"
USUAL_VIEW, USUAL_SPLIT = "flip", "low_high:2"
Latent = Literal["auto", "direct", "decode"]


@dataclass(frozen=True)
class Composition:
    """How prompts share a picture.

    Attributes:
        views: How each prompt is seen, one per prompt.
        split: Parts that the prompts share the picture out by; none for an anagram.
        weights: How much each view counts.
        reduce: "mean" of the views' predictions, or "alternate".
        reference: (1, C, H, W) in [-1, 1], square, any size: a picture that one part of the split is taken from.
        fixed: Which part that is; it has no prompt.
        latent: Of latent models: "direct" applies views and filters to latents, "decode" to the decoded estimate,
            "auto" chooses what is right for them.

    Raises:
        UsageError: Views, weights and parts that do not go together.
    """

    views: tuple[View, ...]
    split: Split | None = None
    weights: tuple[float, ...] | None = None
    reduce: Literal["mean", "alternate"] = "mean"
    reference: Tensor | None = field(default=None, compare=False, repr=False)
    fixed: int = 0
    latent: Latent = "auto"

    @classmethod
    def of_views(
        cls,
        prompts: int,
        views: Sequence[str] = (),
        *,
        weights: Sequence[float] = (),
        reduce: Literal["mean", "alternate"] = "mean",
        latent: Latent = "auto",
    ) -> Composition:
        """Make an anagram's composition: every prompt is seen in a view of its own.

        With one view less than prompts, the first prompt is seen plainly; two prompts without a view are seen plainly
        and flipped. One prompt is shown in every view, plainly and flipped where none is named.

        Raises:
            UsageError: No prompts, an unknown view, or numbers that do not go together.
            DataError: A view's file cannot be read.
        """
        if not prompts:
            raise UsageError("no prompts for an anagram", "Give `p1` and `p2`, or for classes `c1` and `c2`.")
        names = views or ((USUAL_VIEW,) if prompts <= 2 else ())
        chosen = [parse_view(name) for name in names]
        if len(chosen) == prompts - 1 or (prompts == 1 and len(chosen) == 1):
            chosen = [parse_view("identity"), *chosen]
        if prompts > 1 and len(chosen) != prompts:
            raise UsageError(
                f"{prompts} prompts and {len(chosen)} views ({', '.join(names) or 'none'})",
                "Give one `views` entry per prompt, in their order; or one less, and the first prompt is the picture as"
                " it is.",
            )
        return cls(tuple(chosen), weights=tuple(weights) or None, reduce=reduce, latent=latent)

    @classmethod
    def of_parts(
        cls,
        prompts: int,
        split: str = USUAL_SPLIT,
        views: Sequence[str] = (),
        *,
        reference: Tensor | None = None,
        fixed: int = 0,
        latent: Latent = "auto",
    ) -> Composition:
        """Make a hybrid's composition: every prompt draws a part of a split, in the split's order (low before high).

        The part `fixed` comes from the reference, if there is one, and has no prompt. All prompts are seen
        plainly where no views are named.

        Raises:
            UsageError: An unknown split or view, or numbers that do not go together.
            DataError: A view's file cannot be read.
        """
        filter_ = parse_filter(split)
        named = ", ".join(f"{k} {name}" for k, name in enumerate(filter_.part_names))
        if reference is None and fixed:
            raise UsageError(f"`fixed` {fixed}: there is no `reference` that the part could be taken from")
        if fixed >= filter_.parts:
            raise UsageError(f"`fixed` {fixed}: {split} has the parts {named}", "Give one of these.")
        if reference is not None and prompts == filter_.parts:
            raise UsageError(
                f"part {fixed} ({filter_.part_names[fixed]}) comes from `reference`, and there is a prompt for it, too",
                f"Leave that prompt out, or give another `fixed`: {named}.",
            )
        needed = filter_.parts - (reference is not None)
        if prompts != needed:
            raise UsageError(f"{prompts} prompts for {needed} parts of {split}", f"Give in this order: {named}.")
        chosen = tuple(parse_view(name) for name in views or ["identity"] * prompts)
        return cls(chosen, filter_, reference=reference, fixed=fixed, latent=latent)

    def __post_init__(self) -> None:
        if self.split is None:
            if self.reference is not None:
                raise UsageError("`reference` fixes one part of a split, and there is no split", "Give `split`.")
            check_shares(self.weights, len(self.views), self.reduce)
            return
        if self.weights is not None or self.reduce != "mean":
            raise UsageError("the parts of a split are added: they take no `weights` and no `reduce`", "Leave it out.")
        if len(self.views) != len(self.parts()):
            raise UsageError(
                f"{len(self.views)} views for {len(self.parts())} parts of {self.split.spec}", "Give one per prompt."
            )

    def parts(self) -> list[int]:
        """Return which part of the split each prompt draws; its own number without a split."""
        if self.split is None:
            return list(range(len(self.views)))
        return [k for k in range(self.split.parts) if self.reference is None or k != self.fixed]

    @property
    def plain(self) -> bool:
        """Whether every prompt is seen in the picture as it is."""
        return all(view.name == "identity" for view in self.views)

    def describe(self) -> dict[str, Any]:
        """Return what goes into a picture's metadata: every view by its full name, the random ones with their seed."""
        described = {
            "views": [view.spec for view in self.views], "split": None if self.split is None else self.split.spec,
            "weights": self.weights and list(self.weights), "reduce": None if self.split else self.reduce,
            "fixed": None if self.reference is None else self.fixed,
        }  # fmt: skip
        return {key: value for key, value in described.items() if value is not None}

    def shown(self, images: Tensor) -> list[Tensor]:
        """Return finished pictures as each prompt's judge looks at them.

        A view is applied. Of a split, part k is seen together with the coarser ones before it: a low pass alone from
        afar, high frequencies only with the rest of the picture; grey alone without colours, colour as the picture
        itself. Parts that are never told apart are all seen in the whole picture.

        Args:
            images: (B, C, H, W) in [-1, 1], square, any size.

        Returns:
            One (B, C, H, W) per prompt.
        """
        split = self.split
        if split is None:
            return [view.apply(images) for view in self.views]
        found = []
        for part, view in zip(self.parts(), self.views, strict=True):
            whole = images
            if part < split.parts - 1 and split.apart != "never":
                whole = sum((split.part(images, k) for k in range(part + 1)), torch.zeros_like(images))
            found.append(view.apply(whole))
        return found
