"""What the tests on the fixtures share: where they lie, what a picture says of itself, and who recorded them.

Only public doors are used here and in `tests/golden/`: the command line, `diffkit.load`, files, and the text chunk
"diffkit" of a PNG as Pillow reads it. So these tests hold however the modules behind them are named.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.fixtures.make import machine

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
PICTURES = sorted((FIXTURES / "pictures").glob("*.png"))
MODELS = FIXTURES / "models"
DRAWING, MASK = FIXTURES / "inputs" / "drawing.png", FIXTURES / "inputs" / "mask.png"
HEART, TREE, THREE = "a red heart", "a green tree", "a handwritten three"
# Between machines. Another processor's kernels add in another order, and their sums differ in the last bits; a few
# steps make of that no more than a rounding of 8-bit pixels to the other side, and a second level where guidance
# multiplies it.
LEVELS = 2


@cache
def recorded_here() -> bool:
    """Whether this machine, with its libraries, is the one that made the fixtures: then every bit is the same."""
    return bool(json.loads((FIXTURES / "recorded.json").read_text()) == machine())


def told(path: str | Path) -> dict[str, Any]:
    """What a picture says of how it was made, read without diffkit."""
    with Image.open(path) as image:
        image.load()
        found: dict[str, Any] = json.loads(image.text["diffkit"])  # type: ignore[attr-defined]
    return found


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def apart(one: str | Path, other: str | Path) -> int:
    """The largest difference of two pictures of one size, in levels of 0 to 255."""
    a, b = pixels(one), pixels(other)
    assert a.shape == b.shape
    return int(np.abs(a - b).max())


@contextmanager
def counted() -> Iterator[list[int]]:
    """Count the network's calls, whoever makes them: the number of rows of each, in order."""
    import torch

    rows: list[int] = []

    def note(module: Any, args: Any) -> None:
        if type(module).__name__ in ("UNet2DModel", "UNet2DConditionModel"):
            rows.append(len(args[0]) if args else 0)

    handle = torch.nn.modules.module.register_module_forward_pre_hook(note)
    try:
        yield rows
    finally:
        handle.remove()
