"""How near one picture is to another."""

from __future__ import annotations

import torch
from torch import Tensor


def psnr(x: Tensor, y: Tensor) -> float:
    """Return the peak signal-to-noise ratio of images in [-1, 1] in dB; infinite for equal ones."""
    error = float((x.clamp(-1, 1) - y.clamp(-1, 1)).double().square().mean())
    return float("inf") if error == 0.0 else float(-10.0 * torch.log10(torch.tensor(error / 4.0, dtype=torch.float64)))
