"""Noise levels: how much signal and noise a sample holds at a timestep, and what a network's output says of x0.

Every scheduler's sample is x = signal * x0 + noise * eps at each level; the two numbers come from the scheduler itself,
so that what is built on them holds for all of them. There are three families: DDPM's keep the variance (signal^2 +
noise^2 = 1); those that count in sigma, as Euler's, keep the signal at 1 and let the noise grow to 15 or more; flows
lie on the straight line (signal = 1 - s, noise = s, or k s where a model has its noise scaled by k). The loop is in
`sampling.py`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffkit.engine.flows import noise_scale, predicts_clean
from diffkit.engine.predictions import Number, clean_from, output_from
from diffkit.engine.samplers import is_flow, name_of
from diffkit.errors import UsageError

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_utils import SchedulerMixin


def level(scheduler: SchedulerMixin, t: Tensor | float) -> tuple[float, float]:
    """Return (signal, noise) of the scheduler's sample at a timestep of its grid: x = signal * x0 + noise * eps.

    Args:
        scheduler: A diffusers scheduler; its grid must be set unless it has a level for every integer.
        t: One timestep.
    """
    # On a straight line the level is how far along it one is.
    if is_flow(scheduler):
        share = float(t) / scheduler.config.num_train_timesteps
        return 1.0 - share, noise_scale(scheduler) * share
    between = _level_between(scheduler, float(t))
    if between is not None:
        return 1.0, between
    # Every scheduler can noise a sample as its own sampling understands it. Of x0 = 1 without noise that gives the
    # signal, of x0 = 0 with noise 1 the noise. (It reads the level off t as long as nobody calls `set_begin_index`.)
    one, when = torch.ones(1), torch.as_tensor(t).detach().cpu().reshape(1)
    signal, noise = (scheduler.add_noise(x, y, when) for x, y in ((one, 0 * one), (0 * one, one)))
    return float(signal), float(noise)


def _level_between(scheduler: SchedulerMixin, t: float) -> float | None:
    """Return the noise at t where a solver stops halfway between two levels in every step (KDPM2); else None."""
    name = name_of(scheduler)
    if name not in ("kdpm2", "kdpm2_a"):
        return None
    place = int((scheduler.timesteps - t).abs().argmin())
    if place % 2 == 0:
        return None
    # The ancestral one goes below the next level before its fresh noise, and stores the points one place further down.
    return float(scheduler.sigmas_interpol[place - (name == "kdpm2_a")])


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
    # The network was trained on samples of variance 1, so x0 + sigma * eps is divided by sqrt(1 + sigma^2) before it
    # goes in; the ratio of noise to signal, all that a level means, stays (Karras et al., arXiv:2206.00364, table 1).
    length = (signal**2 + noise**2) ** 0.5
    return signal / length, noise / length


def parameterization(scheduler: SchedulerMixin) -> str:
    """Return what the network predicts: epsilon, v_prediction, sample or flow."""
    if is_flow(scheduler):
        return "sample" if predicts_clean(scheduler) else "flow"
    return str(scheduler.config.get("prediction_type", "epsilon"))


def x0_of(out: Tensor, x: Tensor, t: Tensor, scheduler: SchedulerMixin) -> Tensor:
    """Return the clean estimate that a network's output stands for.

    Args:
        out: (B, C, H, W), the network's output.
        x: (B, C, H, W), what the network was given.
        t: Shape () or (B,).
        scheduler: Says what the output is and how much noise there is.

    Raises:
        UsageError: An epsilon at a level without signal.

    Source: see `predictions`.
    """
    signal, noise = network_level(scheduler, t)
    kind = parameterization(scheduler)
    if kind == "epsilon" and float(torch.as_tensor(signal).min()) == 0.0:
        raise UsageError(f"t = {t.tolist()}: epsilon says nothing of the image where there is no signal left")
    return clean_from(kind, out, x, signal, noise)


def out_of(x0: Tensor, x: Tensor, t: Tensor, scheduler: SchedulerMixin) -> Tensor:
    """Return the output that stands for a clean estimate; undoes `x0_of`. Shapes as there."""
    return output_from(parameterization(scheduler), x0, x, *network_level(scheduler, t))


def unstep(x: Tensor, below: tuple[float, float], above: tuple[float, float], noise: Tensor) -> Tensor:
    """Noise a sample from one level up to another, as the forward process does: q(x_above | x_below).

    Args:
        x: (B, C, H, W) at level `below`.
        below: Its (signal, noise).
        above: The (signal, noise) to reach.
        noise: (B, C, H, W) ~ N(0, I).

    Source: Lugmayr et al., arXiv:2201.09865, eq. 1, over any distance: x_t = sqrt(abar_t / abar_s) x_s + ...
    """
    # x holds its level's noise already, which shrinks with the signal. Variances add, not standard deviations: what is
    # missing to the variance above is drawn afresh.
    ratio = above[0] / below[0]
    return ratio * x + max(above[1] ** 2 - (ratio * below[1]) ** 2, 0.0) ** 0.5 * noise


def flow_time(scheduler: SchedulerMixin, t: Tensor | float) -> float:
    """Return where a timestep lies on the straight way of flows, from 0 (noise) to 1 (picture).

    A sample signal * x0 + noise * eps, divided by signal + noise, is (1 - s) eps + s x0 with s = signal / (signal +
    noise): what a flow would hold at that time. In these coordinates a step of DDIM without noise is one of Euler's. A
    flow whose noise is scaled is put on the same way; its own clock is `course_time`.
    """
    signal, noise = level(scheduler, t)
    return signal / (signal + noise)


def course_time(scheduler: SchedulerMixin, t: Tensor | float) -> float | None:
    """Return a flow's time at a timestep as the courses count it, 1 - sigma: 0 noise, 1 picture; None for diffusion.

    diffusers counts sigma = t / T from 0 (picture) to 1 (noise), and predicts eps - x0; the courses and PixNerd count
    the other way, and predict x0 - eps (`predictions.velocity_from`).
    """
    return 1.0 - float(t) / scheduler.config.num_train_timesteps if is_flow(scheduler) else None


def timestep_text(scheduler: SchedulerMixin, t: Tensor | float) -> str:
    """Say a timestep for people: "t=250"; of a flow in both conventions, "t=250 (sigma 0.25, time 0.75)"."""
    time, text = course_time(scheduler, t), f"t={float(t):g}"
    return text if time is None else f"{text} (sigma {1.0 - time:.3g}, time {time:.3g})"


def timestep_at(scheduler: SchedulerMixin, time: float) -> int:
    """Return the timestep whose flow time is nearest, of 0..T-1 (of a flow 1..T).

    Args:
        scheduler: A model's own, with a level for every integer.
        time: From 0 (noise) to 1 (picture).
    """
    flow = is_flow(scheduler)
    levels = int(scheduler.config.num_train_timesteps)
    low, high = (1, levels) if flow else (0, levels - 1)
    while low < high:  # flow time falls with the timestep
        middle = (low + high) // 2
        if flow_time(scheduler, middle) > time:
            low = middle + 1
        else:
            high = middle
    below = max(low - 1, 1 if flow else 0)
    return min((below, low), key=lambda t: abs(flow_time(scheduler, t) - time))


def flow_grid(scheduler: SchedulerMixin, t: int, step: float) -> list[int]:
    """Return timesteps from t down that are equally far apart in flow time; the last step may be shorter.

    Args:
        scheduler: A model's own.
        t: Where to begin.
        step: In flow time, above 0.
    """
    begin, found = flow_time(scheduler, t), [t]
    for number in range(1, math.ceil(round((1.0 - begin) / step, 2))):
        stop = timestep_at(scheduler, begin + number * step)
        if stop < found[-1]:
            found.append(stop)
    return found
