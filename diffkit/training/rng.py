"""Randomness by position: every draw of training is a function of where it stands, never of what came before.

A generator is made fresh for (seed, purpose, step, micro-batch, rank), so that a resumed run draws what the
uninterrupted run would have drawn, with nothing to store and nothing to replay.
"""

from __future__ import annotations

from hashlib import blake2b

import torch


def derive_seed(seed: int, *position: int | str) -> int:
    """Return a 63-bit seed for a position: the same arguments always give the same number."""
    digest = blake2b(repr((seed, *position)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(device: torch.device | str, seed: int, *position: int | str) -> torch.Generator:
    """Return a fresh generator on `device`, seeded by the position."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *position))
