"""What a recipe chooses for any objective: how an error counts (`noise.loss`), the law of times (`noise.times`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from diffkit.recipes.schema import NoiseSpec
from diffkit.registry import Registry


def error_of(noise: NoiseSpec) -> Callable[[Tensor], Tensor]:
    """Return a recipe's loss: from an error (B, C, H, W) to one number per image, (B,), fp32."""
    if noise.loss == "mae":
        return lambda error: error.float().abs().flatten(1).mean(1)
    if noise.loss == "huber":  # Huber, 1964, eq. 2.1 with k = delta: e^2 / 2 up to delta, a line beyond
        delta = noise.huber_delta
        return lambda error: F.huber_loss(error.float(), torch.zeros_like(error, dtype=torch.float32), delta=delta,
                                          reduction="none").flatten(1).mean(1)  # fmt: skip
    return lambda error: error.float().square().flatten(1).mean(1)


class Times(Protocol):
    """A row: its fields are its arguments."""

    def __call__(self, share: Tensor) -> Tensor:
        """Return the levels (B,) in (0, 1) below which lies this share (B,) of all draws: the inverse of the law."""
        ...


TIMES: Registry[Times] = Registry("law of times")


@TIMES.register("uniform")
@dataclass(frozen=True)
class Uniform:
    """Every level as often. Source: arXiv:2209.03003, algorithm 1."""

    def __call__(self, share: Tensor) -> Tensor:
        """Return the levels below which lies this share (B,) of all draws."""
        return share


@TIMES.register("logit_normal")
@dataclass(frozen=True)
class LogitNormal:
    """The logit of the level is normal: levels in the middle more often. Source: arXiv:2403.03206, eq. 19."""

    mean: float = 0.0
    std: float = 1.0

    def __call__(self, share: Tensor) -> Tensor:
        """Return the levels below which lies this share (B,) of all draws."""
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(share))
