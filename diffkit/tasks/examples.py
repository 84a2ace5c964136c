"""Inputs for a first try, drawn in code: a digit's stroke, a sketch of a heart, a mask of the right half."""

from __future__ import annotations

import math

from PIL import Image, ImageDraw

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


def _heart(size: int) -> Image.Image:
    """The classic curve x = 16 sin^3 a, y = 13 cos a - 5 cos 2a - 2 cos 3a - cos 4a, a little askew."""
    big = size * _SCALE
    image = Image.new("RGB", (big, big), "white")
    points = []
    for step in range(120):
        a = 2 * math.pi * step / 120
        x = 16 * math.sin(a) ** 3
        y = 13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)
        points.append((big * (0.5 + 0.024 * x + 0.002 * y), big * (0.47 - 0.024 * y)))
    # The red of the model that ships with diffkit: another one it cannot invert, for it has no noise for it.
    ImageDraw.Draw(image).polygon(points, fill=(218, 32, 45))
    return image.resize((size, size), Image.Resampling.BOX)
