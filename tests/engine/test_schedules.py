from __future__ import annotations

import logging
import math

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from diffkit.engine.samplers import make_sampler
from diffkit.engine.schedules import PREDICTIONS, SCHEDULES, make_noise_scheduler
from diffkit.errors import UsageError
from diffkit.recipes.schema import NoiseSpec


def abar(schedule: str, timesteps: int = 1000, **more) -> torch.Tensor:
    return make_noise_scheduler(NoiseSpec(schedule=schedule, timesteps=timesteps, **more)).alphas_cumprod


@pytest.mark.parametrize("timesteps", [300, 512, 1000])
@pytest.mark.parametrize("name", list(SCHEDULES))
def test_every_schedule_only_loses_signal(name: str, timesteps: int) -> None:
    left = abar(name, timesteps)
    assert left.shape == (timesteps,)
    assert ((left > 0) & (left < 1)).all()
    assert (left[1:] < left[:-1]).all()


@pytest.mark.parametrize("timesteps", [300, 1000])
def test_cosine_is_the_paper_s(timesteps: int) -> None:
    left = abar("cosine", timesteps)
    f = [math.cos((t / timesteps + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(timesteps + 1)]
    expected = torch.tensor([f[t + 1] / f[0] for t in range(timesteps - 20)])  # before beta is capped
    torch.testing.assert_close(left[:-20], expected, rtol=2e-4, atol=1e-6)


def test_offset_cosine_runs_between_its_signal_rates() -> None:
    left = abar("offset_cosine:0.9,0.05", 200).sqrt()
    torch.testing.assert_close(left[[0, -1]], torch.tensor([0.9, 0.05]), rtol=1e-4, atol=1e-5)
    angles = left.acos()
    torch.testing.assert_close(angles.diff(), torch.full((199,), float(angles.diff().mean())), rtol=2e-3, atol=1e-6)


def test_sigmoid_abar_is_the_formula() -> None:
    left = abar("sigmoid_abar:-3,3,0.7", 400)
    u = torch.arange(1, 401, dtype=torch.float64) / 400
    s = lambda v: torch.sigmoid(torch.as_tensor(v, dtype=torch.float64) / 0.7)  # noqa: E731
    expected = (s(3.0) - s(-3 + 6 * u)) / (s(3.0) - s(-3.0))
    torch.testing.assert_close(left[:-1].double(), expected[:-1], rtol=1e-3, atol=1e-5)


def test_sigmoid_is_of_beta_and_survives_the_change_of_sampler() -> None:
    base = make_noise_scheduler(NoiseSpec(schedule="sigmoid"))
    expected = torch.sigmoid(torch.linspace(-6, 6, 1000)) * (0.02 - 1e-4) + 1e-4
    torch.testing.assert_close(base.betas, expected)
    torch.testing.assert_close(make_sampler("ddim", base).betas, base.betas)
    with pytest.raises(NotImplementedError):
        DDIMScheduler.from_config(base.config)


@pytest.mark.parametrize(
    "bad",
    ["linear:0.02,0.0001", "scaled_linear:0", "sigmoid:0.1,1", "offset_cosine:0.02,0.95", "sigmoid_abar:3,-3",
     "sigmoid_abar:-3,3,0", "cosine:1", "linear:x", "linar"],
)  # fmt: skip
def test_impossible_arguments_are_refused(bad: str) -> None:
    with pytest.raises(UsageError):
        make_noise_scheduler(NoiseSpec(schedule=bad))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_objective_has_a_scheduler(prediction: str) -> None:
    scheduler = make_noise_scheduler(NoiseSpec(prediction=prediction, timesteps=64))
    assert isinstance(scheduler, FlowMatchEulerDiscreteScheduler) == (prediction in ("flow", "linear_mix"))
    assert scheduler.config.num_train_timesteps == 64


def test_unknown_prediction_is_refused() -> None:
    with pytest.raises(UsageError, match="epsilom"):
        make_noise_scheduler(NoiseSpec(prediction="epsilom"))


def test_zero_terminal_snr_leaves_nothing() -> None:
    left = abar("scaled_linear", prediction="v_prediction", zero_terminal_snr=True)
    assert left[-1] == 0.0
    with pytest.raises(UsageError, match="divides by zero"):
        make_noise_scheduler(NoiseSpec(zero_terminal_snr=True))


def test_signal_left_at_the_end_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "diffkit"):
        make_noise_scheduler(NoiseSpec(timesteps=1000))
        assert not caplog.text
        make_noise_scheduler(NoiseSpec(timesteps=300))
    assert "22 %" in caplog.text
