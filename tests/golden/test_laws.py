"""A picture depends on its own seed and options alone: not on the batch, its neighbours, or the sweep it stands in."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden import HEART, TREE, apart, pixels, told

DRAWING, MASK = "inputs/drawing.png", "inputs/mask.png"
DIGITS = ("-m", "models/digits")
# Rows of other batches are added up in another order: the last bits differ, and a pixel may round to the other side.
ROUNDING = 1

COMMANDS: dict[str, tuple[object, ...]] = {
    "sample": ("sample", "models/digits", "-c", 3, "--steps", 4, "--scheduler", "ddpm"),
    "sdedit": ("sdedit", DRAWING, *DIGITS, "-c", 3, "--steps", 4, "--strength", 0.7, "--eta", 1),
    "inpaint": ("inpaint", DRAWING, MASK, *DIGITS, "-c", 3, "--steps", 4, "--jump", 2, "--resample", 2),
    "anagram": ("anagram", *DIGITS, "--c1", 6, "--c2", 9, "--steps", 3, "--scheduler", "ddpm"),
    "hybrid": ("hybrid", *DIGITS, "--c1", 0, "--c2", 1, "--split", "low_high:8", "--steps", 3, "--eta", 0.5),
    "denoise": ("denoise", DRAWING, *DIGITS, "--timesteps", "700", "--stride", 250),
    "upscale": ("upscale", DRAWING, "-m", "models/if-2", "-p", "a cat", "--steps", 3),
    "cascade": ("anagram", "-m", "models/if", "--model-2", "models/if-2", "--p1", "a cat", "--p2", "a", "--steps", 2),
    "latent": ("sample", "models/sd", "-p", "a cat", "--steps", 3, "--eta", 1),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_picture_depends_on_its_seed_alone(drawn: Callable[..., Any], tmp_path: Path, name: str) -> None:
    many, one_by_one, alone = (
        drawn(*COMMANDS[name], *flags, "-o", tmp_path / str(k))["images"]
        for k, flags in enumerate(
            [
                ("-n", 4, "--seed", 6, "--batch-size", 4),
                ("-n", 4, "--seed", 6, "--batch-size", 1),
                ("-n", 1, "--seed", 8),
            ]
        )
    )
    assert all(apart(a, b) <= ROUNDING for a, b in zip(many, one_by_one, strict=True))
    assert apart(many[2], alone[0]) <= ROUNDING
    assert apart(many[2], many[3]) > ROUNDING  # pictures differ at all
    assert Path(alone[0]).name == Path(many[2]).name


def test_a_walk_ends_at_the_pictures_of_its_seeds(drawn: Callable[..., Any], tmp_path: Path) -> None:
    walk = drawn(
        "interpolate", *DIGITS, "-c", 3, "--frames", 3, "--steps", 3, "--seed", 2, "--to-seed", 7, "-o", tmp_path
    )
    ends = [
        drawn("sample", "models/digits", "-c", 3, "--steps", 3, "--seed", s, "-o", tmp_path)["images"] for s in (2, 7)
    ]
    strip = pixels(walk["images"][0])
    found = [place(strip, enlarged(path, 8), ROUNDING) for [path] in ends]  # frames are enlarged to 64 pixels
    assert [len(places) for places in found] == [1, 1]
    assert found[0][0][1] < found[1][0][1]  # from left to right


SWEEPS: dict[str, tuple[tuple[object, ...], tuple[str, ...]]] = {
    # What stands in one batch, and what cannot; one axis, and two.
    "prompt-guidance": (("sample", "tiny", "--steps", 2), (f"prompt={HEART}|{TREE}", "guidance=1,4")),
    "class-steps": (("sample", "models/digits"), ("class=1,2", "steps=2,3")),
    "strength-guidance": (
        ("sdedit", DRAWING, *DIGITS, "-c", 3, "--steps", 4), ("strength=0.5,1", "guidance=1,3")
    ),
    "reduce": (("anagram", *DIGITS, "--c1", 6, "--c2", 9, "--steps", 3), ("reduce=mean,alternate",)),
    "split": (("hybrid", *DIGITS, "--c1", 0, "--c2", 1, "--steps", 2), ("split=low_high:8,low_high:6",)),
    "stride": (("denoise", DRAWING, *DIGITS, "--timesteps", "700"), ("stride=250,300",)),
    "resample": (("inpaint", DRAWING, MASK, *DIGITS, "--steps", 4, "--jump", 2), ("resample=1,2",)),
}  # fmt: skip


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_holds_the_pictures_drawn_alone(drawn: Callable[..., Any], tmp_path: Path, name: str) -> None:
    command, axes = SWEEPS[name]
    flags = [flag for axis in axes for flag in ("--sweep", axis)]
    said = drawn(*command, *flags, "--seed", 3, "-o", tmp_path / "sweep")
    cells = [axis.partition("=") for axis in axes]
    values = [rest.split("|" if "|" in rest else ",") for _, _, rest in cells]
    assert len(said["sweep"]) == len(list(product(*values)))
    for cell, chosen in zip(said["sweep"], product(*values), strict=True):  # the last axis runs along the row
        assert cell.keys() >= {"values", "images", "steps"}
        assert cell["values"] == " ".join(
            f"{option}={value}" for (option, _, _), value in zip(cells, chosen, strict=True)
        )
        own = [part for (option, _, _), value in zip(cells, chosen, strict=True) for part in (f"--{option}", value)]
        alone = drawn(*command, *own, "--seed", 3, "-o", tmp_path / "alone.png")
        assert apart(cell["images"][0], alone["images"][0]) <= ROUNDING
        assert cell["steps"] == alone["steps"]
        assert said["images"].count(cell["images"][0]) == 1
        assert told(cell["images"][0])["seed"] == 3


def place(sheet: np.ndarray, tile: np.ndarray, within: int = 0) -> list[tuple[int, int]]:
    """Where a picture stands on a sheet, as (top, left): where every pixel of it is the same, give or take `within`."""
    height, width = tile.shape[:2]
    windows = np.lib.stride_tricks.sliding_window_view(sheet, (height, width), axis=(0, 1))
    tile = tile if tile.ndim == 2 else tile.transpose(2, 0, 1)
    # A few pixels first: all of them, at every place, would be gigabytes.
    rows, columns = [0, height // 2, height - 1], [0, width // 3, width - 1]
    near = np.ones(windows.shape[:2], dtype=bool)
    for r, c in product(rows, columns):
        apart_by = np.abs(windows[..., r, c] - tile[..., r, c])
        near &= (apart_by if apart_by.ndim == 2 else apart_by.max(axis=-1)) <= within
    return [(int(y), int(x)) for y, x in np.argwhere(near) if (np.abs(windows[y, x] - tile) <= within).all()]


def enlarged(path: str, factor: int) -> np.ndarray:
    return pixels(path).repeat(factor, axis=0).repeat(factor, axis=1)


@pytest.mark.parametrize(
    ("command", "factor", "columns"),
    [
        (("sample", "models/digits", "-c", 3, "-n", 5, "--steps", 2), 8, 3),  # enlarged to 64 pixels; nearly a square
        (("sample", "models/digits", "-c", 3, "-n", 5, "--steps", 2, "--columns", 2), 8, 2),
        (("sample", "models/digits", "-c", "3,7", "-n", 4, "--steps", 2), 8, 2),  # one column for each class
        (("sdedit", DRAWING, *DIGITS, "-n", 3, "--steps", 2), 20, 2),  # to 160 pixels
        (("sample", "models/digits", "--sweep", "steps=2,3", "--sweep", "class=1,2,3"), 20, 3),
        (("sample", "models/digits", "--sweep", "steps=2,3,4", "-n", 2), 20, 3),  # seeds run downwards
    ],
)  # fmt: skip
def test_a_sheet_shows_the_pictures_in_order(
    drawn: Callable[..., Any], command: tuple[object, ...], factor: int, columns: int
) -> None:
    said = drawn(*command)
    sheet = pixels(said["grid"])
    if "sweep" in said:  # row by row; the pictures of a combination stand below one another
        cells = [cell["images"] for cell in said["sweep"]]
        rows = [cells[k : k + columns] for k in range(0, len(cells), columns)]
        order = [cell[k] for row in rows for k in range(len(row[0])) for cell in row]
    else:
        order = said["images"]
    found = [place(sheet, enlarged(path, factor)) for path in order]
    assert all(len(places) == 1 for places in found)
    tops, lefts = zip(*(places[0] for places in found), strict=True)
    assert len(set(lefts)) == columns
    assert list(zip(tops, lefts, strict=True)) == sorted(zip(tops, lefts, strict=True))
    side = 8 * factor
    assert sheet.shape[1] == columns * (side + 2) + 2  # two pixels of white around each
