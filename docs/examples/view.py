"""A view of one's own: one registered row, and it works in anagrams, with every model, and in animations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from PIL import Image
from torch import Tensor

import diffkit
from diffkit.illusions.views import VIEWS, Look, check_view, frames
from diffkit.pictures.grids import grid


@VIEWS.register("mirror")
@dataclass(frozen=True)
class Mirror(Look):
    """Mirrored, left to right. A field here would be an argument: `mirror:0.5`."""

    square: ClassVar[bool] = False  # rectangles can be mirrored, too

    def apply(self, x: Tensor) -> Tensor:
        """Look at (B, C, H, W): linear, and without a change of the norm, or noise would no longer be noise."""
        return x.flip(-1)

    def invert(self, x: Tensor) -> Tensor:
        """Undo it."""
        return x.flip(-1)

    def between(self, image: Image.Image, progress: float) -> Image.Image:
        """Draw a frame of the animation: fade over."""
        return frames.faded(image, self.viewed(image), progress)


view = diffkit.parse_view("mirror")
print("a view that works:", check_view(view, 32).ok)
words = ["a handwritten three", "the letter E"]
(picture,) = diffkit.anagram(words, views=["identity", "mirror"], model="tiny", steps=15, seed=1)
grid([picture, view.viewed(picture)], labels=words, min_cell=128).save("view.png")
