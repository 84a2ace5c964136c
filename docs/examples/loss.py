"""A loss of one's own: one registered row, and `guides=` pulls the pictures of every model towards it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

import diffkit
from diffkit.engine.losses import LOSSES, Loss
from diffkit.pictures.grids import grid


@LOSSES.register("symmetry")
@dataclass(frozen=True)
class Symmetry(Loss):
    """Half the mean squared difference of a picture and its mirror image; `axis` is left-right or top-bottom."""

    scale: ClassVar[float] = 100.0
    axis: str

    def of(self, images: Tensor, random: Sequence[torch.Generator]) -> Tensor:
        """Return (B,) losses of (B, C, H, W) clean estimates; their gradients guide the steps."""
        mirrored = images.flip(-1 if self.axis == "left-right" else -2)
        return (images - mirrored).square().mean((1, 2, 3)) / 2


draw = {"model": "tiny", "prompt": "the letter R", "steps": 20, "seed": 3}
pictures = diffkit.sample(**draw) + diffkit.sample(**draw, guides="symmetry:left-right@100")
free, guided = (float(Symmetry("left-right").of(diffkit.to_tensor(picture), ())) for picture in pictures)
print(f"asymmetry: {free:.4f} free, {guided:.4f} guided")
grid(pictures, labels=["free", "guided"], min_cell=128).save("loss.png")
