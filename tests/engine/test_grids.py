"""Every grid of every sampler stays within the schedule, names no timestep twice and ends finite; or it is refused."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, SchedulerMixin
from torch import Tensor

from diffkit.engine.levels import network_level, out_of
from diffkit.engine.sampler_names import SAMPLERS
from diffkit.engine.samplers import make_sampler
from diffkit.engine.sampling import denoise, generators, pure_noise, set_grid
from diffkit.errors import UsageError
from diffkit.types import Cond, Prediction

SPACINGS = ("leading", "trailing", "linspace", None)
DIFFUSION = [name for name, row in SAMPLERS.items() if not row.flow]
NEED_ROOM = ("dpm++", "dpm++sde", "dpm++single", "unipc", "deis")  # they round T + 1 points, one too many
TAKES_A_GRID = ("ddpm", "ddim", "dpm++", "dpm++sde", "dpm++single", "euler", "heun")


def steps_of(name: str, grid: list[float]) -> list[float]:
    """The timesteps of a grid without the second network calls of a step."""
    if name == "pndm":
        return [*grid[:1], *grid[2:]] if len(grid) > 2 else grid
    return grid[::2] if name in ("heun", "kdpm2", "kdpm2_a", "flow_heun") else grid


def check(name: str, scheduler: SchedulerMixin, grid: list[float], low: int, high: int) -> None:
    """Strictly descending, within the schedule, and finite to the end with a denoiser that knows N(0.3, 0.25^2)."""
    points = steps_of(name, grid)
    assert points == sorted(set(points), reverse=True), grid
    assert low <= min(grid), grid
    assert max(grid) <= high, grid

    def net(x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        signal, noise = network_level(scheduler, t)
        x0 = 0.3 + signal * 0.0625 / (signal**2 * 0.0625 + noise**2) * (x - signal * 0.3)
        return Prediction(out_of(x0, x, t, scheduler))

    random = generators([1])
    x = pure_noise(scheduler, torch.randn(1, 1, 2, 2, generator=random[0]))
    for step in denoise(net, x, scheduler, generators=random):
        x = step.x
    assert x.isfinite().all(), grid


def try_steps(name: str, base: SchedulerMixin, steps: int, low: int, high: int, spacing: str | None = None) -> bool:
    try:
        scheduler = make_sampler(name, base, spacing=spacing)
        grid = set_grid(scheduler, steps)
    except UsageError:
        return False
    check(name, scheduler, grid, low, high)
    return True


@pytest.mark.parametrize("name", DIFFUSION)
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("levels", [20, 33])
def test_every_grid_is_right_or_refused(name: str, offset: int, levels: int) -> None:
    done = {}
    for spacing in SPACINGS:
        base = DDPMScheduler(num_train_timesteps=levels, steps_offset=offset)
        for steps in (1, 2, levels - 1, levels):
            done[spacing, steps] = try_steps(name, base, steps, 0, levels - 1, spacing)
    assert all(done[spacing, 2] or name == "dpm++single" for spacing in SPACINGS)
    if name not in NEED_ROOM:
        assert all(done[spacing, levels] for spacing in SPACINGS)


@pytest.mark.parametrize("name", [name for name in DIFFUSION if not name.startswith("kdpm2")])
@pytest.mark.parametrize("beta_schedule", ["linear", "squaredcos_cap_v2"])
def test_a_thousand_levels(name: str, beta_schedule: str) -> None:
    for spacing in ("leading", "trailing", "linspace"):
        base = DDPMScheduler(steps_offset=1, beta_schedule=beta_schedule, timestep_spacing=spacing)
        for steps in (1, 2, 61):
            try_steps(name, base, steps, 0, 999)
        scheduler = make_sampler(name, base)
        try:
            grid = steps_of(name, set_grid(scheduler, 1000))
        except UsageError:
            assert name in NEED_ROOM
            continue
        assert (grid[0] <= 999, grid[-1] >= 0, len(set(grid))) == (True, True, len(grid))


@pytest.mark.parametrize("name", [name for name, row in SAMPLERS.items() if row.flow])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flows(name: str, shift: float) -> None:
    for levels in (20, 1000):
        base = FlowMatchEulerDiscreteScheduler(num_train_timesteps=levels, shift=shift)
        for steps in (1, 2, 19, 20):
            assert try_steps(name, base, steps, 0, levels)


def test_stable_diffusion_s_offset_is_left_out_where_every_timestep_is_visited() -> None:
    """With steps_offset 1 and N = T the stock grid is T..1, one beyond the last level (diffusers #10003)."""
    for name in ("ddpm", "ddim", "euler", "lms"):
        base = DDPMScheduler(num_train_timesteps=20, steps_offset=1, timestep_spacing="leading")
        scheduler = make_sampler(name, base, spacing="leading")
        assert set_grid(scheduler, 20) == list(range(19, -1, -1))
        assert set_grid(scheduler, 10) == list(range(19, 0, -2))  # and is back with the next grid
        assert scheduler.config.steps_offset == 1


@pytest.mark.parametrize("name", TAKES_A_GRID)
def test_the_ends_of_custom_grids(name: str) -> None:
    for grid in ([19], [0], [19, 0], [19, 18], [1, 0], list(range(19, -1, -1))):
        scheduler = make_sampler(name, DDPMScheduler(num_train_timesteps=20))
        check(name, scheduler, set_grid(scheduler, None, grid), 0, 19)


def test_the_refusal_names_the_nearest_numbers_that_work() -> None:
    base = DDPMScheduler(num_train_timesteps=20, timestep_spacing="leading")
    with pytest.raises(UsageError, match="two steps on the same timestep") as caught:
        set_grid(make_sampler("dpm++", base), 20)
    assert caught.value.hint == "Use 19 steps."
    with pytest.raises(UsageError, match=r"outside 0\.\.999") as caught:
        set_grid(make_sampler("unipc", DDPMScheduler(), spacing="trailing"), 61)
    assert caught.value.hint == "Use 60 or 62 steps."
    with pytest.raises(UsageError, match=r"timestep 0 of 0\.\.19, far from pure noise") as caught:
        set_grid(make_sampler("ddim", base), 1)
    assert caught.value.hint == "Use 2 steps, or `spacing` trailing."


def test_an_ancestral_step_below_zero_noise_is_refused() -> None:
    """Between distant levels the noise that KDPM2's ancestral form steps down to rounds below 0."""
    with pytest.raises(UsageError, match="kdpm2_a finds no finite levels"):
        set_grid(make_sampler("kdpm2_a", DDPMScheduler(timestep_spacing="linspace")), 2)


def test_grids_that_depend_on_the_size_of_the_picture_are_refused() -> None:
    with pytest.raises(UsageError, match="use_dynamic_shifting"):
        set_grid(FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), 4)


@pytest.mark.filterwarnings("ignore:divide by zero")
def test_a_level_without_noise_is_only_for_those_who_do_not_divide_by_it() -> None:
    betas = [0.0, *torch.linspace(1e-3, 0.3, 19).tolist()]
    for name in DIFFUSION:
        for spacing in ("trailing", "leading"):
            base = DDPMScheduler(num_train_timesteps=20, trained_betas=betas, timestep_spacing=spacing)
            for steps in (1, 5, 19, 20):
                try_steps(name, base, steps, 0, 19)
    with pytest.raises(UsageError, match="the schedule has none at timestep 0"):
        set_grid(EulerDiscreteScheduler(num_train_timesteps=20, trained_betas=betas), 20)
    assert try_steps("ddim", DDPMScheduler(num_train_timesteps=20, trained_betas=betas), 20, 0, 19)
