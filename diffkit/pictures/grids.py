"""Grids of pictures with labels, and the letters of all captions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from diffkit.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

_SMALLEST = 10  # pixels of a caption's letters
_WIDEST = 160  # pixels to which small images are enlarged for the sake of their captions


@lru_cache(maxsize=64)
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the letters of captions: DejaVu Sans, which has accents, Greek and Cyrillic, as it comes with matplotlib.

    Without matplotlib they are Pillow's own, which are English.

    Args:
        size: In pixels.
    """
    package = find_spec("matplotlib")  # only looked for: its import takes long
    if package is not None and package.origin is not None:
        path = Path(package.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if path.is_file():
            return ImageFont.truetype(str(path), size)
    return ImageFont.load_default(size)


def grid(
    images: Sequence[Image.Image] | Tensor,
    columns: int | None = None,
    *,
    labels: Sequence[str] | None = None,
    gap: int = 2,
    min_cell: int = 64,
) -> Image.Image:
    """Lay images of one size out in rows.

    Args:
        images: At least one; grey and RGB may be mixed, and the sheet is then RGB. Or (B, C, H, W) in [-1, 1].
        columns: Images per row; a square sheet when left out.
        labels: One caption per image, written above it; "" for none.
        gap: Pixels between the images.
        min_cell: Images smaller than this are enlarged by a whole factor, pixel by pixel; further where their labels
            need more room, up to 160 pixels.

    Raises:
        UsageError: No images, or not as many labels as images.
    """
    if not isinstance(images, Sequence):
        from diffkit.pictures.tensors import from_tensor

        images = from_tensor(images)
    if not images:
        raise UsageError("grid() needs at least one image")
    if labels is not None and len(labels) != len(images):
        raise UsageError(f"grid() needs one label per image, got {len(labels)} for {len(images)}")
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    factor = max(1, math.ceil(min_cell / max(images[0].size)))
    if factor > 1 and labels:  # they are enlarged in any case: so far that the words fit, within reason
        longest = max(font(_SMALLEST).getlength(" ".join(label.split())) for label in labels)
        factor = max(factor, math.ceil(min(longest + 1, _WIDEST) / images[0].width))
    cell_w, cell_h = images[0].width * factor, images[0].height * factor
    size = _letters(labels or (), cell_w, max(_SMALLEST, min(18, cell_h // 6)))
    strip = size + 4 if labels and any(labels) else 0
    rows = math.ceil(len(images) / columns)
    mode = "L" if all(image.mode == "L" for image in images) else "RGB"
    sheet = Image.new(mode, (columns * (cell_w + gap) + gap, rows * (cell_h + strip + gap) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for k, image in enumerate(images):
        left, top = gap + (k % columns) * (cell_w + gap), gap + (k // columns) * (cell_h + strip + gap)
        if strip and labels is not None:
            _caption(draw, labels[k], left, top, cell_w, size)
        enlarged = image.convert(mode).resize((cell_w, cell_h), Image.Resampling.NEAREST)
        sheet.paste(enlarged, (left, top + strip))
    return sheet


def magnify(image: Image.Image, side: int = 96) -> Image.Image:
    """Return a small picture enlarged by a whole factor, pixel by pixel, to at least `side` pixels."""
    factor = max(1, -(-side // max(image.size)))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _letters(labels: Sequence[str], width: int, largest: int) -> int:
    """Return the size of letters, in pixels, at which all captions fit; the smallest legible one where none does."""

    def fits(size: int) -> bool:
        return all(font(size).getlength(" ".join(label.split())) < width for label in labels)

    return next((size for size in range(largest, _SMALLEST, -1) if fits(size)), _SMALLEST)


def _caption(draw: ImageDraw.ImageDraw, text: str, left: int, top: int, width: int, size: int) -> None:
    """Write one line, shortened at its end to what fits."""
    text = " ".join(text.split())
    short = text
    while short and draw.textlength(short + ("…" if short != text else ""), font=font(size)) >= width:
        short = short[:-1]
    shown = short + ("…" if short != text else "")
    draw.text((left + 1, top), shown, fill="black", font=font(size))
