"""Noise levels: how much signal and noise a sample holds at a timestep, and what a network's output says of x0.

Every scheduler's sample is x = signal * x0 + noise * eps at each level; the two numbers come from the scheduler itself,
so that what is built on them holds for all of them. The loop is in `sampling.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffkit.engine.samplers import is_flow
from diffkit.errors import UsageError

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

Number = float | Tensor


def level(scheduler: SchedulerMixin, t: Tensor | float) -> tuple[float, float]:
    """Return (signal, noise) of the scheduler's sample at a timestep of its grid: x = signal * x0 + noise * eps.

    Args:
        scheduler: A diffusers scheduler; its grid must be set unless it has a level for every integer.
        t: One timestep.
    """
    if is_flow(scheduler):
        share = float(t) / scheduler.config.num_train_timesteps
        return 1.0 - share, share
    halfway = getattr(scheduler, "sigmas_interpol", None)
    if halfway is not None:  # solvers that visit a point between two levels in every step
        place = int((scheduler.timesteps - float(t)).abs().argmin())
        if place % 2:  # the ancestral one stores them one place further down
            return 1.0, float(halfway[place - hasattr(scheduler, "sigmas_up")])
    one, when = torch.ones(1), torch.as_tensor(t).detach().cpu().reshape(1)
    # A scheduler that counts its steps would take the level it stands at for that of t.
    begin = getattr(scheduler, "_begin_index", None)
    if begin is not None:
        scheduler._begin_index = None
    try:
        signal, noise = (scheduler.add_noise(x, y, when) for x, y in ((one, 0 * one), (0 * one, one)))
    finally:
        if begin is not None:
            scheduler._begin_index = begin
    return float(signal), float(noise)


def level_after(scheduler: SchedulerMixin, after: Tensor | None) -> tuple[float, float]:
    """Return the level a step has just reached: that of the next timestep, or (1, 0) after the last one."""
    return (1.0, 0.0) if after is None else level(scheduler, after)


def network_level(scheduler: SchedulerMixin, t: Tensor) -> tuple[Number, Number]:
    """Return (signal, noise) of what the network is given at t, after `scale_model_input`.

    Args:
        scheduler: A diffusers scheduler.
        t: Shape (), or (B,): the numbers are then tensors of (B, 1, 1, 1).
    """
    if t.ndim:
        rows = torch.tensor([network_level(scheduler, one) for one in t], device=t.device).reshape(-1, 2, 1, 1, 1)
        return rows[:, 0], rows[:, 1]
    signal, noise = level(scheduler, t)
    if is_flow(scheduler) or signal < 1.0:
        return signal, noise
    length = (signal**2 + noise**2) ** 0.5  # x0 + sigma * eps is handed over at unit variance
    return signal / length, noise / length


def parameterization(scheduler: SchedulerMixin) -> str:
    """Return what the network predicts: epsilon, v_prediction, sample or flow."""
    return "flow" if is_flow(scheduler) else str(scheduler.config.get("prediction_type", "epsilon"))


def x0_of(out: Tensor, x: Tensor, t: Tensor, scheduler: SchedulerMixin) -> Tensor:
    """Return the clean estimate that a network's output stands for.

    Args:
        out: (B, C, H, W), the network's output.
        x: (B, C, H, W), what the network was given.
        t: Shape () or (B,).
        scheduler: Says what the output is and how much noise there is.

    Raises:
        UsageError: An epsilon at a level without signal.

    Source: Ho et al., arXiv:2006.11239, eq. 15; v: Salimans & Ho, arXiv:2202.00512, appendix D.
    """
    signal, noise = network_level(scheduler, t)
    kind = parameterization(scheduler)
    if kind == "sample":
        return out
    if kind == "flow":
        return x - noise * out
    if kind == "v_prediction":
        return signal * x - noise * out
    if float(torch.as_tensor(signal).min()) == 0.0:
        raise UsageError(f"t = {t.tolist()}: epsilon says nothing of the image where there is no signal left")
    return (x - noise * out) / signal


def out_of(x0: Tensor, x: Tensor, t: Tensor, scheduler: SchedulerMixin) -> Tensor:
    """Return the output that stands for a clean estimate; undoes `x0_of`. Shapes as there."""
    signal, noise = network_level(scheduler, t)
    kind = parameterization(scheduler)
    if kind == "sample":
        return x0
    if kind == "flow":
        return (x - x0) / noise
    if kind == "v_prediction":
        return (signal * x - x0) / noise
    return (x - signal * x0) / noise


def unstep(x: Tensor, below: tuple[float, float], above: tuple[float, float], noise: Tensor) -> Tensor:
    """Noise a sample from one level up to another, as the forward process does: q(x_above | x_below).

    Args:
        x: (B, C, H, W) at level `below`.
        below: Its (signal, noise).
        above: The (signal, noise) to reach.
        noise: (B, C, H, W) ~ N(0, I).

    Source: Lugmayr et al., arXiv:2201.09865, eq. 1, over any distance: x_t = sqrt(abar_t / abar_s) x_s + ...
    """
    ratio = above[0] / below[0]
    return ratio * x + max(above[1] ** 2 - (ratio * below[1]) ** 2, 0.0) ** 0.5 * noise
