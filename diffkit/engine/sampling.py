"""The sampling loop, its grid of timesteps, and one random generator per image.

There is one loop, `denoise`, a generator: pictures, previews, progress bars and animations are made by whoever reads
it. Guidance and views are wrapped around the network, constraints are applied after each step, and the integrator is
the diffusers scheduler's `step`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from inspect import signature
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from diffkit.engine.levels import level, level_after, unstep
from diffkit.engine.samplers import MEMORYLESS, is_flow, is_memoryless
from diffkit.errors import UsageError
from diffkit.types import Cond, Denoiser, Prediction, Step

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

# (x after the step, index of the step, its t, the next t or None after the last) -> x
Constraint = Callable[[Tensor, int, Tensor, Tensor | None], Tensor]

_LEARNED = ("learned", "learned_range")


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """Return one CPU generator per image, so that image k depends on seed k alone, on every device."""
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def pure_noise(scheduler: SchedulerMixin, noise: Tensor) -> Tensor:
    """Scale N(0, I) noise to what the scheduler starts from; its grid must be set."""
    return noise * getattr(scheduler, "init_noise_sigma", 1.0)


def fresh_noise(x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Draw N(0, I) of the shape, device and type of x (B, C, H, W), one image per generator."""
    return torch.cat([torch.randn(1, *x.shape[1:], generator=g, device=g.device) for g in generators]).to(x)


def sdedit_start(scheduler: SchedulerMixin, x0: Tensor, noise: Tensor, strength: float) -> tuple[Tensor, int, int]:
    """Return where image to image starts: the noised image, the index of the first step, the number of steps.

    The number is strength times the steps of the grid, rounded, and at least one. Strength 1 is pure noise.

    Args:
        scheduler: Its grid must be set.
        x0: (B, C, H, W).
        noise: (B, C, H, W) ~ N(0, I).
        strength: In (0, 1].

    Raises:
        UsageError: Strength out of range, or a scheduler that cannot start in the middle.

    Source: Meng et al., arXiv:2108.01073, algorithm 1.
    """
    if not 0.0 < strength <= 1.0:
        raise UsageError(f"--strength {strength:g} is not in (0, 1]", "1 is pure noise, 0.1 keeps nearly everything.")
    order = int(getattr(scheduler, "order", 1))
    steps = -(-len(scheduler.timesteps) // order)  # a solver of order 2 visits (about) two timesteps in each step
    taken = max(1, int(steps * strength + 0.5))
    if strength == 1.0:
        return pure_noise(scheduler, noise), 0, taken
    if type(scheduler).__name__ in ("PNDMScheduler", "LMSDiscreteScheduler"):  # they count earlier steps as taken
        raise UsageError(f"{type(scheduler).__name__} cannot start in the middle of its grid", "Use ddim or dpm++.")
    start = (steps - taken) * order
    signal, share = level(scheduler, scheduler.timesteps[start])
    return signal * x0 + share * noise, start, taken


def repaint_path(steps: int, jump: int, resample: int) -> list[int]:
    """Return the indices of a grid as RePaint visits them: every `jump` steps back up, each stretch `resample` times.

    Args:
        steps: Length of the grid.
        jump: Steps that are taken again.
        resample: How often each stretch is walked; 1 is the plain descent.

    Raises:
        UsageError: A number below 1.

    Source: Lugmayr et al., arXiv:2201.09865, section 4.2 and appendix B.
    """
    if jump < 1 or resample < 1:
        raise UsageError(f"--jump {jump} --resample {resample}: both are at least 1")
    left = {steps - 1 - back: resample - 1 for back in range(0, steps - jump, jump)}
    path, index = [], 0
    while index < steps:
        path.append(index)
        again = left.get(index, 0) > 0
        if again:
            left[index] -= 1
        index += 1 - (jump if again else 0)
    return path


def set_grid(
    scheduler: SchedulerMixin, steps: int | None = None, timesteps: Sequence[int] | None = None
) -> list[float]:
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


def _set_custom(scheduler: SchedulerMixin, grid: list[int], levels: int) -> None:
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
    scheduler: SchedulerMixin,
    cond: Cond | None = None,
    *,
    steps: int | None = None,
    timesteps: Sequence[int] | None = None,
    start: int = 0,
    path: Sequence[int] | None = None,
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
        path: Indices of the grid in the order to visit them, in place of all from `start` on; where it turns back,
            the sample is noised up again. See `repaint_path`.
        constrain: Applied to x after each step.
        generators: One per image, for samplers that add noise.
        eta: DDIM's share of fresh noise, 0..1.
        stop_noise_after: Take this many steps with fresh noise, and the rest without.

    Yields:
        `Step`; the last one's `x` is the result.

    Raises:
        UsageError: A grid that the scheduler cannot take, noise to stop where there is none, or a path that turns back
            with a scheduler that remembers its earlier steps.
    """
    if steps is not None or timesteps is not None:
        set_grid(scheduler, steps, timesteps)
    cond = cond or Cond()
    grid = scheduler.timesteps
    takes = signature(scheduler.step).parameters
    arguments: dict[str, Any] = {"generator": generators} if "generator" in takes else {}
    if "eta" in takes:
        arguments["eta"] = eta
    if "use_clipped_model_output" in takes and _clips_x0(scheduler):
        arguments["use_clipped_model_output"] = True
    _check_noise(scheduler, arguments, stop_noise_after)
    if start and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    path = range(start, len(grid)) if path is None else path
    _check_path(scheduler, path, generators)
    for place, index in enumerate(path, start):
        t = grid[index]
        silent = stop_noise_after is not None and place - start >= stop_noise_after
        taken = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        out = _packed(net(taken, t, cond), scheduler)
        result = _step(scheduler, out, t, x, arguments, silent)
        x = result.prev_sample
        after = grid[index + 1] if index + 1 < len(grid) else None
        if constrain is not None:
            x = constrain(x, index, t, after)
        yield Step(place, start + len(path), t, x, getattr(result, "pred_original_sample", None))
        if place + 1 - start < len(path) and (target := path[place + 1 - start]) != index + 1:
            assert generators is not None
            reached, above = level_after(scheduler, after), level(scheduler, grid[target])
            x = unstep(x, reached, above, fresh_noise(x, generators))
            if hasattr(scheduler, "_step_index"):
                scheduler._step_index = target


def _check_path(scheduler: SchedulerMixin, path: Sequence[int], generators: Sequence[torch.Generator] | None) -> None:
    if all(b == a + 1 for a, b in pairwise(path)):
        return
    if not is_memoryless(scheduler):
        raise UsageError(
            f"--resample above 1 goes back up in time, and {type(scheduler).__name__} builds on the steps before",
            f"Use --resample 1, or --scheduler {' or '.join(MEMORYLESS)}.",
        )
    if generators is None:
        raise ValueError("a path that turns back needs generators for its noise")


def _clips_x0(scheduler: SchedulerMixin) -> bool:
    """Whether x0 is predicted and clipped, so that DDIM's noise direction has to be that of the clipped x0.

    Guidance pushes x0 beyond [-1, 1]; with the direction of the unclipped one each step adds to the error, and more
    steps make worse pictures. (diffusers' DDIMPipeline leaves it at that; without guidance the two hardly differ.)
    """
    config = scheduler.config
    return config.get("prediction_type") == "sample" and bool(config.get("clip_sample"))


def _step(scheduler: SchedulerMixin, out: Tensor, t: Tensor, x: Tensor, arguments: dict[str, Any], silent: bool) -> Any:
    if not silent:
        return scheduler.step(out, t, x, **arguments)
    if "eta" in arguments:
        return scheduler.step(out, t, x, **{**arguments, "eta": 0.0})
    scheduler.quiet = True
    try:
        return scheduler.step(out, t, x, **arguments)
    finally:
        scheduler.quiet = False


def _check_noise(scheduler: SchedulerMixin, arguments: dict[str, Any], stop_noise_after: int | None) -> None:
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


def _packed(prediction: Prediction, scheduler: SchedulerMixin) -> Tensor:
    """What `step` takes: [out, var] only for a DDPM scheduler of learned variance, whatever other configs say."""
    if not isinstance(scheduler, DDPMScheduler) or scheduler.variance_type not in _LEARNED:
        return prediction.out
    if prediction.var is None:
        raise UsageError(
            f"the scheduler takes a learned variance ({scheduler.variance_type}), and the network gives none",
            "Use another scheduler: --scheduler ddim.",
        )
    return torch.cat([prediction.out, prediction.var], dim=1)
