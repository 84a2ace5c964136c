"""The first and the last step of every sampler, against Gaussian data, whose best denoiser and whose answer are known.

For x0 ~ N(m, s^2) the best estimate is affine in x, and so is every step: mean and variance can be followed by hand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, SchedulerMixin
from torch import Tensor

from diffkit.engine.levels import network_level, out_of
from diffkit.engine.sampler_names import SAMPLERS
from diffkit.engine.samplers import make_sampler
from diffkit.engine.sampling import denoise, generators, pure_noise, set_grid
from diffkit.engine.schedules import make_noise_scheduler
from diffkit.engine.solvers import GridDDIM, dynamic_threshold
from diffkit.errors import UsageError
from diffkit.recipes.schema import NoiseSpec
from diffkit.types import Cond, Prediction

MEAN, SPREAD, LEVELS = 0.3, 0.25, 100
KINDS = ("epsilon", "v_prediction", "sample")
FIRST_ORDER = {"ddim": 0.0, "euler": 0.0, "ddpm": 1.0, "euler_a": 1.0}  # and the eta of DDIM that each is equal to


def schedules(kind: str) -> Iterator[tuple[str, DDPMScheduler]]:
    common = {"num_train_timesteps": LEVELS, "prediction_type": kind, "clip_sample": False}
    plain = {**common, "timestep_spacing": "trailing", "beta_end": 0.2}
    yield "linear", DDPMScheduler(**plain)
    yield "cosine", DDPMScheduler(**plain, beta_schedule="squaredcos_cap_v2")
    # its last levels stay apart by less than the rounding of 1 - abar
    yield (
        "sigmoid_abar",
        make_noise_scheduler(NoiseSpec(schedule="sigmoid_abar", timesteps=LEVELS, prediction=kind, clip_sample=False)),
    )
    if kind != "epsilon":
        yield "zero SNR", DDPMScheduler(**plain, rescale_betas_zero_snr=True)
        yield "zero SNR cosine", DDPMScheduler(**plain, beta_schedule="squaredcos_cap_v2", rescale_betas_zero_snr=True)
        betas = [*DDPMScheduler(**plain).betas.tolist()[:-1], 1.0]
        yield "zero SNR by its betas", DDPMScheduler(**common, timestep_spacing="trailing", trained_betas=betas)


def draw(scheduler: SchedulerMixin, eta: float) -> Tensor:
    def net(x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        signal, noise = network_level(scheduler, t)
        x0 = MEAN + signal * SPREAD**2 / (signal**2 * SPREAD**2 + noise**2) * (x - signal * MEAN)
        return Prediction(out_of(x0, x, t, scheduler))

    random = generators([1, 2])
    x = pure_noise(scheduler, torch.cat([torch.randn(1, 1, 64, 64, generator=g) for g in random]))
    for step in denoise(net, x, scheduler, generators=random, eta=eta):
        x = step.x
    return x


def by_hand(abar: Tensor, grid: list[float], eta: float) -> tuple[float, float]:
    """Mean and standard deviation after DDIM's steps, in double precision."""
    mean, variance = 0.0, 1.0
    left = [float(abar[int(t)].double()) for t in grid]
    for a, b in zip(left, [*left[1:], 1.0], strict=True):
        slope = math.sqrt(a) * SPREAD**2 / (a * SPREAD**2 + 1 - a)  # of x0 in x
        fresh = eta**2 * (1 - b) / (1 - a) * (1 - a / b)
        kept = math.sqrt(max(1 - b - fresh, 0.0)) / math.sqrt(1 - a)
        gain = math.sqrt(b) * slope + kept * (1 - math.sqrt(a) * slope)
        x0 = MEAN + slope * (mean - math.sqrt(a) * MEAN)
        mean = math.sqrt(b) * x0 + kept * (mean - math.sqrt(a) * x0)
        variance = gain**2 * variance + fresh
    return mean, math.sqrt(variance)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [n for n, row in SAMPLERS.items() if not row.flow])
def test_every_sampler_is_finite_and_right_at_both_ends(name: str, kind: str) -> None:
    if kind not in SAMPLERS[name].predicts:
        with pytest.raises(UsageError, match="cannot step"):
            make_sampler(name, DDPMScheduler(prediction_type=kind))
        return
    for schedule, base in schedules(kind):
        for steps in (1, 2, 50, LEVELS):
            for eta in (0.0, 1.0) if name == "ddim" else (FIRST_ORDER.get(name, 0.0),):
                try:
                    scheduler = make_sampler(name, base)
                    grid = set_grid(scheduler, steps)
                except UsageError:
                    continue
                x, case = draw(scheduler, eta), (schedule, steps, eta)
                assert x.isfinite().all(), case
                if name in FIRST_ORDER:
                    mean, spread = by_hand(base.alphas_cumprod, grid, eta)
                    assert float(x.mean()) == pytest.approx(mean, abs=0.01), case
                    assert float(x.std()) == pytest.approx(spread, rel=0.03, abs=1e-3), case
                elif steps == 1:  # one step gives the best estimate, the mean; DEIS leaves the first level's noise
                    assert float(x.mean()) == pytest.approx(MEAN, abs=0.01), case
                    assert float(x.std()) < (0.06 if name == "deis" else 0.005), case
                elif steps > 2:
                    assert float(x.mean()) == pytest.approx(MEAN, abs=0.02), case
                    assert float(x.std()) == pytest.approx(SPREAD, rel=0.15), case


@pytest.mark.parametrize("name", ["dpm++", "dpm++sde", "euler", "euler_a", "unipc"])
def test_a_schedule_that_ends_without_signal_needs_no_flag(name: str) -> None:
    """Its sigma is infinite at T; the flag of diffusers puts a large number in its place."""
    cases = dict(schedules("v_prediction"))
    flagged, plain = cases["zero SNR"], cases["zero SNR by its betas"]
    assert not plain.config.rescale_betas_zero_snr
    for base in (flagged, plain):
        assert make_sampler(name, base).config.rescale_betas_zero_snr


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_eta_one_from_a_level_almost_without_signal(spacing: str) -> None:
    """1 - abar_next - sigma^2 is 0 there, and rounds below it: no root may be taken of that (diffusers #5969)."""
    for seed_steps in range(2, 21):
        base = DDPMScheduler(num_train_timesteps=20, beta_schedule="squaredcos_cap_v2", timestep_spacing=spacing)
        scheduler = make_sampler("ddim", base)
        set_grid(scheduler, seed_steps)
        assert draw(scheduler, 1.0).isfinite().all(), seed_steps


# --- our DDIM step against the stock one, on grids where the stock one is right


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("after", [{}, {"clip_sample": False}, {"thresholding": True, "sample_max_value": 1.5},
                                   {"set_alpha_to_one": False, "steps_offset": 1}])  # fmt: skip
def test_the_ddim_step_is_the_stock_step_bit_for_bit(kind: str, eta: float, clipped: bool, after: dict) -> None:
    config = {"num_train_timesteps": 100, "prediction_type": kind, **after}
    ours, stock = GridDDIM(**config), DDIMScheduler(**config)
    x = 1.5 * torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    ours.set_timesteps(10)
    stock.set_timesteps(10)
    assert torch.equal(ours.timesteps, stock.timesteps)
    for t in stock.timesteps:
        out = torch.tanh(x + t / 100)
        given = {"eta": eta, "use_clipped_model_output": clipped}
        expected = stock.step(out, t, x, generator=generators([1, 2]), **given)
        got = ours.step(out, t, x, generator=generators([1, 2]), **given)
        assert torch.equal(got.prev_sample, expected.prev_sample)
        assert torch.equal(got.pred_original_sample, expected.pred_original_sample)
        x = expected.prev_sample
    plain = ours.step(out, t, x, return_dict=False)
    assert isinstance(plain, tuple)
    assert len(plain) == 2


def test_dynamic_thresholding_by_hand() -> None:
    x0 = torch.linspace(-3, 3, 64).reshape(1, 1, 8, 8)
    got = dynamic_threshold(torch.cat([x0, 0.1 * x0]), 0.9, 10.0)
    s = float(torch.quantile(x0.abs(), 0.9))
    torch.testing.assert_close(got[:1], x0.clamp(-s, s) / s)
    torch.testing.assert_close(got[1:], 0.1 * x0)  # below 1 nothing is stretched
    assert dynamic_threshold(x0.half(), 0.9, 10.0).dtype == torch.float16
