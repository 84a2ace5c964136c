"""How the pictures of `glyphs` are drawn: masks of shapes, letters and digits, placed, inked and laid over each other.

Everything works on batches and depends on its arguments alone. A mask is sampled at twice the picture's resolution and
averaged, so that edges are smooth at every size. Which picture shows what is decided in `glyphs.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from diffkit.data.glyphs.fonts import FIELD, Masks
from diffkit.data.glyphs.wording import SHAPES

Ints = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float64]]
Point = tuple[float, float]

RGB = {
    "black": (17, 17, 17),
    "red": (218, 32, 45),
    "blue": (30, 90, 215),
    "green": (25, 150, 70),
    "orange": (250, 150, 20),
}
EXTENT = 0.75  # half the size of shapes, as a share of half the picture: 24 of 32 pixels
DIGIT = 0.72  # the same of digits, whose edges are softer
GAIN = 2.0  # contrast of a digit's edge: MNIST's own is two pixels wide
_SMALLER = {"square": 0.88, "disc": 0.96}  # full shapes look larger than pointed ones
_OVER = 16  # how finely a shape's mask is drawn: 16 times FIELD


# Where a glyph on a shape has its middle, in halves of the picture from its middle, y downwards.
SEATS: dict[str, Point] = {
    "disc": (0.0, 0.0),
    "triangle": (0.0, 0.18),
    "square": (0.0, 0.0),
    "star": (0.0, 0.05),
    "heart": (0.0, -0.06),
    "cross": (0.0, 0.0),
    "house": (0.0, 0.12),
    "tree": (0.0, 0.05),
}


def outline(shape: str) -> list[Point]:
    """Corners of a shape inside [-1, 1] x [-1, 1], y downwards; its box is in the middle and touches two sides.

    Raises:
        KeyError: No such shape.
    """
    turns = np.linspace(0, 2 * math.pi, 361)[:-1]
    shapes: dict[str, list[Point]] = {
        "disc": [(math.cos(t), math.sin(t)) for t in turns],
        "triangle": [(0, -1), (1.08, 0.87), (-1.08, 0.87)],
        "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
        "star": [
            (r * math.sin(k * math.pi / 5), -r * math.cos(k * math.pi / 5))
            for k, r in enumerate([1, 0.45] * 5)
        ],
        "heart": [
            (math.sin(t) ** 3, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16)
            for t in turns
        ],
        "cross": [
            (-0.36, -1), (0.36, -1), (0.36, -0.36), (1, -0.36), (1, 0.36), (0.36, 0.36),
            (0.36, 1), (-0.36, 1), (-0.36, 0.36), (-1, 0.36), (-1, -0.36), (-0.36, -0.36),
        ],
        # An open door and a chimney tell the house from a pentagon.
        "house": [
            (0, -1), (0.45, -0.5), (0.45, -0.85), (0.7, -0.85), (0.7, -0.22), (1, 0.1), (0.75, 0.1), (0.75, 1),
            (0.18, 1), (0.18, 0.5), (-0.18, 0.5), (-0.18, 1), (-0.75, 1), (-0.75, 0.1), (-1, 0.1),
        ],
        "tree": [
            (0, -1), (0.5, -0.38), (0.27, -0.38), (0.68, 0.12), (0.36, 0.12), (0.86, 0.68), (0.16, 0.68), (0.16, 1),
            (-0.16, 1), (-0.16, 0.68), (-0.86, 0.68), (-0.36, 0.12), (-0.68, 0.12), (-0.27, -0.38), (-0.5, -0.38),
        ],
    }  # fmt: skip
    points = np.asarray(shapes[shape], dtype=np.float64)
    low, high = points.min(0), points.max(0)
    scaled = (points - (low + high) / 2) * (2 / (high - low).max())
    return [(float(x), float(y)) for x, y in scaled]


@lru_cache(maxsize=1)
def shape_masks() -> Masks:
    """Masks (8, FIELD, FIELD) of `SHAPES`, uint8, about EXTENT of the field wide or high."""
    size = FIELD * _OVER
    masks = []
    for shape in SHAPES:
        canvas = Image.new("L", (size, size))
        reach = size / 2 * EXTENT * _SMALLER.get(shape, 1.0)
        corners = [(size / 2 + reach * x - 0.5, size / 2 + reach * y - 0.5) for x, y in outline(shape)]
        ImageDraw.Draw(canvas).polygon(corners, fill=255)
        masks.append(np.asarray(canvas.reduce(_OVER)))
    return np.stack(masks)


@dataclass(frozen=True)
class Placement:
    """Where masks go: arrays (B,).

    Attributes:
        scale: 1 draws a mask as large as it is; per axis (B, 2).
        angle: Radians.
        shear: How far x moves per y.
        shift: (B, 2), x and y in halves of the picture.
    """

    scale: Floats
    angle: Floats
    shear: Floats
    shift: Floats

    def inverse(self) -> Floats:
        """(B, 2, 3): from a place in the picture to the place in the mask, both in [-1, 1]."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        rotation = np.stack([cos, -sin, sin, cos], 1).reshape(-1, 2, 2)
        bend = np.zeros_like(rotation)
        bend[:, 0, 0] = bend[:, 1, 1] = 1.0
        bend[:, 0, 1] = self.shear
        forward = rotation @ bend * self.scale[:, None, :]
        back = np.linalg.inv(forward)
        return np.concatenate([back, -back @ self.shift[:, :, None]], 2)


def place(masks: Masks, maps: Floats, size: int) -> Tensor:
    """Sample masks (B, h, w) uint8 through maps (B, 2, 3) -> (B, 1, 2 size, 2 size) in [0, 1]."""
    theta = torch.from_numpy(maps).float()
    grid = F.affine_grid(theta, [len(maps), 1, 2 * size, 2 * size], align_corners=False)
    values = torch.from_numpy(np.ascontiguousarray(masks)).float()[:, None] / 255.0
    return F.grid_sample(values, grid, align_corners=False)


def fit(digits: Masks, extent: float = DIGIT) -> Floats:
    """(B, 3, 3) maps from a field to digits (B, 28, 28): a digit's box lands in the middle, `extent` wide or high.

    MNIST centres by mass, at sizes that differ; turned upside down a digit has to stay where it was.
    """
    inked = digits > 100
    half = digits.shape[-1] / 2
    low = np.stack([inked.any(1).argmax(1), inked.any(2).argmax(1)], 1).astype(np.float64)
    high = np.stack([inked[:, :, ::-1].any(1).argmax(1), inked[:, ::-1].any(2).argmax(1)], 1)
    top = digits.shape[-1] - high
    maps = np.zeros((len(digits), 3, 3))
    maps[:, 0, 0] = maps[:, 1, 1] = np.maximum((top - low).max(1), 8) / 2 / half / extent
    maps[:, :2, 2] = (low + top) / 2 / half - 1
    maps[:, 2, 2] = 1
    return maps


def place_digits(digits: Masks, maps: Floats, weight: Floats, size: int) -> Tensor:
    """As `place`, for MNIST's digits; weight (B,) is the grey in (0, 1) that becomes an edge: less is bolder."""
    square = np.concatenate([maps, np.broadcast_to([[[0.0, 0.0, 1.0]]], (len(maps), 1, 3))], 1)
    theta = torch.from_numpy((fit(digits) @ square)[:, :2]).float()
    grid = F.affine_grid(theta, [len(maps), 1, 2 * size, 2 * size], align_corners=False)
    values = torch.from_numpy(np.ascontiguousarray(digits)).float()[:, None] / 255.0
    soft = F.grid_sample(values, grid, mode="bicubic", align_corners=False)
    edge = torch.from_numpy(weight).float()[:, None, None, None]
    return ((soft - edge) * GAIN + 0.5).clamp(0, 1)


def ink(paper: Tensor, mask: Tensor, colours: Tensor) -> Tensor:
    """Lay ink of colours (B, 3) over paper (B, 3, H, W) where a mask (B, 1, H, W) in [0, 1] says so."""
    return paper + mask * (colours[:, :, None, None] - paper)


def finish(picture: Tensor) -> Masks:
    """Average (B, 3, 2 S, 2 S), values 0..255, to uint8 (B, S, S, 3)."""
    small = F.avg_pool2d(picture, 2).round().clamp(0, 255).to(torch.uint8)
    return small.permute(0, 2, 3, 1).contiguous().numpy()
