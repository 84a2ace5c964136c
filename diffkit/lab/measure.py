"""Numbers about the pictures of a report, computed from their files: tables of what is to be compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from diffkit.lab.pieces import Made, Piece
from diffkit.lab.section import Table

if TYPE_CHECKING:
    Pixels = np.ndarray[Any, np.dtype[np.float64]]


UNITS = "RMS: root of the mean squared difference of pixels from 0 to 1. Contrast: their standard deviation."
_MOST_DB = 60.0  # above, hardly a pixel differs when written in 8 bits


def pixels(path: Path) -> Pixels:
    """Return a picture's pixels from 0 to 1."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), dtype=np.float64) / 255.0


def pictures(made: Made) -> list[Path]:
    """Return the files of a piece that are single pictures."""
    return [made.folder / one.file for one in made.pictures if not one.file.endswith(".gif") and not _given(one.file)]


def _given(name: str) -> bool:
    """Whether a file shows what went in."""
    return name.startswith("input-")


def variety(made: Made) -> float:
    """Return the mean root-mean-square difference of every two pictures of a piece, pixels from 0 to 1."""
    seen = [pixels(path) for path in pictures(made)]
    apart = [float(np.sqrt(np.mean((a - b) ** 2))) for a, b in combinations(seen, 2)]
    return sum(apart) / max(1, len(apart))


def contrasts(made: Made) -> list[float]:
    """Return the standard deviation of each of a piece's pictures."""
    return [float(pixels(path).std()) for path in pictures(made)]


def contrast(made: Made) -> float:
    """Return the mean standard deviation of a piece's pictures."""
    found = contrasts(made)
    return sum(found) / max(1, len(found))


def mean_color(made: Made) -> list[float]:
    """Return the mean red, green and blue of a piece's pictures, from 0 to 1."""
    means = [pixels(path).mean((0, 1)) for path in pictures(made)]
    return [float(value) for value in np.mean(means, axis=0)]


def mean_picture(data: str, made: Made) -> tuple[float, float]:
    """Return the contrast of the mean of training pictures, and how far a piece's pictures lie from it.

    Args:
        data: As a recipe's `dataset.name`.
        made: Pictures of the training's size.
    """
    from diffkit.data import open_dataset
    from diffkit.pictures.images import cut, with_channels
    from diffkit.recipes.schema import DatasetSpec

    found = open_dataset(DatasetSpec(name=data), seed=0)
    if found.source is None or found.length is None:
        return float("nan"), float("nan")
    seen = [pixels(path) for path in pictures(made)]
    height, width = seen[0].shape[:2]
    total = np.zeros((height, width, 3))
    count = min(found.length, 2000)
    for index in range(count):
        image = with_channels(cut(found.source.read(index), width, height), found.channels)
        total += np.asarray(image.convert("RGB"), dtype=np.float64) / 255.0
    mean = total / count
    rms = [float(np.sqrt(np.mean((one - mean) ** 2))) for one in seen]
    return float(mean.std()), sum(rms) / len(rms)


def apart(made: Made, image: Path) -> list[float]:
    """Return how far each picture of a piece lies from an image, cut as the model takes it: RMS of pixels 0 to 1."""
    found = []
    for path in pictures(made):
        seen = pixels(path)
        found.append(float(np.sqrt(np.mean((seen - _fitted(image, seen.shape)) ** 2))))
    return found


def changed_outside(made: Made, image: Path, mask: Path) -> int:
    """Return the largest change, in levels of 0 to 255, where a mask is black."""
    from diffkit.pictures.images import open_image
    from diffkit.pictures.masks import cut_mask

    most = 0
    for path in pictures(made):
        seen = pixels(path)
        kept = cut_mask(open_image(mask), seen.shape[1], seen.shape[0])[0, 0].numpy() == 0.0
        with Image.open(path) as picture:
            grey = picture.mode == "L"
        difference = np.abs(seen - _fitted(image, seen.shape, grey)) * 255.0
        most = max(most, round(float(difference[kept].max(initial=0.0))))
    return most


def _fitted(image: Path, shape: tuple[int, ...], grey: bool = False) -> Pixels:
    from diffkit.pictures.images import cut, open_image, with_channels

    cut_out = with_channels(cut(open_image(image), shape[1], shape[0]), 1 if grey else 3)
    return np.asarray(cut_out.convert("RGB"), dtype=np.float64) / 255.0


def psnr_table(
    scores: Sequence[tuple[str, Mapping[str, Mapping[str, float | None]]]], levels: str = "t",
    named: Mapping[str, str] | None = None,
) -> Table:  # fmt: skip
    """Return PSNR and mean squared error by method and level.

    Args:
        scores: What `denoise` measured, by the name of the picture; {method: {level: dB}}.
        levels: What the levels are called.
        named: Other names of some levels.
    """
    keys = list(dict.fromkeys(key for _, by in scores for row in by.values() for key in row))
    header = ("PSNR, mean squared error", *(f"{levels} = {(named or {}).get(key, key)}" for key in keys))
    rows = []
    for name, by in scores:
        for method, row in by.items():
            title = f"{name} {method.replace('_', ' ')}".strip()
            rows.append((title, *(_both(row[key]) if key in row else "" for key in keys)))
    return Table(header, tuple(rows))


def _both(decibels: float | None) -> str:
    """PSNR with the mean squared error of pixels from 0 to 1 that it stands for."""
    if decibels is None:
        return "equal"
    if decibels > _MOST_DB:
        return f"over {_MOST_DB:.0f} dB"
    return f"{decibels:.1f} dB, {10 ** (-decibels / 10):.4f}"


def costs(pieces: Sequence[Piece]) -> Callable[[list[Made]], list[Table | str]]:
    """Return the measurement of pieces by `cost_table`, each under its caption."""
    return lambda made: [cost_table([(p.caption, one) for p, one in zip(pieces, made, strict=True)])]


def cost_table(rows: Sequence[tuple[str, Made]]) -> Table:
    """Return steps, network calls and seconds of pieces."""
    cells = [
        (name, str(one.payload.get("steps", "")), str(one.payload["unet_calls"]), f"{one.seconds:.1f}")
        for name, one in rows
    ]
    return Table(("", "steps", "network calls", "seconds"), tuple(cells))
