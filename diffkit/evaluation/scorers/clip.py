"""Similarity in the space of CLIP, whose weights are read on first use. Source: Radford et al., arXiv:2103.00020."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from diffkit.evaluation.clip import CLIP_ID, Clip, load_clip, open_clip
from diffkit.evaluation.scorers.base import CHUNK, SCORERS
from diffkit.pictures.tensors import in_channels

if TYPE_CHECKING:
    from diffkit.models.repo import Repo


@SCORERS.register("clip")
@dataclass(frozen=True)
class ClipScorer:
    """Cosine similarity in CLIP's space. Source: Radford et al., arXiv:2103.00020.

    Attributes:
        source: A Hub id or a folder; `CLIP_ID` when empty.
        device: Where it computes.
    """

    name: ClassVar[str]
    source: str = ""
    device: str = "cpu"

    def check(self, prompts: Sequence[str] = ()) -> None:
        """Find the repository, without its weights; there is no prompt that CLIP refuses.

        Raises:
            ModelError: It is not there, or is no CLIP.
        """
        _ = self._repo

    @cached_property
    def _repo(self) -> Repo:
        return open_clip(self.source or CLIP_ID, "scorer clip")

    @cached_property
    def _clip(self) -> Clip:
        return load_clip(self._repo, self.device)

    @property
    def tau(self) -> float:
        """The temperature that the model learned; 0.01 for the published ones."""
        return self._clip.tau

    @torch.no_grad()
    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Cosine similarities (N, P)."""
        clip = self._clip
        text = clip.texts(prompts)
        rows = [clip.images(_square_cut(part.to(self.device), clip.size)) @ text.T for part in images.split(CHUNK)]
        return torch.cat(rows).float().cpu()


def _square_cut(images: Tensor, size: int) -> Tensor:
    """(N, 1 or 3, H, W) in [-1, 1] -> (N, 3, size, size) in [0, 1]: shorter side resampled, middle cut out."""
    images = in_channels((images.float() / 2 + 0.5).clamp(0, 1), 3)
    scale = size / min(images.shape[-2:])
    sides = [max(size, round(side * scale)) for side in images.shape[-2:]]
    images = F.interpolate(images, sides, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (sides[0] - size) // 2, (sides[1] - size) // 2
    return images[..., top : top + size, left : left + size]
