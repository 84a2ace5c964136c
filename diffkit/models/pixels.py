"""Between pictures and the samples of a network of pixels: padding, and the range in which it sees pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


class PixelCodec:
    """The identity between images and the network's space, but for the padding to a size that the network can halve.

    The image sits in the middle, and its edges are repeated outwards. A network that was trained on pixels in another
    range than [-1, 1] has them shifted and scaled: (image - mean) / std.

    Args:
        resolution: (height, width) of the images, or one number for squares.
        size: The same of the network's samples.
        mean: One number per channel; empty for 0.
        std: One number per channel, above 0; empty for 1.
    """

    def __init__(
        self,
        resolution: int | tuple[int, int],
        size: int | tuple[int, int],
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
    ) -> None:
        self._mean, self._std = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)
        self.resolution = (resolution, resolution) if isinstance(resolution, int) else resolution
        self.size = (size, size) if isinstance(size, int) else size
        self.before = tuple((s - r) // 2 for r, s in zip(self.resolution, self.size, strict=True))

    def encode(self, images: Tensor) -> Tensor:
        """(B, C, *resolution) -> (B, C, *size)."""
        if len(self._std):
            images = (images - self._mean.to(images)) / self._std.to(images)
        if self.size == self.resolution:
            return images
        top, left = self.before
        bottom, right = (s - r - b for r, s, b in zip(self.resolution, self.size, self.before, strict=True))
        return F.pad(images, (left, right, top, bottom), mode="replicate")

    def decode(self, x0: Tensor) -> Tensor:
        """(B, C, *size) -> (B, C, *resolution)."""
        rows, columns = (slice(b, b + r) for b, r in zip(self.before, self.resolution, strict=True))
        images = x0[..., rows, columns]
        return images * self._std.to(images) + self._mean.to(images) if len(self._std) else images
