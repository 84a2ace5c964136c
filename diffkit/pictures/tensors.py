"""From images to tensors in [-1, 1] and back, exactly; grey and colours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffkit.pictures.images import LUMA, to_array, with_channels


def to_float(pixels: Tensor) -> Tensor:
    """uint8 0..255 of any shape -> float32 in [-1, 1] on the same device, with the same bits on every device.

    2p - 255 is exact and the factor is one float32 product, so no fused or reciprocal arithmetic can differ; black
    is -1, white is 1, and p and 255 - p are opposite numbers.
    """
    return pixels.to(torch.float32).mul_(2.0).sub_(255.0).mul_(1.0 / 255.0)


def to_uint8(x: Tensor) -> Tensor:
    """Float in [-1, 1], any shape -> uint8, rounded and clipped; undoes `to_float` exactly."""
    return x.detach().float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def to_tensor(images: Image.Image | Sequence[Image.Image], channels: int | None = None) -> Tensor:
    """One image or several of the same size -> (B, C, H, W) float32 in [-1, 1]; C is 1 for "L" and 3 for "RGB".

    Args:
        images: Images as `open_image` returns them.
        channels: 1 or 3 to convert to; left out: 1 if all images are "L", else 3.
    """
    several = [images] if isinstance(images, Image.Image) else list(images)
    channels = channels or (1 if all(image.mode == "L" for image in several) else 3)
    return to_float(torch.stack([torch.from_numpy(to_array(with_channels(image, channels))) for image in several]))


def from_tensor(x: Tensor) -> list[Image.Image]:
    """(B, C, H, W) or (C, H, W) in [-1, 1], C of 1 or 3 -> images, "L" or "RGB"; values outside are clipped."""
    if x.ndim == 3:
        x = x[None]
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise ValueError(f"images have 1 or 3 channels, (B, C, H, W); got shape {tuple(x.shape)}")
    pixels = to_uint8(x).cpu().numpy()
    return [Image.fromarray(p[0] if p.shape[0] == 1 else np.ascontiguousarray(p.transpose(1, 2, 0))) for p in pixels]


def in_channels(x: Tensor, channels: int) -> Tensor:
    """(N, 1 or 3, H, W) -> (N, channels, H, W): grey is repeated, colours are weighed by their brightness."""
    if x.shape[1] == channels:
        return x
    if channels == 3:
        return x.expand(-1, 3, -1, -1)
    return (x * x.new_tensor(LUMA).reshape(1, 3, 1, 1)).sum(1, keepdim=True)
