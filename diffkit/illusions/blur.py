"""Blurs that filters are made of: a Gaussian with reflected edges, and the mean along a line with zeros around.

Lengths are counted in pixels of a picture 64 wide, and grow with the picture.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

BASE = 64  # the size that sigmas and lengths are counted at
_REACH = 6.0  # sigmas; what is left out of a Gaussian is below single precision


def blur(x: Tensor, sigma: float) -> Tensor:
    """Blur (B, C, H, W) by a Gaussian of `sigma` pixels at a width of 64, reflected at the edges.

    Each axis is one product with a small matrix that holds the edges too, which is exact at any sigma.
    """
    width = sigma * x.shape[-1] / BASE
    rows, columns = (_gauss(n, width, x.device, x.dtype) for n in x.shape[-2:])
    return rows @ x @ columns.T


@lru_cache(maxsize=32)
def _gauss(size: int, sigma: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(size, size): row i holds the weights of the pixels that make pixel i; it sums to 1."""
    reach = max(1, math.ceil(_REACH * sigma))
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    source = torch.arange(size)[:, None] + offsets.long()[None]
    period = max(1, 2 * (size - 1))  # the edge pixel itself is not repeated
    source = source.remainder(period)
    source = torch.minimum(source, period - source).clamp_max(size - 1)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    matrix.scatter_add_(1, source, weights.expand(size, -1).contiguous())
    return matrix.to(device=device, dtype=dtype)


def line_weights(half: int, angle: float) -> dict[tuple[int, int], float]:
    """Return the weights of the shifts (down, right) along a line; a point between two pixels is shared by them.

    Args:
        half: Pixels to each side of the middle one, counted along the axis that the line is nearer to.
        angle: Degrees, clockwise from the horizontal.
    """
    dx, dy = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    longer = max(abs(dx), abs(dy))
    weights: dict[tuple[int, int], float] = {}
    for step in range(-half, half + 1):
        x, y = round(step * dx / longer, 9), round(step * dy / longer, 9)
        for px in {math.floor(x), math.ceil(x)}:
            for py in {math.floor(y), math.ceil(y)}:
                share = (1 - abs(x - px)) * (1 - abs(y - py)) / (2 * half + 1)
                weights[py, px] = weights.get((py, px), 0.0) + share
    return weights


def add_shifted(total: Tensor, x: Tensor, dy: int, dx: int, weight: float) -> None:
    """Add weight * x, shifted down by dy and right by dx with zeros coming in, to `total`."""
    height, width = x.shape[-2:]
    if abs(dy) >= height or abs(dx) >= width:
        return
    to_rows, rows = slice(max(dy, 0), height + min(dy, 0)), slice(max(-dy, 0), height + min(-dy, 0))
    to_columns, columns = slice(max(dx, 0), width + min(dx, 0)), slice(max(-dx, 0), width + min(-dx, 0))
    total[..., to_rows, to_columns].add_(x[..., rows, columns], alpha=weight)
