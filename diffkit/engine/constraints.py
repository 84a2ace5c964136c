"""What a sample is held to: known pixels (inpainting, a kept region of SDEdit), a known component (inverse hybrids).

A constraint is a function of the sample and the level that it has just reached; `sampling.denoise` calls it after each
step. Sources: RePaint, arXiv:2201.09865; soft masks: Differential Diffusion, arXiv:2306.00950; components: Factorized
Diffusion, arXiv:2404.11615.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from diffkit.engine.levels import level_after, out_of
from diffkit.engine.samplers import name_of
from diffkit.engine.sampling import Constraint, fresh_noise
from diffkit.errors import UsageError
from diffkit.model_info import NoiseKind
from diffkit.types import Filter

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_utils import SchedulerMixin


def keep_known(
    scheduler: SchedulerMixin,
    x0: Tensor,
    mask: Tensor,
    generators: Sequence[torch.Generator],
    *,
    paste: bool = True,
    noise: NoiseKind = "normal",
) -> Constraint:
    """Hold the black of a mask to the known image, noised to the level that the sample has just reached.

    Grey is repainted in the later part of the steps only: 0.3 in the last 30 %. Blending two noisy samples there would
    leave less noise than the network expects.

    Args:
        scheduler: Its grid must be set.
        x0: (B, C, H, W), the known image in the sample's space.
        mask: (B or 1, 1, H, W) in [0, 1]; 1 is repainted, 0 kept.
        generators: One per image.
        noise: The kind that the model knows.
        paste: After the last step blend the clean known image in by the mask: black is then exactly kept.

    Raises:
        UsageError: A solver whose arithmetic a change of noise would break.

    Source: arXiv:2201.09865, eq. 8a-8c, with the standard deviation where its algorithm 1 prints the variance.
    """
    if (name := name_of(scheduler)) in ("pndm", "lms"):
        raise UsageError(
            f"{name} extrapolates from the noise of earlier steps, and known pixels get new noise in every step",
            "Use ddim, ddpm, euler or dpm++.",
        )
    steps = len(scheduler.timesteps)

    def constrain(x: Tensor, index: int, t: Tensor, after: Tensor | None) -> Tensor:
        if after is None:
            # No noise is left, so the known image itself goes in, and stays to the last bit.
            return composite(x0, x, mask) if paste else x
        # The step has gone to the level of the next timestep, and so must the known image: with the noise of the level
        # before, the seam would be seen by the network and painted over (eq. 8a: x_known ~ q(x_after | x0)).
        signal, share = level_after(scheduler, after)
        known = signal * x0 + share * fresh_noise(x, generators, noise)
        # Eq. 8c, with grey read as a time: a pixel is free in the last steps, in as many of them as it is white.
        return torch.where(mask > 1.0 - (index + 1) / steps, x, known)

    return constrain


def keep_component(x0: Tensor, split: Filter, part: int) -> Constraint:
    """Hold one component of the finished sample to that of a reference; `component_of` leads the steps there.

    Between the steps nothing is pasted: the reference at a level is made of fresh noise, and where a filter cuts softly
    the sum of two halves of independent noise has less variance than the network expects.

    Args:
        x0: (B or 1, C, H, W), the reference in the sample's space.
        split: Parts that sum to the identity.
        part: Which one is the reference's.

    Source: arXiv:2404.11615, section 3.4, at the level without noise.
    """

    def constrain(x: Tensor, index: int, t: Tensor, after: Tensor | None) -> Tensor:
        return with_component(x, x0, split, part) if after is None else x

    return constrain


def component_of(x0: Tensor, scheduler: SchedulerMixin) -> Callable[[Tensor, Tensor], Tensor]:
    """Return what a network would have to say of (x, t) if the picture were the reference: `guidance.mix`'s `known`.

    Args:
        x0: (B or 1, C, H, W), the reference in the sample's space.
        scheduler: Says how an output follows from x0.
    """

    # A prediction and not a sample: whatever noise x holds, this answer leads from it to the reference, and the part of
    # it that a filter takes agrees with the same part of x.
    def known(x: Tensor, t: Tensor) -> Tensor:
        return out_of(x0.to(x), x, t, scheduler)

    return known


def with_component(x: Tensor, reference: Tensor, split: Filter, part: int) -> Tensor:
    """Return x with one component taken from the reference, and the rest as it is.

    Where the part is a projection (grey and colour) the result's component is the reference's, up to rounding. A
    Gaussian low pass is none: there the rest, x - part(x), holds a little of the low frequencies, which stays.

    Args:
        x: (B, C, H, W).
        reference: (B or 1, C, H, W).
        split: Parts that sum to the identity.
        part: Which one is the reference's.
    """
    # x - part(x) + part(reference), by one call: the parts are linear.
    return x + split.part(reference.to(x) - x, part)


def composite(known: Tensor, painted: Tensor, mask: Tensor) -> Tensor:
    """Return the painted image in the white of the mask, the known one in its black: there bit for bit.

    Args:
        known: (B, C, H, W).
        painted: (B, C, H, W).
        mask: (B or 1, 1, H, W) in [0, 1].
    """
    # known + 0 * (painted - known) would be known up to rounding, and NaN where something painted is: so by cases.
    return torch.where(mask == 0, known, torch.where(mask == 1, painted, known + mask * (painted - known)))


def shrink_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a mask (B, 1, H, W) at another size: a latent that covers any white is white."""
    return mask if tuple(mask.shape[-2:]) == tuple(size) else F.adaptive_max_pool2d(mask, size)
