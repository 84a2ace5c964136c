"""Capital letters as masks, from the fonts that come with matplotlib and the plain ones among the system's.

Which letters are drawn therefore depends on the machine: one without system fonts has matplotlib's faces alone. Only
upright faces whose A-Z resemble those of a plain one are taken, so that symbols, scripts and ornaments stay out.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffkit.errors import DataError

LOG = logging.getLogger("diffkit.data")

Masks = np.ndarray[Any, np.dtype[np.uint8]]

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CANVAS = 256  # pixels on which a mask is drawn; it stands for the whole picture
FIELD = 64  # pixels of a finished mask
HEIGHT, WIDTH = 184, 200  # of a letter on the canvas: 23 and at most 25 pixels of 32
STROKES = (0, 3, 6)  # by how many canvas pixels an outline grows: 0, 3/8 and 3/4 of a pixel of 32 on either side
ALIKE = 0.6  # mean likeness of A-Z to the reference face, below which a face is left out
MOST_SYSTEM = 12  # system faces at most, those most alike first: more would leave too few pictures for each
_SLANTED = ("italic", "oblique", "slanted")
_THIN = ("light", "thin", "hairline")


def letter_mask(font: ImageFont.FreeTypeFont, letter: str, stroke: int = 0) -> Masks:
    """Draw one letter as uint8 (FIELD, FIELD), 255 inside, its box in the middle and HEIGHT of CANVAS high.

    A letter wider than WIDTH is squeezed, so that all fill the picture alike.
    """
    left, top, right, bottom = font.getbbox(letter, stroke_width=stroke)
    drawn = Image.new("L", (int(right - left) + 16, int(bottom - top) + 16))
    ImageDraw.Draw(drawn).text((8 - left, 8 - top), letter, font=font, fill=255, stroke_width=stroke)
    box = drawn.getbbox()
    if box is None:
        return np.zeros((FIELD, FIELD), dtype=np.uint8)
    drawn = drawn.crop(box)
    width = min(WIDTH, max(1, round(drawn.width * HEIGHT / drawn.height)))
    canvas = Image.new("L", (CANVAS, CANVAS))
    canvas.paste(
        drawn.resize((width, HEIGHT), Image.Resampling.BILINEAR), ((CANVAS - width) // 2, (CANVAS - HEIGHT) // 2)
    )
    return np.asarray(canvas.reduce(CANVAS // FIELD))


def _own() -> Path:
    """The folder of matplotlib's fonts; importing it takes longer than to look where it lies."""
    package = find_spec("matplotlib")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "mpl-data" / "fonts" / "ttf"


def _system() -> list[Path]:
    from matplotlib.font_manager import findSystemFonts

    return sorted((Path(file) for file in findSystemFonts(fontext="ttf")), key=lambda path: (path.stem, str(path)))


def _alphabet(path: Path) -> Masks | None:
    """Masks (26, FIELD, FIELD) of an upright face of ordinary weight, or None."""
    try:
        font = ImageFont.truetype(str(path), HEIGHT)
        name = " ".join(part or "" for part in font.getname()).lower()
        if any(word in name for word in (*_SLANTED, *_THIN)):
            return None
        masks = np.stack([letter_mask(font, letter) for letter in LETTERS])
    except (OSError, ValueError):  # no outlines, or a broken file
        return None
    flat = masks.reshape(26, -1)
    if len(np.unique(flat, axis=0)) < 26 or not flat.any(axis=1).all():
        return None
    return masks


def likeness(masks: Masks, reference: Masks) -> float:
    """Mean over A-Z of the cosine of the angle between two faces' letters, in [0, 1]."""
    a, b = (m.reshape(26, -1).astype(np.float64) for m in (masks, reference))
    return float(((a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))).mean())


def _candidates() -> Iterator[tuple[Path, Masks, float]]:
    """Readable faces, each name once, matplotlib's first; with their alphabets and likenesses."""
    reference = _alphabet(_own() / "DejaVuSans.ttf")
    if reference is None:
        raise DataError(f"{_own()}: DejaVuSans.ttf is missing or unreadable", "Install matplotlib again.")
    seen: set[str] = set()
    for path in [*sorted(_own().glob("*.ttf"), key=lambda p: p.stem), *_system()]:
        if path.stem in seen:
            continue
        seen.add(path.stem)
        masks = _alphabet(path)
        if masks is not None and (alike := likeness(masks, reference)) >= ALIKE:
            yield path, masks, alike


@lru_cache(maxsize=1)
def faces() -> tuple[Path, ...]:
    """Return the font files that letters are drawn from, by name.

    Raises:
        DataError: matplotlib's fonts are not there.
    """
    found = list(_candidates())
    own = [path for path, _, _ in found if path.parent == _own()]
    others = sorted(((-alike, path.stem, path) for path, _, alike in found if path.parent != _own()))[:MOST_SYSTEM]
    chosen = sorted([*own, *(path for _, _, path in others)], key=lambda path: path.stem)
    LOG.debug("letters from %d faces: %s", len(chosen), ", ".join(path.stem for path in chosen))
    return tuple(chosen)


def held_out(face: Path) -> bool:
    """Whether a face belongs to the judge, not to training: a third of them, by name and so on every machine."""
    return zlib.crc32(face.stem.encode()) % 3 == 0


@lru_cache(maxsize=2)
def letter_masks(judge: bool) -> Masks:
    """Return masks (faces, strokes, 26, FIELD, FIELD), uint8, of the faces for training or for the judge."""
    chosen = [face for face in faces() if held_out(face) == judge]
    rows = []
    for face in chosen:
        font = ImageFont.truetype(str(face), HEIGHT)
        rows.append([[letter_mask(font, letter, stroke) for letter in LETTERS] for stroke in STROKES])
    return np.asarray(rows, dtype=np.uint8)
