"""The sampling loop, its grid of timesteps, and one random generator per image.

There is one loop, `denoise`, a generator: pictures, previews, progress bars and animations are made by whoever reads
it. Guidance and views are wrapped around the network, constraints are applied after each step, and the integrator is
the diffusers scheduler's `step`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from inspect import signature
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from diffkit.errors import UsageError
from diffkit.schedulers import is_flow
from diffkit.types import Cond, Denoiser, Prediction, Step

# (x after the step, index of the step, its t, the next t or None after the last) -> x
Constraint = Callable[[Tensor, int, Tensor, Tensor | None], Tensor]

_LEARNED = ("learned", "learned_range")


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """Return one CPU generator per image, so that image k depends on seed k alone, on every device."""
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def pure_noise(scheduler: Any, noise: Tensor) -> Tensor:
    """Scale N(0, I) noise to what the scheduler starts from; its grid must be set."""
    return noise * getattr(scheduler, "init_noise_sigma", 1.0)


def set_grid(scheduler: Any, steps: int | None = None, timesteps: Sequence[int] | None = None) -> list[float]:
    """Set the timesteps that a scheduler will visit, and return them.

    Args:
        scheduler: A diffusers scheduler.
        steps: Number of steps, spread by the scheduler's spacing; or
        timesteps: The grid itself: descending, each in 0..T-1 (1..T for a flow).

    Raises:
        UsageError: Too many steps, a grid that is not descending or out of range, or a scheduler that takes none.
    """
    levels = int(scheduler.config.num_train_timesteps)
    if timesteps is not None:
        _set_custom(scheduler, [int(t) for t in timesteps], levels)
        return scheduler.timesteps.tolist()
    if steps is None or not 1 <= steps <= levels:
        raise UsageError(f"--steps {steps}: this model has {levels} timesteps", f"Give a number from 1 to {levels}.")
    if steps == 1 and scheduler.config.get("timestep_spacing") in ("leading", "linspace"):
        raise UsageError(
            f"--steps 1: {scheduler.config.timestep_spacing} spacing would visit timestep 0 alone",
            "Use --spacing trailing, or more steps.",
        )
    if type(scheduler).__name__ == "FlowMatchEulerDiscreteScheduler" and not scheduler.config.use_dynamic_shifting:
        # Equal steps down to 0; the stock grid ends with a wasted one, from 1/T to 0.
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / steps, steps).tolist())
    else:
        scheduler.set_timesteps(steps)
    if scheduler.timesteps.min() < 0:  # see GridDDIM.set_timesteps
        raise UsageError(f"--steps {steps}: the trailing grid cannot be made with {steps} steps", f"Use {steps - 1}.")
    return scheduler.timesteps.tolist()


def _set_custom(scheduler: Any, grid: list[int], levels: int) -> None:
    flow = is_flow(scheduler)
    low, high = (1, levels) if flow else (0, levels - 1)
    if not grid or any(a <= b for a, b in pairwise(grid)):
        raise UsageError(f"--timesteps {grid} is not descending", "Give for example 999,750,500,250,0.")
    if grid[0] > high or grid[-1] < low:
        raise UsageError(f"--timesteps {grid}: this model's timesteps are {low}..{high}")
    takes = signature(scheduler.set_timesteps).parameters
    if flow and "sigmas" in takes:
        shift = float(scheduler.config.get("shift", 1.0))
        wanted = [t / levels for t in grid]
        scheduler.set_timesteps(sigmas=[s / (shift - (shift - 1) * s) for s in wanted])
    elif "timesteps" in takes:
        scheduler.set_timesteps(timesteps=grid)
    else:
        raise UsageError(
            f"--timesteps: {type(scheduler).__name__} has no custom grids", "Use ddpm, ddim, dpm++, euler or heun."
        )


@torch.no_grad()
def denoise(
    net: Denoiser,
    x: Tensor,
    scheduler: Any,
    cond: Cond | None = None,
    *,
    steps: int | None = None,
    timesteps: Sequence[int] | None = None,
    start: int = 0,
    constrain: Constraint | None = None,
    generators: list[torch.Generator] | None = None,
    eta: float = 0.0,
    stop_noise_after: int | None = None,
) -> Iterator[Step]:
    """Denoise x step by step; each step is yielded after it was taken.

    Args:
        net: Predicts what the scheduler steps with.
        x: (B, C, H, W) fp32 at the grid's level `start`; for `start` = 0 that is `pure_noise`.
        scheduler: A diffusers scheduler; its grid is set here if `steps` or `timesteps` is given, else it must be set.
        cond: The condition; none for an unconditional network.
        steps: Number of steps.
        timesteps: A custom grid in place of `steps`.
        start: Index of the first step taken; above 0 for image to image.
        constrain: Applied to x after each step.
        generators: One per image, for samplers that add noise.
        eta: DDIM's share of fresh noise, 0..1.
        stop_noise_after: Take this many steps with fresh noise, and the rest without.

    Yields:
        `Step`; the last one's `x` is the result.

    Raises:
        UsageError: A grid that the scheduler cannot take, or noise to stop where there is none.
    """
    if steps is not None or timesteps is not None:
        set_grid(scheduler, steps, timesteps)
    cond = cond or Cond()
    grid = scheduler.timesteps
    takes = signature(scheduler.step).parameters
    arguments: dict[str, Any] = {"generator": generators} if "generator" in takes else {}
    if "eta" in takes:
        arguments["eta"] = eta
    _check_noise(scheduler, arguments, stop_noise_after)
    if start and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    for index in range(start, len(grid)):
        t = grid[index]
        silent = stop_noise_after is not None and index - start >= stop_noise_after
        taken = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        out = _packed(net(taken, t, cond), scheduler)
        result = _step(scheduler, out, t, x, arguments, silent)
        x = result.prev_sample
        if constrain is not None:
            x = constrain(x, index, t, grid[index + 1] if index + 1 < len(grid) else None)
        yield Step(index, len(grid), t, x, getattr(result, "pred_original_sample", None))


def _step(scheduler: Any, out: Tensor, t: Tensor, x: Tensor, arguments: dict[str, Any], silent: bool) -> Any:
    if not silent:
        return scheduler.step(out, t, x, **arguments)
    if "eta" in arguments:
        return scheduler.step(out, t, x, **{**arguments, "eta": 0.0})
    scheduler.quiet = True
    try:
        return scheduler.step(out, t, x, **arguments)
    finally:
        scheduler.quiet = False


def _check_noise(scheduler: Any, arguments: dict[str, Any], stop_noise_after: int | None) -> None:
    if stop_noise_after is None:
        return
    if stop_noise_after < 0:
        raise UsageError(f"--stop-noise-after {stop_noise_after} is negative")
    if arguments.get("eta", 0.0) > 0 or hasattr(scheduler, "quiet"):
        return
    name = type(scheduler).__name__
    if "eta" in arguments:
        raise UsageError("--stop-noise-after: DDIM with eta 0 adds no noise at all", "Give --eta, or leave it out.")
    raise UsageError(f"--stop-noise-after works with ddpm, and ddim with --eta; got {name}", "Choose one of these.")


def _packed(prediction: Prediction, scheduler: Any) -> Tensor:
    """What `step` takes: [out, var] only for a DDPM scheduler of learned variance, whatever other configs say."""
    if not isinstance(scheduler, DDPMScheduler) or scheduler.variance_type not in _LEARNED:
        return prediction.out
    if prediction.var is None:
        raise UsageError(
            f"the scheduler takes a learned variance ({scheduler.variance_type}), and the network gives none",
            "Use another scheduler: --scheduler ddim.",
        )
    return torch.cat([prediction.out, prediction.var], dim=1)
