"""What diffkit leans on in diffusers beyond its public names: when one of these fails, look at that version first."""

from __future__ import annotations

import diffusers
import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from diffkit.engine.sampler_names import SAMPLERS
from diffkit.engine.samplers import make_sampler
from diffkit.engine.sampling import denoise, generators, pure_noise, set_grid
from diffkit.types import Cond, Prediction

CLIPPED = [n for n, row in SAMPLERS.items() if not row.flow and row.cls.startswith(("DPMSolver", "UniPC", "DEIS"))]


def changed(name: str, what: str) -> str:
    return f"diffusers {diffusers.__version__} no longer takes {name}, which diffkit.engine overrides: {what}"


@pytest.mark.parametrize("kind", ["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned_range"])
def test_ddpm_takes_its_noise_from_get_variance(kind: str) -> None:
    base = DDPMScheduler(num_train_timesteps=50, variance_type=kind)
    x = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))

    def net(x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        return Prediction(0.1 * x, 0.5 * torch.ones_like(x))

    def last(seed: int, noisy: int | None) -> Tensor:
        random = generators([seed])
        return [
            s.x for s in denoise(net, x, make_sampler("ddpm", base), steps=5, generators=random, stop_noise_after=noisy)
        ][-1]

    assert torch.equal(last(1, 0), last(2, 0)), changed(
        "DDPMScheduler._get_variance", "stop_noise_after still adds noise"
    )
    assert not torch.equal(last(1, None), last(2, None))


@pytest.mark.parametrize("name", CLIPPED)
def test_solvers_clip_in_threshold_sample(name: str) -> None:
    base = DDPMScheduler(num_train_timesteps=50, prediction_type="sample", clip_sample=True, clip_sample_range=0.5)
    scheduler = make_sampler(name, base)
    set_grid(scheduler, 10)
    random = generators([0])
    x = pure_noise(scheduler, torch.randn(1, 1, 4, 4, generator=random[0]))
    for step in denoise(lambda x, t, cond: Prediction(torch.full_like(x, 3.0)), x, scheduler, generators=random):
        x = step.x
    # clipped to 0.5; dynamic thresholding would have divided, and given 1. DEIS ends with a little noise.
    torch.testing.assert_close(
        x, torch.full_like(x, 0.5), rtol=0, atol=0.1 if name == "deis" else 1e-4,
        msg=changed(f"{SAMPLERS[name].cls}._threshold_sample", "x0 is not clipped as the model's configuration asks"),
    )  # fmt: skip


@pytest.mark.parametrize("name", [n for n, row in SAMPLERS.items() if not row.flow])
def test_add_noise_reads_the_level_off_the_timestep(name: str) -> None:
    """`levels.level` asks a scheduler for a level that it does not stand at; no begin index may be in the way."""
    scheduler = make_sampler(name, DDPMScheduler(num_train_timesteps=50))
    set_grid(scheduler, 5)
    t = scheduler.timesteps[-1].reshape(1)
    one = torch.ones(1)
    first = float(scheduler.add_noise(0 * one, one, t))
    for _ in denoise(lambda x, t, c: Prediction(0 * x), torch.zeros(1, 1, 2, 2), scheduler, generators=generators([0])):
        assert float(scheduler.add_noise(0 * one, one, t)) == first, (
            f"diffusers {diffusers.__version__}: {SAMPLERS[name].cls}.add_noise follows the step it stands at"
        )
