"""The drawing of animations: pictures turned over, turned, faded, slid, and pieces carried across a white canvas.

Nothing here knows of views; every function takes a picture ("L" or "RGB") and gives one of the same size and mode.
Those that move pieces need a square. In between the ends the drawing may interpolate: it is shown, never computed with.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from PIL import Image

Array = np.ndarray[Any, Any]


def smoothstep(share: float) -> float:
    """Return 3 s^2 - 2 s^3 of a share, cut to [0, 1]: it starts and ends at rest."""
    share = min(max(share, 0.0), 1.0)
    return share * share * (3.0 - 2.0 * share)


def canvas(image: Image.Image) -> Image.Image:
    """Return a white picture of the same size and mode."""
    return Image.new(image.mode, image.size, "white")


def turned_over(image: Image.Image, behind: Image.Image, progress: float) -> Image.Image:
    """Turn a card about its horizontal axis: the front grows thin, then what is behind comes up."""
    result = canvas(image)
    height = max(1, round(image.height * abs(math.cos(math.pi * progress))))
    face = image if progress < 0.5 else behind
    result.paste(face.resize((image.width, height), Image.Resampling.BILINEAR), (0, (image.height - height) // 2))
    return result


def turned(image: Image.Image, degrees: float, total: float) -> Image.Image:
    """Turn clockwise about the middle by `degrees` of `total`, drawn just small enough for the corners.

    A half turn stays at its smallest on its way: growing at each quarter would make it pulsate.
    """
    angle, oblong = abs(degrees), max(image.width / image.height, image.height / image.width)
    if abs(total) > 90.0:
        angle = min(angle, abs(total) - angle, math.degrees(math.atan(oblong)))
    larger = abs(math.cos(math.radians(angle))) + abs(math.sin(math.radians(angle))) * oblong
    middle, result = ((image.width - 1) / 2, (image.height - 1) / 2), canvas(image)
    stick(result, image, None, middle, middle, degrees, 1.0 / larger)
    return result


def faded(image: Image.Image, other: Image.Image, progress: float) -> Image.Image:
    """Blend one picture into another."""
    return Image.blend(image, other, progress)


def columns_slid(image: Image.Image, shifts: Array, progress: float) -> Image.Image:
    """Slide each column down by a fraction of its shift, around the edge."""
    size = image.width
    down = np.rint(shifts * progress).astype(int)
    rows = (np.arange(size)[:, None] - down[None]) % size
    return Image.fromarray(np.asarray(image)[rows, np.arange(size)[None]])


def disc_turned(image: Image.Image, radius: float, degrees: float) -> Image.Image:
    """Turn a disc in the middle clockwise; `radius` is a fraction of the side."""
    size = image.width
    axis = np.arange(size) - (size - 1) / 2
    distance = np.hypot(axis[:, None], axis[None])
    mask = Image.fromarray((np.clip(radius * size - distance + 0.5, 0.0, 1.0) * 255).astype(np.uint8))
    return Image.composite(image.rotate(-degrees, Image.Resampling.BICUBIC), image, mask)


def hinged(image: Image.Image, degrees: float) -> Image.Image:
    """Swing nine squares that hang together at their corners; the whole is drawn small enough for the frame."""
    square, result = image.width // 3, image.copy()
    result.paste("white", (0, 0, 3 * square, 3 * square))
    angle = math.radians(degrees)
    # The middles move apart as the squares swing; drawing it all smaller by the same factor undoes exactly that.
    scale = 1.0 / (math.sin(angle) + math.cos(angle))
    for i in range(3):
        for j in range(3):
            top, left = i * square, j * square
            middle = (left + (square - 1) / 2, top + (square - 1) / 2)
            way = -degrees if (i + j) % 2 else degrees
            stick(result, image, (left, top, left + square, top + square), middle, middle, way, scale)
    return result


def moved(image: Image.Image, table: Array, progress: float) -> Image.Image:
    """Carry every pixel along a straight line from its place to where the view shows it; eased.

    Args:
        image: The picture.
        table: (size * size,), pixel i of the view is pixel table[i] of the picture.
        progress: 0 to 1.
    """
    size, done = image.width, smoothstep(progress)
    pixels = np.asarray(image).reshape(size * size, -1)
    ends = np.arange(size * size)
    rows, columns = (
        np.floor(start + done * (end - start) + 0.5).astype(np.int64)
        for start, end in ((table // size, ends // size), (table % size, ends % size))
    )
    result = np.full_like(pixels, 255)
    result[rows * size + columns] = pixels[table]
    return Image.fromarray(result.reshape(np.asarray(image).shape))


def stick(
    ground: Image.Image,
    image: Image.Image,
    box: tuple[int, int, int, int] | None,
    pivot: tuple[float, float],
    place: tuple[float, float],
    degrees: float,
    scale: float = 1.0,
    shape: Array | None = None,
) -> None:
    """Draw a piece of `image` onto `ground`, turned clockwise about its pivot, which comes to lie at `place`.

    Args:
        ground: The picture to draw on; changed.
        image: Where the piece is cut from.
        box: (left, top, right, bottom) of the piece; all of `image` when None.
        pivot: Point (x, y) of `image`; whole numbers are the middles of pixels, as in `place`.
        place: Point of `ground`.
        degrees: Clockwise.
        scale: Size of the piece on the ground; 1 as it is.
        shape: (height, width) of the box, which of its pixels belong to the piece; all when None.
    """
    left, top, right, bottom = box or (0, 0, *image.size)
    cut = image.crop((left, top, right, bottom))
    alpha = Image.new("L", cut.size, 255) if shape is None else Image.fromarray((shape * 255).astype(np.uint8))
    reach = (
        math.ceil(
            scale * math.hypot(right - left, bottom - top) / 2 + math.dist(pivot, _middle(left, top, right, bottom))
        )
        + 1
    )
    x0, y0 = math.floor(place[0]) - reach, math.floor(place[1]) - reach
    cos, sin = math.cos(math.radians(degrees)) / scale, math.sin(math.radians(degrees)) / scale
    # From a pixel of the result back to the piece; Pillow counts from the corners of pixels.
    from_x, from_y = pivot[0] + 0.5 - left, pivot[1] + 0.5 - top
    to_x, to_y = place[0] + 0.5 - x0, place[1] + 0.5 - y0
    back = (cos, sin, from_x - cos * to_x - sin * to_y, -sin, cos, from_y + sin * to_x - cos * to_y)
    extent, way = (2 * reach + 2, 2 * reach + 2), Image.Transform.AFFINE
    turned_cut = cut.transform(extent, way, back, Image.Resampling.BILINEAR)
    turned_alpha = alpha.transform(extent, way, back, Image.Resampling.BILINEAR)
    ground.paste(turned_cut, (x0, y0), turned_alpha)


def _middle(left: int, top: int, right: int, bottom: int) -> tuple[float, float]:
    return (left + right - 1) / 2, (top + bottom - 1) / 2
