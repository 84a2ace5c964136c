"""Where every image stands in the data stream, and how it is augmented: pure functions of position, no history.

The stream is the concatenation of one permutation per epoch; a permutation depends on (seed, epoch), an augmentation
on (seed, epoch, index). Both come from a counter-based hash (the finalizer of SplitMix64: Steele, Lea and Flood,
"Fast splittable pseudorandom number generators", 2014), so any position is computed without the ones before it, and
no library's generator can change the order from one version to the next.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

Ints = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float64]]

# What the random number is for; two purposes never share one.
ORDER, FLIP, CROP, HOLD_OUT, SHARDS, BLOCK, EVALUATE = range(7)

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MUL_1 = np.uint64(0xBF58476D1CE4E5B9)
_MUL_2 = np.uint64(0x94D049BB133111EB)


def _scramble(z: np.ndarray[Any, np.dtype[np.uint64]]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    z = z + _GAMMA
    z = (z ^ (z >> np.uint64(30))) * _MUL_1
    z = (z ^ (z >> np.uint64(27))) * _MUL_2
    return z ^ (z >> np.uint64(31))


def hashed(*parts: int | Iterable[int] | Ints) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Hash integers, scalars or arrays that broadcast against each other, to uint64; the order of the parts counts."""
    state = np.zeros(1, dtype=np.uint64)
    for part in parts:
        value = np.atleast_1d(np.asarray(part, dtype=np.int64)).astype(np.uint64)
        state = _scramble(state ^ value)
    return state


def uniform(*parts: int | Iterable[int] | Ints) -> Floats:
    """Hash integers to floats in [0, 1)."""
    return (hashed(*parts) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(n: int, *parts: int) -> Ints:
    """Return a permutation of 0..n-1 that depends on `parts` alone."""
    return np.argsort(hashed(*parts, np.arange(n)), kind="stable").astype(np.int64)


class Order:
    """The endless stream of positions 0..n-1, one permutation after another.

    Args:
        n: Number of images, at least 1.
        seed: The run's seed.
    """

    def __init__(self, n: int, seed: int) -> None:
        self.n = n
        self.seed = seed
        self._epochs: dict[int, Ints] = {}

    def _permutation(self, epoch: int) -> Ints:
        if epoch not in self._epochs:
            self._epochs = {e: p for e, p in self._epochs.items() if e >= epoch - 1}
            self._epochs[epoch] = permutation(self.n, ORDER, self.seed, epoch)
        return self._epochs[epoch]

    def slice(self, start: int, count: int) -> tuple[Ints, Ints]:
        """Return (positions, epochs) of the stream's places start..start+count-1, each of shape (count,)."""
        positions, epochs = [], []
        while count > 0:
            epoch, offset = divmod(start, self.n)
            part = self._permutation(epoch)[offset : offset + count]
            positions.append(part)
            epochs.append(np.full(len(part), epoch, dtype=np.int64))
            start, count = start + len(part), count - len(part)
        return np.concatenate(positions), np.concatenate(epochs)
