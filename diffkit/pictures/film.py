"""A film of the denoising: a listener of the steps, which keeps a frame of some of them."""

from __future__ import annotations

import math
from collections.abc import Callable

from PIL import Image
from torch import Tensor

from diffkit.pictures.grids import grid
from diffkit.types import Step

FRAMES = 48
FRAME_IMAGES = 64
FILM_SIDE = 256


class Film:
    """Collects frames of the first batch while it is denoised.

    Small pictures are enlarged by a whole factor, pixel by pixel, until the longer side of a frame is about 256.

    Args:
        decode: From samples to images in [-1, 1], as of the model's codec.
        columns: Images per row; a square when left out.
        sample: (C, h, w) of the model's samples: steps of other models are left out.

    Attributes:
        frames: Those taken so far.
    """

    def __init__(
        self, decode: Callable[[Tensor], Tensor], columns: int | None = None, sample: tuple[int, int, int] | None = None
    ) -> None:
        self.decode, self.columns, self.sample = decode, columns, sample
        self.frames: list[Image.Image] = []

    def watch(self, step: Step, positions: range) -> None:
        """Take a frame, if this step is of the first batch and one of the evenly spaced ones that are shown."""
        stride = max(1, -(-step.total // FRAMES))
        if positions.start != 0 or (step.total - 1 - step.index) % stride:
            return
        if self.sample is not None and tuple(step.x.shape[1:]) != self.sample:
            return
        x = step.x[:FRAME_IMAGES].float()
        # Some samplers scale their noise up; what is seen is its pattern.
        x = x / x.flatten(1).std(dim=1).clamp(min=1.0).reshape(-1, 1, 1, 1)
        images = self.decode(x).cpu()
        columns = min(self.columns or math.ceil(math.sqrt(len(images))), len(images))
        most = max(columns, math.ceil(len(images) / columns))
        self.frames.append(grid(images, columns, min_cell=max(64, math.ceil(FILM_SIDE / most))))
