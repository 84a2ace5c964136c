"""From an image back to the noise that it comes from, for the jobs that invert.

Source: Song et al., arXiv:2010.02502, eq. 13 backwards; the fixed point: Pan et al., arXiv:2309.04907 (AIDI).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffkit.engine.grids import scheduler_for
from diffkit.engine.levels import level, x0_of
from diffkit.engine.samplers import is_flow
from diffkit.engine.settings import Settings
from diffkit.errors import UsageError
from diffkit.jobs.sampling import numbers_of
from diffkit.types import Cond, Denoiser

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

# Above this level an epsilon says next to nothing of the image, and its error is divided by the signal.
LEAST_SIGNAL = 0.05


def exact_sampler(base: SchedulerMixin, settings: Settings) -> SchedulerMixin:
    """Make the sampler that can be walked backwards: DDIM (Euler for flows) without noise and without clipping.

    Raises:
        UsageError: Settings that ask for another one.
    """
    name = "flow_euler" if is_flow(base) else "ddim"
    if settings.scheduler not in (None, name) or settings.eta:
        raise UsageError(f"inversion goes with `scheduler` {name} and `eta` 0 only", "Leave both out.")
    options: dict[str, Any] = {"clip_sample": False, "thresholding": False}
    if is_flow(base):
        options = {"stochastic_sampling": False, "least_sigma": 0.0}
    return scheduler_for(base, replace(settings, scheduler=name), **options)


def first_level(scheduler: SchedulerMixin) -> int:
    """Return the index of the grid's first level that still holds some of the image: where inversion ends."""
    levels = [level(scheduler, t)[0] for t in scheduler.timesteps]
    return next((k for k, signal in enumerate(levels) if signal >= LEAST_SIGNAL), len(levels) - 1)


def calls_of(scheduler: SchedulerMixin, refine: int, ways: int = 1) -> list[float]:
    """Return the timestep of every network call of `invert_steps`, and of so many ways back."""
    grid = numbers_of(scheduler.timesteps)[first_level(scheduler) :]
    return [t for t in reversed(grid) for _ in range(refine + 1)] + grid * ways


@torch.no_grad()
def invert_steps(net: Denoiser, x0: Tensor, scheduler: SchedulerMixin, cond: Cond, *, refine: int = 3) -> Tensor:
    """Return the sample at the `first_level` of the grid from which DDIM comes to x0.

    x0 is (B, C, H, W), the scheduler from `exact_sampler`. `refine` further network calls are taken per step; 0 is
    the classic inversion.

    Each step is solved by fixed-point iteration: DDIM goes from x_t to x_s by eps(x_t, t); x_t is not known yet, so the
    first guess is x_s, and every refinement uses the guess before.
    """
    last = 1.0 if is_flow(scheduler) else float(scheduler.final_alpha_cumprod)
    signal, share = last**0.5, (1.0 - last) ** 0.5
    x = x0
    for t in scheduler.timesteps[first_level(scheduler) :].flip(0):
        above_signal, above_share = level(scheduler, t)
        guess = x
        for _ in range(refine + 1):
            clean = x0_of(net(guess, t, cond).out, guess, t, scheduler)
            eps = (guess - above_signal * clean) / above_share
            guess = above_signal / signal * (x - share * eps) + above_share * eps
        x, signal, share = guess, above_signal, above_share
    return x
