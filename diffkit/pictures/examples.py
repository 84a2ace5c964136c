"""Inputs for a first try, drawn in code: a digit's stroke, a sketch of a heart, a mask of the right half."""

from __future__ import annotations

import math

from PIL import Image, ImageDraw

EXAMPLE_PROMPT = "a red heart"  # what `example_image` of 3 channels shows
_SCALE = 4  # drawn larger and reduced: smooth edges


def example_image(channels: int, size: int) -> Image.Image:
    """Return a square example: a white digit on black (1 channel), or a crude red heart on white (3)."""
    return _digit(size) if channels == 1 else _heart(size)


def example_mask(width: int, height: int) -> Image.Image:
    """Return a mask whose right half is white, to be repainted."""
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, (width // 2, 0, width, height))
    return mask


def _digit(size: int) -> Image.Image:
    """A three, by two arcs with round ends."""
    big = size * _SCALE
    image = Image.new("L", (big, big), 0)
    draw = ImageDraw.Draw(image)
    pen = big // 11
    for (x, y, r), (first, last) in (((0.48, 0.35, 0.17), (-150, 90)), ((0.48, 0.66, 0.19), (-90, 150))):
        for degree in range(first, last + 1, 2):
            px, py = (x + r * math.cos(math.radians(degree))) * big, (y + r * math.sin(math.radians(degree))) * big
            draw.ellipse((px - pen / 2, py - pen / 2, px + pen / 2, py + pen / 2), fill=255)
    return image.resize((size, size), Image.Resampling.BOX)


# A heart as somebody might cut it out in a hurry: corners as fractions of the side.
_OUTLINE = (
    (0.50, 0.33), (0.41, 0.20), (0.24, 0.17), (0.13, 0.29), (0.14, 0.46), (0.27, 0.66), (0.46, 0.86),
    (0.57, 0.88), (0.72, 0.66), (0.87, 0.50), (0.92, 0.30), (0.82, 0.15), (0.64, 0.14), (0.55, 0.22),
)  # fmt: skip


def _heart(size: int) -> Image.Image:
    """A lopsided polygon: what SDEdit makes something better of."""
    big = size * _SCALE
    image = Image.new("RGB", (big, big), "white")
    # The red of the model that ships with diffkit: another one it cannot invert, for it has no noise for it.
    ImageDraw.Draw(image).polygon([(x * big, y * big) for x, y in _OUTLINE], fill=(218, 32, 45))
    return image.resize((size, size), Image.Resampling.BOX)
