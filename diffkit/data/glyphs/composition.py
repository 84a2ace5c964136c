"""What every picture of the dataset `glyphs` shows and where: pure functions of (seed, split, position), no pixels.

All numbers come from the counter-based hash of `order.py`, so a picture does not depend on how many there are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from diffkit.data import order
from diffkit.data.glyphs.drawing import SEATS, Placement
from diffkit.data.glyphs.wording import GLYPHS, INKS, SHAPES, Subject, caption

SPLITS = ("train", "validation", "test")
# Shares of digits, letters, shapes, and glyphs on shapes. What decides how well a class is drawn is how often it is
# seen: a digit alone in 2 % of the pictures, a letter in 1.1 %, a glyph on a shape in 1.3 %; shapes learn themselves.
SHARES = (0.20, 0.28, 0.07, 0.45)
DIGIT, LETTER, SHAPE, BOTH = range(4)
BLACK = 0.52  # share of black among digits and letters; the other inks share the rest alike
NAMED = 0.12  # share of black things whose captions say so
SHORT = 0.2  # share of digits that are not called handwritten
OPEN = (0.2, 0.35)  # shares of "a sign on a red disc" and of "a three on a shape" among glyphs on shapes
_OPEN_PARTS = ("glyph", "shape", None)
_PURPOSE = 0x617  # keeps these random numbers apart from those of `order.py`


class Plan:
    """What every picture shows and how it is drawn; arrays (N,), entry k a function of (seed, split, k).

    Attributes:
        kind: DIGIT, LETTER, SHAPE or BOTH.
        glyph: Index into `GLYPHS`, -1 where there is none.
        shape: Index into `SHAPES`, -1 where there is none.
        ink: Index into `INKS`, of the glyph, or of the shape where it is alone.
        ground: Index into `INKS` of a shape under a glyph, else -1.
        name_black: Whether the caption names black where it is.
        handwritten: Whether the caption calls a digit so.
        open_part: What the caption of a glyph on a shape leaves open: 0 the glyph, 1 the shape, 2 nothing.
    """

    def __init__(self, size: int, seed: int, split: str) -> None:
        self._key = (_PURPOSE, seed, SPLITS.index(split))
        self._ids = np.arange(size)
        self.kind = np.searchsorted(np.cumsum(SHARES), self.draw(0), side="right").clip(max=BOTH)
        glyph = np.select(
            [self.kind == DIGIT, self.kind == LETTER, self.kind == BOTH],
            [self.draw(1) * 10, 10 + self.draw(1) * 26, self.draw(1) * len(GLYPHS)],
            -1,
        )
        self.glyph = np.floor(glyph).astype(np.int64)
        self.shape = np.where(self.kind >= SHAPE, self.draw(2) * len(SHAPES), -1).astype(np.int64)
        others = 1 + (self.draw(4) * (len(INKS) - 1)).astype(np.int64)
        any_ink = (self.draw(4) * len(INKS)).astype(np.int64)
        self.ink = np.select(
            [self.kind == SHAPE, self.kind == BOTH, self.draw(3) < BLACK], [any_ink, 0, 0], others
        ).astype(np.int64)
        self.ground = np.where(self.kind == BOTH, others, -1)
        self.name_black, self.handwritten = self.draw(10) < NAMED, self.draw(11) >= SHORT
        opened = np.searchsorted(np.cumsum(OPEN), self.draw(12), side="right")
        self.open_part = np.where(self.kind == BOTH, opened, len(OPEN))

    def __len__(self) -> int:
        return len(self._ids)

    def draw(self, what: int, rows: Any = slice(None)) -> order.Floats:
        """Return a random number in [0, 1) for each picture; `what` tells them apart."""
        return order.uniform(*self._key, self._ids[rows], what)

    def spread(self, what: int, extent: float, rows: Any) -> order.Floats:
        """Return a random number in [-extent, extent) for each picture."""
        return (2 * self.draw(what, rows) - 1) * extent

    def subject(self, k: int) -> Subject:
        """Say what picture k shows."""
        glyph = None if self.glyph[k] < 0 else GLYPHS[self.glyph[k]]
        ink = INKS[self.ink[k]]
        if self.shape[k] < 0:
            return Subject(glyph, ink)
        shape = SHAPES[self.shape[k]]
        return Subject(shape=shape, ground=ink) if glyph is None else Subject(glyph, ink, shape, INKS[self.ground[k]])

    def caption(self, k: int) -> str:
        """Say it in the words chosen for picture k."""
        return caption(
            self.subject(k),
            name_black=bool(self.name_black[k]),
            handwritten=bool(self.handwritten[k]),
            open_part=_OPEN_PARTS[self.open_part[k]],
        )

    def placement(self, rows: Any, *, of_shape: bool) -> Placement:
        """Where the shapes or glyphs of some pictures go: a little off the middle, turned, larger or smaller."""
        kind = self.kind[rows]
        both, digit = kind == BOTH, kind == DIGIT
        first = 20 if of_shape else 40
        scale = 1 + np.stack([self.spread(first, 0.07, rows)] * 2, 1)
        scale[:, 0] *= 1 + self.spread(first + 1, 0.06, rows)
        scale *= np.where(both, 1.14 if of_shape else 0.74, 1.0)[:, None]
        angle = np.deg2rad(self.spread(first + 2, 7.0, rows)) * np.where(digit, 0.6, 1.0)  # a hand slants by itself
        shear = self.spread(first + 3, 0.0 if of_shape else 0.07, rows)
        shift = np.stack([self.spread(first + 4, 0.05, rows), self.spread(first + 5, 0.05, rows)], 1)
        if not of_shape:
            seats = np.asarray([SEATS[shape] for shape in SHAPES])
            shift[both] += seats[self.shape[rows][both]]
        return Placement(scale, angle, shear, shift)
