"""Flow samplers against Gaussian data, whose flow is known, and against the stock classes that they are made of."""

from __future__ import annotations

import copy
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from torch import Tensor

from diffkit.engine.constraints import keep_known
from diffkit.engine.flows import FloatGrid, FlowEuler, is_flow
from diffkit.engine.grids import scheduler_for
from diffkit.engine.levels import flow_time, level, network_level, out_of, parameterization, x0_of
from diffkit.engine.predictions import velocity_from
from diffkit.engine.sampler_names import SAMPLERS
from diffkit.engine.samplers import is_memoryless, make_sampler, name_of
from diffkit.engine.sampling import denoise, generators, pure_noise, repaint_path, sdedit_start, set_grid
from diffkit.engine.settings import Settings
from diffkit.errors import UsageError
from diffkit.jobs.inversion import exact_sampler, first_level, invert_steps
from diffkit.pictures.quality import psnr
from diffkit.types import Cond, Denoiser, Prediction, Step

FLOWS = [name for name, row in SAMPLERS.items() if row.flow]
EXACT = [name for name in FLOWS if not SAMPLERS[name].fresh]
MEAN, VARIANCE = 0.3, 0.0625
KINDS = {
    "velocity": {},
    "x0": {"prediction_type": "sample"},
    "x0 k=2": {"prediction_type": "sample", "noise_scale": 2.0},
}


def flow(fields: dict[str, Any] | None = None, **options: Any) -> FlowMatchEulerDiscreteScheduler:
    made = FlowMatchEulerDiscreteScheduler(**options)
    made.register_to_config(**(fields or {}))
    return made


def best(scheduler: SchedulerMixin, calls: list[float] | None = None) -> Denoiser:
    """E[x0 | x] for x0 ~ N(MEAN, VARIANCE), as what the scheduler steps with."""

    def net(x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        if calls is not None:
            calls.append(float(t))
        signal, noise = network_level(scheduler, t)
        x0 = MEAN + signal * VARIANCE / (signal**2 * VARIANCE + noise**2) * (x - signal * MEAN)
        return Prediction(out_of(x0, x, t, scheduler))

    return net


def walk(scheduler: SchedulerMixin, x: Tensor, seeds: list[int], **options: Any) -> list[Step]:
    return list(denoise(best(scheduler), x, scheduler, generators=generators(seeds), **options))


def noise_of(seeds: list[int], side: int = 16) -> Tensor:
    return torch.cat([torch.randn(1, 1, side, side, generator=g) for g in generators(seeds)])


# --- how exact they are

# The error's ratio from 80 to 160 and from 160 to 320 steps, at least: 2 is the first order's, 4 the second's. The two
# multistep solvers count in log((1 - s) / s), where equal steps of s are far from equal, and come near 4 later.
ORDERS = {"flow_euler": 1.8, "flow_heun": 3.4, "flow_adams": 3.4, "flow_dpm++": 2.0, "flow_unipc": 2.4}


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("name", EXACT)
def test_the_order_of_every_sampler(name: str, kind: str) -> None:
    """The flow takes k z to MEAN + sqrt(VARIANCE) z."""
    z, errors = noise_of([1]), []
    for steps in (80, 160, 320):
        scheduler = make_sampler(name, flow(KINDS[kind]))
        set_grid(scheduler, steps)
        got = walk(scheduler, pure_noise(scheduler, z), [1])[-1].x
        errors.append(float((got - MEAN - VARIANCE**0.5 * z).abs().max()))
    print(name, kind, errors)
    assert errors[-1] < 0.015
    for coarse, fine in pairwise(errors):
        if fine > 2e-4:  # above what single precision leaves
            assert coarse / fine > ORDERS[name], errors


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("name", FLOWS)
def test_mean_and_spread(name: str, kind: str) -> None:
    scheduler = make_sampler(name, flow(KINDS[kind]))
    set_grid(scheduler, 160)
    x = walk(scheduler, pure_noise(scheduler, noise_of([1, 2], 64)), [3, 4])[-1].x
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.015)
    assert float(x.std()) == pytest.approx(VARIANCE**0.5, rel=0.06)


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("grid", [{"steps": 9}, {"timesteps": [1000, 700, 400, 90]}])
def test_x0_and_velocity_are_the_same_flow(name: str, grid: dict[str, Any]) -> None:
    found = []
    for kind in ("velocity", "x0"):
        scheduler = make_sampler(name, flow(KINDS[kind]))
        assert parameterization(scheduler) == ("flow" if kind == "velocity" else "sample")
        set_grid(scheduler, **grid)
        found.append(walk(scheduler, noise_of([1, 2]), [1, 2])[-1].x)
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=2e-6)


def test_the_stock_x0_step_is_ours_bit_for_bit() -> None:
    """x0, the clamp and the scale of noise, with the arithmetic of diffusers' PRXPixelPipeline."""
    fields = {"prediction_type": "sample", "noise_scale": 2.0, "least_sigma": 0.05, "timestep_spacing": "linspace"}
    scheduler, stock = make_sampler("flow_euler", flow(fields, shift=3.0)), FlowMatchEulerDiscreteScheduler(shift=3.0)
    set_grid(scheduler, 28)
    stock.set_timesteps(28)
    x, net = 2.0 * noise_of([1]), best(scheduler)
    ours = walk(scheduler, pure_noise(scheduler, noise_of([1])), [1])
    for t, step in zip(stock.timesteps, ours, strict=True):
        share = torch.clamp(t.float() / 1000, min=0.05)
        x = stock.step((x - net(x, t, Cond()).out) / share, t, x).prev_sample
        assert torch.equal(step.x, x)


@pytest.mark.parametrize("kind", ["velocity", "x0"])
def test_levels_and_conversions_of_a_scaled_flow(kind: str) -> None:
    scheduler = flow(KINDS["x0 k=2"] if kind == "x0" else {})
    scale = 2.0 if kind == "x0" else 1.0
    x0, eps = noise_of([3]), noise_of([4])
    for t in (1000, 730, 1):
        s = t / 1000
        assert level(scheduler, t) == (1 - s, scale * s)
        assert flow_time(scheduler, t) == pytest.approx((1 - s) / (1 - s + scale * s))
        signal, noise = network_level(scheduler, torch.tensor(t))
        x = signal * x0 + noise * eps
        out = x0 if kind == "x0" else eps - x0
        torch.testing.assert_close(x0_of(out, x, torch.tensor(t), scheduler), x0, rtol=0, atol=1e-5)
        torch.testing.assert_close(out_of(x0, x, torch.tensor(t), scheduler), out, rtol=0, atol=5e-4)
        way = velocity_from(parameterization(scheduler), out, x, signal, noise)
        torch.testing.assert_close(way, x0 - eps, rtol=0, atol=5e-4)


def test_a_scale_without_x0_is_refused() -> None:
    with pytest.raises(UsageError, match="noise_scale 2"):
        make_sampler("flow_euler", flow({"noise_scale": 2.0}))


# --- grids


@pytest.mark.parametrize("steps", [1, 2, 10, 28, 50])
@pytest.mark.parametrize("options", [
    {"shift": 1.0}, {"shift": 3.0}, {"shift": 3.0, "use_karras_sigmas": True}, {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True}, {"use_dynamic_shifting": True},
])  # fmt: skip
def test_linspace_is_the_stock_grid(options: dict[str, Any], steps: int) -> None:
    mu = {"mu": 0.8} if "use_dynamic_shifting" in options else {}
    stock = FlowMatchEulerDiscreteScheduler(**options)
    stock.set_timesteps(steps, **mu)
    for name in FLOWS:
        for base, spacing in ((flow({"timestep_spacing": "linspace", **mu}, **options), None),
                              (flow(mu, **options), "linspace")):  # fmt: skip
            scheduler = make_sampler(name, base, spacing=spacing)
            set_grid(scheduler, steps)
            assert torch.equal(scheduler.timesteps[:: scheduler.order], stock.timesteps), (name, spacing)
            if scheduler.order == 1:  # a multistep solver cannot count at a level without any signal
                below = 1.1e-6 if isinstance(scheduler, FloatGrid) else 0.0
                assert float((scheduler.sigmas - stock.sigmas).abs().max()) <= below


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_what_was_the_grid_stays_so_bit_for_bit(shift: float) -> None:
    euler, heun = FlowMatchEulerDiscreteScheduler(shift=shift), FlowMatchHeunDiscreteScheduler(shift=shift)
    for steps in (1, 2, 7, 50):
        euler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps, dtype=torch.float64).tolist())
        heun.set_timesteps(steps)
        for name, stock in (("flow_euler", euler), ("flow_heun", heun)):
            made = make_sampler(name, flow(shift=shift))
            set_grid(made, steps)
            torch.testing.assert_close(made.sigmas, stock.sigmas, rtol=0, atol=1e-7)
            torch.testing.assert_close(made.timesteps, stock.timesteps, rtol=0, atol=1e-4)
            z, net = noise_of([1]), best(made)
            x = z
            for t in made.timesteps:  # and so do the steps
                stock.sigmas, stock.timesteps = made.sigmas, made.timesteps
                x = stock.step(net(x, t, Cond()).out, t, x).prev_sample
            assert torch.equal(walk(made, z, [1])[-1].x, x)


@pytest.mark.parametrize("name", FLOWS)
def test_network_level_and_step_agree(name: str) -> None:
    """No timestep is cut to a whole number, on a spread grid and on one that is given."""
    for grid in ({"steps": 7}, {"timesteps": [1000, 999, 333, 1]}):
        scheduler = make_sampler(name, flow(shift=2.7))
        got = set_grid(scheduler, **grid)
        sigmas = scheduler.sigmas[:-1] if scheduler.order == 1 else scheduler.sigmas[[0, *range(2, len(got), 2)]]
        torch.testing.assert_close(torch.tensor(got)[:: scheduler.order] / 1000, sigmas, rtol=0, atol=2e-6)
        assert "timesteps" not in grid or got[:: scheduler.order] == pytest.approx(grid["timesteps"])
        calls: list[float] = []
        list(denoise(best(scheduler, calls), noise_of([1]), scheduler, generators=generators([1])))
        assert calls == got
    scheduler.set_timesteps(7)  # by its own method alone
    assert scheduler.timesteps.is_floating_point()


def test_a_shift_that_is_asked_for() -> None:
    for name in FLOWS:
        own, asked = (
            make_sampler(name, flow(shift=3.0)),
            scheduler_for(flow(), Settings(scheduler=name, steps=10, shift=3.0)),
        )
        assert set_grid(own, 10) == asked.timesteps.tolist()
    dynamic = flow(use_dynamic_shifting=True)
    assert set_grid(make_sampler("flow_euler", dynamic, shift=3.0), 10) == set_grid(
        make_sampler("flow_euler", flow(shift=3.0)), 10
    )
    for name in FLOWS:
        with pytest.raises(UsageError, match="use_dynamic_shifting"):
            set_grid(make_sampler(name, dynamic), 4)


def test_a_field_registered_late_is_not_lost() -> None:
    """`from_config` drops what was left to a class's default when the scheduler was made."""
    base = FlowMatchEulerDiscreteScheduler()
    base.register_to_config(shift=3.0)
    assert set_grid(make_sampler("flow_euler", base), 2) == pytest.approx([1000, 750])


def test_fields_survive_a_folder(tmp_path: Path) -> None:
    fields = {"prediction_type": "sample", "noise_scale": 2.0, "least_sigma": 0.05, "timestep_spacing": "linspace"}
    flow(fields, shift=3.0).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "scheduler_config.json").read_text())["noise_scale"] == 2.0
    again = FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path)
    for scheduler in (again, *(make_sampler(name, again) for name in FLOWS)):
        assert level(scheduler, 500) == (0.5, 1.0)
        assert parameterization(scheduler) == "sample"
        assert {key: scheduler.config[key] for key in fields} == fields


# --- what they are called


def test_names_and_memory() -> None:
    for name in FLOWS:
        scheduler = make_sampler(name, flow())
        assert (name_of(scheduler), is_flow(scheduler)) == (name, True)
        assert is_memoryless(scheduler) == (name == "flow_euler")
    for cls, name in ((DPMSolverMultistepScheduler, "dpm++"), (UniPCMultistepScheduler, "unipc")):
        own = cls(use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction")
        assert (name_of(own), is_flow(own), is_flow(cls())) == (f"flow_{name}", True, False)
        assert set_grid(make_sampler(None, own), 2) == pytest.approx([1000, 750])


# --- noise


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_picture_does_not_depend_on_its_batch(name: str, kind: str) -> None:
    base = flow(KINDS[kind], **({"stochastic_sampling": True} if name == "flow_euler" else {}))

    def draw(seeds: list[int]) -> Tensor:
        scheduler = make_sampler(name, base)
        set_grid(scheduler, 6)
        return walk(scheduler, pure_noise(scheduler, noise_of(seeds)), seeds)[-1].x

    torch.testing.assert_close(draw([1, 2, 3])[1:2], draw([2]), rtol=0, atol=1e-6)


class Before038(FlowMatchEulerDiscreteScheduler):
    """The stochastic step of diffusers 0.37 and before, which took a generator and drew from the global one."""

    def step(self, model_output, timestep, sample, s_churn=0.0, s_tmin=0.0, s_tmax=1e9, s_noise=1.0, generator=None,
             per_token_timesteps=None, return_dict=True):  # fmt: skip
        assert not self.config.stochastic_sampling, "drawn from the global generator"
        return super().step(model_output, timestep, sample, generator=generator, return_dict=return_dict)


def test_stochastic_steps_can_be_replayed_on_every_version() -> None:
    class Old(FlowEuler, Before038):
        pass

    x, out = noise_of([1, 2]), noise_of([5, 6])
    found = []
    for cls in (FlowEuler, Old):
        scheduler = cls(stochastic_sampling=True)
        scheduler.set_timesteps(sigmas=[1.0, 0.5])
        torch.manual_seed(len(found))
        found.append(scheduler.step(out, scheduler.timesteps[0], x, generator=generators([1, 2])).prev_sample)
    for got in found:  # straight to x0, and up again with noise of each picture's own generator
        assert torch.equal(got, 0.5 * (x - out) + 0.5 * noise_of([1, 2]))


@pytest.mark.parametrize("name", EXACT)
def test_nothing_but_the_start_is_random(name: str) -> None:
    scheduler = make_sampler(name, flow())
    set_grid(scheduler, 5)
    assert torch.equal(walk(copy.copy(scheduler), noise_of([1]), [1])[-1].x, walk(scheduler, noise_of([1]), [2])[-1].x)


@pytest.mark.parametrize("kind", list(KINDS))
def test_resampling_keeps_the_variance_of_every_level(kind: str) -> None:
    """x0 ~ N(MEAN, VARIANCE) with its own denoiser: at each level of the path signal^2 VARIANCE + noise^2."""
    scheduler = make_sampler("flow_euler", flow(KINDS[kind]))
    set_grid(scheduler, 400)  # enough that Euler's own error is small
    path = repaint_path(400, 40, 2)
    steps = walk(scheduler, pure_noise(scheduler, noise_of([1, 2], 64)), [3, 4], path=path)
    for index, step in list(zip(path, steps, strict=True))[::7]:
        signal, noise = level(scheduler, scheduler.timesteps[index + 1]) if index + 1 < 400 else (1.0, 0.0)
        expected = (signal**2 * VARIANCE + noise**2) ** 0.5
        assert float(step.x.std()) == pytest.approx(expected, rel=0.05), index


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("name", FLOWS)
def test_inpainting_keeps_known_pixels_exactly(name: str, kind: str) -> None:
    scheduler = make_sampler(name, flow(KINDS[kind]))
    set_grid(scheduler, 12)
    known, mask = noise_of([7]).expand(2, -1, -1, -1), torch.zeros(1, 1, 16, 16)
    mask[..., 8:] = 1.0
    hold = keep_known(scheduler, known, mask, generators([3, 4]))
    held: list[tuple[float, float]] = []

    def watched(x: Tensor, index: int, t: Tensor, after: Tensor | None) -> Tensor:
        x = hold(x, index, t, after)
        if after is not None:
            signal, noise = level(scheduler, after)
            held.append((float((x - signal * known)[..., :8].std()), noise))
        return x

    x = walk(scheduler, pure_noise(scheduler, noise_of([1, 2])), [1, 2], constrain=watched)[-1].x
    assert torch.equal(x[..., :8], known[..., :8])
    assert all(got == pytest.approx(wanted, rel=0.2) for got, wanted in held)


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("name", FLOWS)
def test_sdedit_starts_at_its_level(name: str, kind: str) -> None:
    scheduler = make_sampler(name, flow(KINDS[kind]))
    set_grid(scheduler, 10)
    x, start, taken = sdedit_start(scheduler, torch.zeros(1, 1, 16, 16), noise_of([1]), 0.4)
    assert taken == 4
    torch.testing.assert_close(x, level(scheduler, scheduler.timesteps[start])[1] * noise_of([1]))
    steps = walk(scheduler, x, [1], start=start)
    assert len(steps) == len(scheduler.timesteps) - start
    assert steps[-1].x.isfinite().all()


# --- and back


@pytest.mark.parametrize("kind", list(KINDS))
def test_inversion_comes_back(kind: str) -> None:
    base = flow({**KINDS[kind], **({"least_sigma": 0.05} if kind != "velocity" else {})}, stochastic_sampling=True)
    scheduler = exact_sampler(base, Settings(steps=50))
    picture, found = 0.5 * noise_of([9]), {}
    for refine in (0, 3, 10):
        x = invert_steps(best(scheduler), picture, scheduler, Cond(), refine=refine)
        back = walk(copy.copy(scheduler), x, [1], start=first_level(scheduler))[-1].x
        found[refine] = psnr(back, picture)
    print(kind, found)
    assert found[0] < found[3] < found[10]
    assert found[10] > 55


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
def test_every_solver_reaches_what_a_sure_network_gives(name: str, spacing: str) -> None:
    """The stock grid ends with a level far below `least_sigma`, where x0 makes no velocity."""
    base = flow({"prediction_type": "sample", "noise_scale": 2.0, "least_sigma": 0.05})
    scheduler, picture = make_sampler(name, base, spacing=spacing), noise_of([1]).clamp(-1, 1)
    set_grid(scheduler, 4)
    start = pure_noise(scheduler, noise_of([0]))
    *_, last = denoise(lambda x, t, cond: Prediction(picture), start, scheduler)
    assert (last.x - picture).abs().max() < 0.02
