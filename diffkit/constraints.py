"""What a sample is held to after each step: known pixels (inpainting, a kept region of SDEdit).

A constraint is a function of the sample and the level that it has just reached; `sampling.denoise` calls it. Sources:
RePaint, arXiv:2201.09865; soft masks: Differential Diffusion, arXiv:2306.00950.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffkit.errors import UsageError
from diffkit.levels import level_after
from diffkit.sampling import Constraint, fresh_noise


def keep_known(
    scheduler: Any,
    x0: Tensor,
    mask: Tensor,
    generators: Sequence[torch.Generator],
    *,
    paste: bool = True,
) -> Constraint:
    """Hold the black of a mask to the known image, noised to the level that the sample has just reached.

    Grey is repainted in the later part of the steps only: 0.3 in the last 30 %. Blending two noisy samples there would
    leave less noise than the network expects.

    Args:
        scheduler: Its grid must be set.
        x0: (B, C, H, W), the known image in the sample's space.
        mask: (B or 1, 1, H, W) in [0, 1]; 1 is repainted, 0 kept.
        generators: One per image.
        paste: After the last step blend the clean known image in by the mask: black is then exactly kept.

    Raises:
        UsageError: A solver whose arithmetic a change of noise would break.

    Source: arXiv:2201.09865, eq. 8a-8c, with the standard deviation where its algorithm 1 prints the variance.
    """
    name = type(scheduler).__name__
    if name in ("PNDMScheduler", "LMSDiscreteScheduler"):
        raise UsageError(
            f"{name} extrapolates from the noise of earlier steps, and known pixels get new noise in every step",
            "Use ddim, ddpm, euler or dpm++.",
        )
    steps = len(scheduler.timesteps)

    def constrain(x: Tensor, index: int, t: Tensor, after: Tensor | None) -> Tensor:
        if after is None:
            return composite(x0, x, mask) if paste else x
        signal, share = level_after(scheduler, after)
        known = signal * x0 + share * fresh_noise(x, generators)
        return torch.where(mask > 1.0 - (index + 1) / steps, x, known)

    return constrain


def composite(known: Tensor, painted: Tensor, mask: Tensor) -> Tensor:
    """Return the painted image in the white of the mask, the known one in its black: there bit for bit.

    Args:
        known: (B, C, H, W).
        painted: (B, C, H, W).
        mask: (B or 1, 1, H, W) in [0, 1].
    """
    return torch.where(mask == 0, known, torch.where(mask == 1, painted, known + mask * (painted - known)))


def shrink_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a mask (B, 1, H, W) at another size: a latent that covers any white is white."""
    return mask if tuple(mask.shape[-2:]) == tuple(size) else F.adaptive_max_pool2d(mask, size)
