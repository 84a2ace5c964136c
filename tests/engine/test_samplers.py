from __future__ import annotations

import diffusers
import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from diffkit.engine.sampler_names import SAMPLERS, canonical
from diffkit.engine.samplers import GridDDIM, GridDDPM, make_sampler, spacing_notice
from diffkit.errors import UsageError

DIFFUSION = [name for name, row in SAMPLERS.items() if not row.flow]


@pytest.mark.parametrize("name", DIFFUSION)
def test_the_model_s_schedule_survives_the_change_of_class(name: str) -> None:
    """Values equal to the old class's defaults must not turn into the new class's own."""
    for options in ({}, {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
                    {"trained_betas": torch.linspace(1e-3, 0.1, 50).tolist(), "num_train_timesteps": 50}):  # fmt: skip
        base = DDPMScheduler(**options)
        sampler = make_sampler(name, base)
        torch.testing.assert_close(sampler.betas.float(), base.betas)
        assert sampler.config.num_train_timesteps == base.config.num_train_timesteps
        assert sampler.config.prediction_type == "epsilon"


@pytest.mark.parametrize("name", DIFFUSION)
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_prediction_types_are_stepped_with_or_refused(name: str, prediction: str) -> None:
    base = DDPMScheduler(prediction_type=prediction)
    if prediction not in SAMPLERS[name].predicts:
        with pytest.raises(UsageError, match="cannot step"):
            make_sampler(name, base)
        return
    sampler = make_sampler(name, base)
    sampler.set_timesteps(5)
    x, t = torch.zeros(1, 1, 2, 2), sampler.timesteps[0]
    sampler.scale_model_input(x, t)
    assert sampler.step(x, t, x).prev_sample.shape == x.shape


def test_a_pixel_model_s_clip_is_kept_by_solvers_that_only_threshold() -> None:
    sampler = make_sampler("dpm++", DDPMScheduler(clip_sample_range=0.5))
    assert sampler._threshold_sample(torch.tensor([-2.0, 0.1, 3.0])).tolist() == pytest.approx([-0.5, 0.1, 0.5])
    assert sampler.config.thresholding
    assert not make_sampler("dpm++", DDPMScheduler(clip_sample=False)).config.thresholding


def test_spacing_is_an_option() -> None:
    for spacing in ("leading", "trailing", "linspace"):
        sampler = make_sampler("euler", DDPMScheduler(), spacing=spacing)
        sampler.set_timesteps(10)
        assert int(sampler.timesteps[0]) == (900 if spacing == "leading" else 999)
    with pytest.raises(UsageError, match="`spacing`"):
        make_sampler("ddim", DDPMScheduler(), spacing="log")
    with pytest.raises(UsageError, match="grid of its own"):
        make_sampler("dpm++single", DDPMScheduler(), spacing="leading")


@pytest.mark.parametrize("name", DIFFUSION)
def test_a_spacing_that_the_model_does_not_name_is_the_sampler_s_own_and_said(name: str) -> None:
    """As in diffusers: `from_config` hands over what a configuration says, and no defaults of its class."""
    cls = getattr(diffusers, SAMPLERS[name].cls)
    own = cls().config.get("timestep_spacing")  # None: it has a grid of its own
    silent, spoken = DDPMScheduler(), DDPMScheduler(timestep_spacing="trailing")
    made = make_sampler(name, silent)
    assert made.config.get("timestep_spacing") == cls.from_config(silent.config).config.get("timestep_spacing") == own
    assert bool(spacing_notice(made, silent)) == (own not in (None, "leading"))
    kept = make_sampler(name, spoken)
    assert own is None or kept.config.timestep_spacing == "trailing"
    assert not spacing_notice(kept, spoken)


def test_flows_and_diffusions_do_not_mix() -> None:
    flow, plain = FlowMatchEulerDiscreteScheduler(), DDPMScheduler()
    assert isinstance(make_sampler(None, flow), FlowMatchEulerDiscreteScheduler)
    assert isinstance(make_sampler(None, plain), GridDDIM)
    for name in SAMPLERS:
        with pytest.raises(UsageError, match="does not fit"):
            make_sampler(name, plain if SAMPLERS[name].flow else flow)
    with pytest.raises(UsageError, match="does not start at pure noise"):
        make_sampler("flow_euler", flow, spacing="leading")
    with pytest.raises(UsageError, match="`shift` 3 belongs to flow models"):
        make_sampler("ddim", plain, shift=3.0)


def test_zero_terminal_snr_is_refused_where_it_cannot_work() -> None:
    def base(prediction: str, spacing: str = "trailing") -> DDPMScheduler:
        return DDPMScheduler(rescale_betas_zero_snr=True, prediction_type=prediction, timestep_spacing=spacing)

    for name in ("ddpm", "ddim", "dpm++", "euler", "unipc"):
        make_sampler(name, base("v_prediction"))
        with pytest.raises(UsageError, match="divides by it"):
            make_sampler(name, base("epsilon"))
    with pytest.raises(UsageError, match="cannot start"):
        make_sampler("heun", base("v_prediction"))
    with pytest.raises(UsageError, match="does not start at T"):
        make_sampler("ddim", base("v_prediction", "leading"))
    make_sampler("ddim", base("v_prediction", "leading"), spacing="trailing")


def test_names() -> None:
    assert canonical("DPMSolver++") == "dpm++"
    assert canonical("euler-ancestral") == "euler_a"
    with pytest.raises(UsageError, match="eulr") as caught:
        canonical("eulr")
    assert "euler" in caught.value.hint


def test_the_base_is_not_changed() -> None:
    base = DDPMScheduler()
    before = dict(base.config)
    assert isinstance(make_sampler("ddpm", base), GridDDPM)
    assert dict(base.config) == before
    assert base.num_inference_steps is None
