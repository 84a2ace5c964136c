"""What an illusion shows and to whom: prompts, the views they are seen in, the parts of a split that they share.

Nothing is drawn here, see `illusion.py`. Sources: Visual Anagrams, arXiv:2311.17919; Factorized Diffusion,
arXiv:2404.11615.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from diffkit.engine.guidance import mix, multiview
from diffkit.errors import UsageError
from diffkit.illusions.checks import name_of
from diffkit.types import Cond, Filter, View


@dataclass(frozen=True)
class Illusion:
    """What a picture shows, and to whom.

    Attributes:
        prompts: One per view, or one per part of the split that is drawn; prompts or classes, as the model takes them.
        views: How each prompt is seen; plainly when left out.
        split: Parts that the prompts share the picture out by; none for an anagram.
        weights: How much each view counts.
        reduce: "mean" of the views' predictions, or "alternate".
        style: Put before each prompt: "an oil painting of".
        reference: (1, C, H, W) in [-1, 1], square, any size: a picture that one part of the split is taken from.
        fixed: Which part that is; it has no prompt.
        guidance: What suits it where no guidance is asked for; the model's own when left out.
        latent: Of latent models: "direct" applies views and filters to latents, "decode" to the decoded estimate,
            "auto" chooses what is right for them.

    Raises:
        UsageError: Prompts, views, weights and parts that do not go together.
    """

    prompts: tuple[str, ...]
    views: tuple[View, ...] = ()
    split: Filter | None = None
    weights: tuple[float, ...] | None = None
    reduce: Literal["mean", "alternate"] = "mean"
    style: str = ""
    reference: Tensor | None = field(default=None, compare=False, repr=False)
    fixed: int = 0
    guidance: float | None = None
    latent: Literal["auto", "direct", "decode"] = "auto"

    def __post_init__(self) -> None:
        if not self.prompts:
            raise UsageError("an illusion of no prompts", "Give --p1 and --p2.")
        if not self.views:
            from diffkit.illusions.views import parse_view

            object.__setattr__(self, "views", (parse_view("identity"),) * len(self.prompts))
        if len(self.views) != len(self.prompts):
            raise UsageError(
                f"{len(self.prompts)} prompts for {len(self.views)} views",
                "Give as many --view as prompts, in their order.",
            )
        if self.latent not in ("auto", "direct", "decode"):
            raise UsageError(f"--latent {self.latent!r} is not one of auto, direct, decode")
        if self.split is None:
            if self.reference is not None:
                raise UsageError("a reference fixes one part of a split, and there is none", "Give --split.")
            multiview(
                _nothing, [Cond()] * len(self.views), self.views, self.reduce, timesteps=[0], weights=self.weights
            )
            return
        if self.weights is not None or self.reduce != "mean":
            raise UsageError("the parts of a split add up: they have no weights and do not take turns", "Leave it out.")
        known = None if self.reference is None else _nothing
        mix(_nothing, [Cond()] * len(self.prompts), self.split, known=known, fixed=self.fixed)

    def labels(self) -> list[str]:
        """Return the prompts as the model gets them: behind the style."""
        return [f"{self.style} {prompt}".strip() for prompt in self.prompts]

    def parts(self) -> list[int]:
        """Return which part of the split each prompt draws; its own number without a split."""
        if self.split is None or self.reference is None:
            return list(range(len(self.prompts)))
        return [k for k in range(self.split.parts) if k != self.fixed]

    def describe(self) -> dict[str, Any]:
        """Return what goes into a picture's metadata: every view by its full name, the random ones with their seed."""
        told = {
            "prompts": self.labels(), "views": [name_of(view) for view in self.views],
            "split": None if self.split is None else name_of(self.split), "style": self.style or None,
            "weights": self.weights and list(self.weights), "reduce": None if self.split else self.reduce,
            "fixed": None if self.reference is None else self.fixed,
        }  # fmt: skip
        return {key: value for key, value in told.items() if value is not None}


def _nothing(*_: Any, **__: Any) -> Any:
    raise AssertionError("only the arguments are checked")


def seen(illusion: Illusion, images: Tensor) -> list[Tensor]:
    """Return finished pictures as each prompt's judge sees them.

    A view is applied. Of a split, part k is seen together with the coarser ones before it: a low pass alone from afar,
    high frequencies only with the rest of the picture; grey alone without colours, colour as the picture itself. Parts
    that are never told apart are all seen in the whole picture.

    Args:
        illusion: What they show.
        images: (B, C, H, W) in [-1, 1], square, any size.

    Returns:
        One (B, C, H, W) per prompt.
    """
    split = illusion.split
    if split is None:
        return [view.apply(images) for view in illusion.views]
    found = []
    for part, view in zip(illusion.parts(), illusion.views, strict=True):
        whole = images
        if part < split.parts - 1 and getattr(split, "apart", "") != "never":
            whole = sum((split.part(images, k) for k in range(part + 1)), torch.zeros_like(images))
        found.append(view.apply(whole))
    return found
