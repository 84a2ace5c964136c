"""A user's permutation: read from .npy or .png, proved to be one, and fitted to other sizes block by block.

Nothing in a file is executed: pickled arrays are refused, and pictures go through the safe opener.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffkit.errors import DataError, UsageError
from diffkit.illusions.views.base import cornered

MAX_SIDE = 4096

_MAGIC = b"\x93NUMPY"
_RECIPE = "np.save('view.npy', np.arange(H * W).reshape(H, W)[::-1]) writes one, the flip."


def read_order(path: str) -> Tensor:
    """Read a permutation of H * H pixels, (H * H,) int64.

    Raises:
        DataError: No such file, another format, not square, not integers, or no permutation; the message says which
            values are missing or double.
    """
    place = Path(path)
    if not place.is_file():
        raise DataError(f"{path}: no such file", "Check the path; a .npy or .png file is needed.")
    if place.suffix.lower() == ".npy":
        values = _from_npy(place)
    elif place.suffix.lower() == ".png":
        values = _from_png(place)
    else:
        raise DataError(f"{path}: a view is a .npy or a .png file, not {place.suffix or 'one without a suffix'}")
    _prove(values, path)
    return torch.from_numpy(values.astype(np.int64))


def digest(order: Tensor) -> str:
    """Return a short fingerprint of a permutation."""
    return hashlib.sha256(order.numpy().astype("<i8").tobytes()).hexdigest()[:16]


def enlarge(order: Tensor, size: int) -> Tensor:
    """Turn a permutation of n x n cells into one of size x size pixels, n <= size, that moves whole cells.

    Cells are size // n pixels wide; the columns and rows that are left at the right and at the bottom stay.
    """
    n = math.isqrt(order.numel())
    block = size // n
    if block > 1:
        inner = torch.arange(block)
        rows = (order // n).view(n, 1, n, 1) * block + inner.view(1, block, 1, 1)
        columns = (order % n).view(n, 1, n, 1) * block + inner.view(1, 1, 1, block)
        order = (rows * (n * block) + columns).flatten()
    return cornered(order, size)


def fit(order: Tensor, size: int, name: str) -> Tensor:
    """Return a permutation whose side divides `size`: the order itself, or, for a smaller picture, of its blocks.

    Raises:
        UsageError: The sizes do not go into one another, or blocks are torn apart.
    """
    n = math.isqrt(order.numel())
    if size % n == 0:
        return order
    hint = f"Use pictures of {n} px or a multiple of it, or a file made for {size} px."
    if n % size:
        raise UsageError(f"view permutation:{name} is made for {n} px and its multiples, not for {size} px", hint)
    block = n // size
    # (cell, pixel of the cell): the cell that each pixel comes from
    source = order // n // block * size + order % n // block
    cells = source.view(size, block, size, block).transpose(1, 2).reshape(size * size, block * block)
    if not bool((cells == cells[:, :1]).all()):
        text = (
            f"view permutation:{name} tears blocks of {block}x{block} pixels apart, so that it has no {size} px version"
        )
        raise UsageError(text, hint)
    return cells[:, 0].contiguous()


def _from_npy(place: Path) -> np.ndarray:
    with place.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise DataError(f"{place}: not a NumPy file, whatever its name says", _RECIPE)
    try:
        stored = np.load(place, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        why = "it holds Python objects" if "Python objects" in str(error) else str(error).splitlines()[0][:150]
        raise DataError(f"{place}: cannot be read as an array: {why}", _RECIPE) from None
    if not isinstance(stored, np.ndarray) or stored.dtype.kind not in "iu":
        kind = stored.dtype if isinstance(stored, np.ndarray) else type(stored).__name__
        raise DataError(f"{place}: holds {kind}; a permutation holds whole numbers (int64)", _RECIPE)
    n = math.isqrt(stored.size)
    if n * n != stored.size or stored.shape not in ((n * n,), (n, n)):
        text = f"{place}: has the shape {stored.shape}; needed: (H, H) or (H * H,), pictures are square"
        raise DataError(text, _RECIPE)
    _small(n, place)
    return np.asarray(stored).ravel()


def _from_png(place: Path) -> np.ndarray:
    from diffkit.pictures.images import image_info, open_image

    width, height, mode, kind = image_info(str(place), str(place))
    if kind != "PNG" or mode != "RGB":
        raise DataError(f"{place}: {kind} {mode}; needed: a PNG in RGB, no transparency, no palette", _ENCODING)
    if width != height:
        raise DataError(f"{place}: {width}x{height} pixels; needed: as wide as high, pictures are square")
    _small(width, place)
    pixels = np.asarray(open_image(place), dtype=np.int64)
    return (pixels[..., 0] + 256 * pixels[..., 1] + 65536 * pixels[..., 2]).ravel()


_ENCODING = "The colour of pixel i says where it comes from: red + 256 * green + 65536 * blue."


def _small(n: int, place: Path) -> None:
    if not 2 <= n <= MAX_SIDE:
        raise DataError(f"{place}: a permutation of {n}x{n} pixels; needed: 2 to {MAX_SIDE} per side")


def _prove(values: np.ndarray, name: str) -> None:
    """Raise a DataError that says why the values are no permutation of 0 .. count - 1."""
    count = values.size
    # As stored: converted to int64, large uint64 values would come out negative.
    outside = values[(values < 0) | (values >= count)]
    if outside.size:
        text = f"{name}: no permutation: {outside.size} of {count} values are outside 0..{count - 1}, e.g. {outside[0]}"
        hint = "Count pixels from 0." if values.min() == 1 and values.max() == count else _RECIPE
        raise DataError(text, hint)
    often = np.bincount(values.astype(np.int64), minlength=count)
    if (often != 1).any():
        double, missing = int(often.argmax()), int(often.argmin())
        text = f"{name}: no permutation: {int((often == 0).sum())} of {count} pixels are never shown (e.g. {missing})"
        text += f", and others several times (e.g. {double}, {int(often[double])} times)"
        hint = "Every pixel must be shown exactly once: then the view can be undone, and noise stays noise."
        raise DataError(text, hint)
