"""The dataset `glyphs`: handwritten digits, capital letters and filled shapes in five inks, made as they are read.

Picture k is a function of (seed, split, k) alone. What it shows is decided in `composition.py` and said in
`wording.py`; digits are MNIST's, letters come from fonts (`fonts.py`), and `drawing.py` draws. Here MNIST is found, and
the pictures are given out. Some are a glyph on a filled shape: there the coarse and the fine structure vary
independently, which hybrid images need (Oliva, Torralba and Schyns, "Hybrid images", 2006).
"""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from diffkit.data import fingerprint, order
from diffkit.data.columns import find_columns
from diffkit.data.glyphs import drawing
from diffkit.data.glyphs.composition import SPLITS, Plan
from diffkit.data.glyphs.fonts import STROKES, Masks, letter_masks
from diffkit.data.glyphs.wording import INKS
from diffkit.data.sources import Source
from diffkit.data.streaming import Examples
from diffkit.errors import DataError, ModelError, UsageError
from diffkit.recipes.schema import DatasetSpec

LOG = logging.getLogger("diffkit.data")

ENVIRONMENT = "DIFFKIT_MNIST"
HUB = "ylecun/mnist"
EVERY = 6  # each sixth of MNIST's training digits belongs to the split `validation`
BLOCK = 64  # pictures that are drawn at once, at places that do not depend on the dataset's size
LARGEST = 64  # pixels; beyond, pictures are enlarged


@dataclass(frozen=True)
class Glyphs:
    """Handwritten digits, capital letters and filled shapes in five inks, with captions.

    The splits share no digit and no random number; letters of `train` and `test` come from the same faces, those of
    `validation` from others. So a judge that learns from `validation` shares neither digits nor faces with a model that
    learns from `train`, and `test` measures how well it reads what the model is to draw.

    Which faces there are depends on the machine (see `fonts.py`), so letters do too; all else does not.

    Attributes:
        mnist: A local copy of MNIST: a folder or file that a recipe's `dataset.name` may also be. Empty: the folder
            that DIFFKIT_MNIST names, else the Hub's ylecun/mnist.
        size: Number of pictures.
        seed: Fixes all of them.
    """

    mnist: str = ""
    size: int = 60_000
    seed: int = 0

    def open(self, spec: DatasetSpec) -> Source:
        """Find MNIST, and make the pictures from it as they are read.

        Raises:
            DataError: An unknown split or column, or a local copy that holds no digits of ten classes.
            ModelError: Neither a local copy nor the Hub.
            UsageError: No pictures at all.
        """
        if self.size < 1:
            raise UsageError(f"dataset glyphs: size is {self.size}, not at least 1")
        if spec.split not in SPLITS:
            raise DataError(
                f"dataset glyphs has no split {spec.split!r}; there are: {', '.join(SPLITS)}", "Set dataset.split."
            )
        if spec.streaming:
            raise UsageError("dataset glyphs is drawn, not streamed", "Leave dataset.streaming out.")
        find_columns(
            {"image": "image", "caption": "text"}, image=spec.image_column, label=spec.class_column,
            caption=spec.caption_column, what="dataset glyphs",
        )  # fmt: skip
        digits = _digits(self.mnist or os.environ.get(ENVIRONMENT, ""), spec.split)
        return GlyphSource(digits, size=self.size, seed=self.seed, split=spec.split, pixels=spec.resolution)


class Digits:
    """MNIST's digits by class: those of one split.

    Args:
        source: Grey images with labels 0-9.
        chosen: Positions in the source.
    """

    def __init__(self, source: Source, chosen: order.Ints) -> None:
        assert source.labels is not None
        self._source = source
        self.rows = [chosen[source.labels[chosen] == k] for k in range(10)]
        self._cache: dict[int, Masks] = {}

    def fingerprint(self) -> str:
        """Another text where the digits are others."""
        return fingerprint.of_blobs([self._source.fingerprint(len(self._source)).encode(), *map(bytes, self.rows)])

    def read(self, index: int) -> Masks:
        """Digit at a position of the source: uint8 (28, 28), ink 255."""
        if index not in self._cache:
            image = self._source.read(index).convert("L")
            if image.size != (28, 28):
                image = image.resize((28, 28), Image.Resampling.BICUBIC)
            self._cache[index] = np.asarray(image)
        return self._cache[index]


def _digits(place: str, split: str) -> Digits:
    """MNIST for one of our splits; raises as `Glyphs.open`."""
    from diffkit.data.datasets import open_images  # it registers this row
    from diffkit.data.hub import download_command

    theirs = "test" if split == "test" else "train"
    try:
        source = open_images(DatasetSpec(name=os.path.expanduser(place) if place else HUB, split=theirs))
    except ModelError as error:
        raise ModelError(
            f"dataset glyphs draws the digits of MNIST: {error.message}",
            f"Where there is a network, run `{download_command(HUB)}` first; or name a local copy "
            f"(a folder of parquet files or of images by class): glyphs:FOLDER, or {ENVIRONMENT}=FOLDER.",
        ) from None
    assert not isinstance(source, Examples)
    if source.labels is None or source.class_names != [str(k) for k in range(10)]:
        found = ", ".join((source.class_names or ["none"])[:12])
        raise DataError(
            f"dataset glyphs: {place or HUB} is no MNIST: its classes are not 0 to 9 but {found}",
            f"Check glyphs:FOLDER or {ENVIRONMENT}.",
        )
    everything = np.arange(len(source))
    judge = everything % EVERY == EVERY - 1
    digits = Digits(source, everything if split == "test" else everything[judge == (split == "validation")])
    if empty := [str(k) for k, rows in enumerate(digits.rows) if not len(rows)]:
        raise DataError(f"dataset glyphs: {place or HUB}, split {theirs!r}, has no digit {empty[0]}")
    return digits


class GlyphSource(Source):
    """The pictures of `Glyphs`; see `Source`.

    Args:
        digits: MNIST's.
        size: Number of pictures.
        seed: Fixes all of them.
        split: One of `SPLITS`.
        pixels: Height and width of the pictures; at most `LARGEST` are drawn.

    Attributes:
        plan: What every picture shows.
    """

    has_captions = True

    def __init__(self, digits: Digits, *, size: int, seed: int, split: str, pixels: int) -> None:
        self._digits, self._pixels = digits, min(pixels, LARGEST)
        self._split = split
        self.plan = Plan(size, seed, split)
        self._letters = letter_masks(split == "validation")
        self._blocks: dict[int, Masks] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_blocks": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.plan)

    def read(self, index: int, draft: int | None = None) -> Image.Image:
        block, row = divmod(int(index), BLOCK)
        with self._lock:
            if block not in self._blocks:
                self._blocks[block] = self.render(np.arange(block * BLOCK, min((block + 1) * BLOCK, len(self))))
        return Image.fromarray(self._blocks[block][row])

    def where(self, index: int) -> str:
        return f"glyphs, {self._split}[{index}]"

    def caption(self, index: int) -> str:
        return self.plan.caption(int(index))

    def fingerprint(self, length: int) -> str:
        # The digits, the letters and the plan: pictures follow from these.
        kinds = (self.plan.kind, self.plan.glyph, self.plan.shape, self.plan.ink, self.plan.ground)
        parts = [np.ascontiguousarray(kind[:length]).tobytes() for kind in kinds]
        return fingerprint.of_blobs([self._digits.fingerprint().encode(), self._letters.tobytes(), *parts])

    @torch.no_grad()
    def render(self, rows: order.Ints) -> Masks:
        """Draw pictures `rows`: uint8 (B, S, S, 3)."""
        plan, size = self.plan, self._pixels
        colours = torch.tensor([drawing.RGB[name] for name in INKS]).float()
        picture = torch.full((len(rows), 3, 2 * size, 2 * size), 255.0)
        shaped = plan.shape[rows] >= 0
        if shaped.any():
            chosen = rows[shaped]
            masks = drawing.shape_masks()[plan.shape[chosen]]
            mask = drawing.place(masks, plan.placement(chosen, of_shape=True).inverse(), size)
            names = np.where(plan.ground[chosen] < 0, plan.ink[chosen], plan.ground[chosen])
            picture[shaped] = drawing.ink(picture[shaped], mask, colours[names])
        for glyphs, draw in ((plan.glyph[rows] >= 10, self._letter), (_within(plan.glyph[rows], 10), self._digit)):
            if glyphs.any():
                chosen = rows[glyphs]
                mask = draw(chosen, plan.placement(chosen, of_shape=False).inverse())
                picture[glyphs] = drawing.ink(picture[glyphs], mask, colours[plan.ink[chosen]])
        return drawing.finish(picture)

    def _letter(self, rows: order.Ints, maps: order.Floats) -> torch.Tensor:
        plan = self.plan
        face = (plan.draw(60, rows) * len(self._letters)).astype(np.int64)
        stroke = (plan.draw(61, rows) * len(STROKES)).astype(np.int64)
        return drawing.place(self._letters[face, stroke, plan.glyph[rows] - 10], maps, self._pixels)

    def _digit(self, rows: order.Ints, maps: order.Floats) -> torch.Tensor:
        plan = self.plan
        lists = [self._digits.rows[k] for k in plan.glyph[rows]]
        which = [int(ids[int(u * len(ids))]) for ids, u in zip(lists, plan.draw(62, rows), strict=True)]
        weight = 0.43 + plan.spread(63, 0.08, rows)
        return drawing.place_digits(np.stack([self._digits.read(k) for k in which]), maps, weight, self._pixels)


def _within(values: order.Ints, below: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    return (values >= 0) & (values < below)
