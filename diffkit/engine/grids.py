"""The timesteps that a sampler takes: set on the scheduler, and checked from end to end before any step is taken.

diffusers spreads N steps over T timesteps by rounding, and near N = T the result can leave 0..T-1 or name a timestep
twice, after which a step divides by zero or reads past the end of the schedule. Here every grid is right, or refused.
Spacings: Lin et al., arXiv:2305.08891, table 2.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffkit.engine.flows import needs_mu, set_levels, spread_flow
from diffkit.engine.sampler_names import default_steps
from diffkit.engine.samplers import GridDDIM, default_sampler, is_flow, make_sampler, name_of, takes_argument
from diffkit.engine.settings import Settings
from diffkit.errors import UsageError

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

# One step has to begin near pure noise, or the picture is the network's answer to an input it was never trained on.
_HIGHEST_PART = 0.75


def scheduler_for(base: SchedulerMixin, settings: Settings, **options: Any) -> SchedulerMixin:
    """Make a scheduler for sampling from a model's own, with its grid set.

    Args:
        base: The model's own; not changed.
        settings: What was asked for: sampler, spacing, shift, and steps or timesteps.
        options: Further arguments of the scheduler's class.

    Raises:
        UsageError: The sampler or the grid does not fit the model.
    """
    name = settings.scheduler or default_sampler(base)
    scheduler = make_sampler(name, base, spacing=settings.spacing, shift=settings.shift, **options)
    # A model knows every integer level of 0..T-1, and a sampler is free in which of them it takes.
    levels = int(base.config.num_train_timesteps)
    steps = None if settings.timesteps else settings.steps or default_steps(name, levels)
    set_grid(scheduler, steps, settings.timesteps)
    return scheduler


def set_grid(
    scheduler: SchedulerMixin, steps: int | None = None, timesteps: Sequence[int] | None = None
) -> list[float]:
    """Set the timesteps that a scheduler will visit, and return them.

    Args:
        scheduler: A diffusers scheduler.
        steps: Number of steps, spread by the scheduler's spacing; or
        timesteps: The grid itself: descending, each in 0..T-1 (1..T for a flow, after its shift).

    Returns:
        The timesteps in the order of the network's calls. Second-order solvers call twice in each step.

    Raises:
        UsageError: A number of steps that the scheduler cannot spread, a grid that is not descending or out of range,
            or a scheduler that takes no custom grid.
    """
    # "leading" counts up from 0, and ends the further below T the fewer the steps; "trailing" counts down from T, where
    # sampling starts; "linspace" takes both ends.
    if is_flow(scheduler) and needs_mu(scheduler):
        raise UsageError(
            f"{name_of(scheduler)} shifts its timesteps by the size of the picture (use_dynamic_shifting), "
            "which is not supported",
            "Set use_dynamic_shifting to false in the scheduler's configuration.",
        )
    levels = int(scheduler.config.num_train_timesteps)
    if timesteps is not None:
        grid = [int(t) for t in timesteps]
        _set_custom(scheduler, grid, levels)
        fault = _fault(scheduler, levels, custom=True)
        if fault:
            raise UsageError(f"`timesteps` {grid}: {fault}", "Give other timesteps, or use `scheduler` ddim.")
        return scheduler.timesteps.tolist()
    if steps is None or not 1 <= steps <= levels:
        raise UsageError(f"`steps` {steps}: this model has {levels} timesteps", f"Give a number from 1 to {levels}.")
    _spread(scheduler, steps, levels)
    fault = _fault(scheduler, levels)
    if fault:
        raise UsageError(f"`steps` {steps}: {fault}", _nearest(scheduler, steps, levels))
    return scheduler.timesteps.tolist()


def _spread(scheduler: SchedulerMixin, steps: int, levels: int) -> None:
    """Call the scheduler's own `set_timesteps`, and lower its offset where that passes the last level."""
    if is_flow(scheduler):
        spread_flow(scheduler, steps)
        return
    scheduler.set_timesteps(steps)
    # Stable Diffusion's configuration adds 1 to every "leading" timestep. With N = T steps the first is then T, one
    # beyond the last level: of T different timesteps in 0..T-1 there is only one grid, the one without an offset.
    offset = int(scheduler.config.get("steps_offset") or 0)
    beyond = float(scheduler.timesteps.max()) - (levels - 1)
    if 0 < beyond <= offset:
        scheduler.register_to_config(steps_offset=offset - int(beyond))
        try:
            scheduler.set_timesteps(steps)
        finally:
            scheduler.register_to_config(steps_offset=offset)


def _set_custom(scheduler: SchedulerMixin, grid: list[int], levels: int) -> None:
    flow = is_flow(scheduler)
    low, high = (1, levels) if flow else (0, levels - 1)
    if not grid or any(a <= b for a, b in pairwise(grid)):
        raise UsageError(f"`timesteps` {grid} is not descending", "Give for example 999,750,500,250,0.")
    if grid[0] > high or grid[-1] < low:
        raise UsageError(f"`timesteps` {grid}: this model's timesteps are {low}..{high}")
    if flow:
        set_levels(scheduler, [t / levels for t in grid])
    elif takes_argument(scheduler.set_timesteps, "timesteps"):
        scheduler.set_timesteps(timesteps=grid)
    else:
        raise UsageError(
            f"`timesteps`: {name_of(scheduler)} has no custom grids", "Use ddpm, ddim, dpm++, euler or heun."
        )


def _fault(scheduler: SchedulerMixin, levels: int, *, custom: bool = False) -> str:
    """Say what is wrong with the grid that is set; empty where nothing is."""
    grid = scheduler.timesteps.double().cpu()
    name, low, high = name_of(scheduler), 0, levels if is_flow(scheduler) else levels - 1
    # KDPM2's ancestral form takes the root of sigma_next^2 - sigma_up^2, which between distant levels rounds below 0.
    if not len(grid) or not bool(grid.isfinite().all()):
        return f"{name} finds no finite levels between its timesteps"
    if float(grid.min()) < low or float(grid.max()) > high + 1e-3:
        return f"{name} would visit timestep {grid[-1] if grid.min() < low else grid.max():g}, outside {low}..{high}"
    # Solvers divide by the difference of two levels, in sigma or in log SNR: no two steps may start at the same one.
    points = _points(scheduler, grid)
    if not bool((points[1:] < points[:-1]).all()):
        return f"{name} would put two steps on the same timestep"
    if not isinstance(scheduler, GridDDIM) and _noiseless(scheduler, grid):
        return f"{name} divides by the noise, and the schedule has none at timestep 0"
    if not custom and len(points) == 1 and float(grid[0]) < _HIGHEST_PART * high:
        return f"the only step would be at timestep {grid[0]:g} of {low}..{high}, far from pure noise"
    return ""


def _noiseless(scheduler: SchedulerMixin, grid: Tensor) -> bool:
    """Say whether a solver would divide by the noise of a level without any, as a schedule may begin."""
    if is_flow(scheduler) or float(scheduler.alphas_cumprod[0]) < 1.0:
        return False
    return float(grid[-1]) < 1.0 or name_of(scheduler) == "deis"  # DEIS ends at level 0 on every grid


def _points(scheduler: SchedulerMixin, grid: Tensor) -> Tensor:
    """Return a grid without the second calls of a step."""
    # A solver of order 2 asks the network twice in each step but the last: Heun at t0, t1, t1, t2, t2; KDPM2 at t0, a
    # point between, t1, a point between, t2.
    if name_of(scheduler) == "pndm":  # starts with an improved Euler step: its second point comes twice
        return torch.cat([grid[:1], grid[2:]]) if len(grid) > 2 else grid
    return grid[:: int(scheduler.order)]


def _nearest(scheduler: SchedulerMixin, steps: int, levels: int) -> str:
    """Name the nearest numbers of steps that work, below and above."""
    # Which numbers round well is the scheduler's own affair, so they are tried, on a copy.
    trial, found = copy.copy(scheduler), []
    for candidates in (range(steps - 1, 0, -1), range(steps + 1, levels + 1)):
        for number in candidates:
            _spread(trial, number, levels)
            if not _fault(trial, levels):
                found.append(number)
                break
    spacing = "" if steps > 1 or scheduler.config.get("timestep_spacing") == "trailing" else ", or `spacing` trailing"
    return f"Use {' or '.join(map(str, found))} steps{spacing}." if found else "Use another scheduler."
