"""Edits with a model that was trained on uniform noise and pixels from 0 to 1: it is shown nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from diffkit.engine.levels import level
from diffkit.errors import UsageError
from diffkit.jobs.base import build
from diffkit.jobs.denoise import Denoise
from diffkit.jobs.images import mask_in_space
from diffkit.jobs.inpaint import Inpaint
from diffkit.jobs.sdedit import SDEdit
from diffkit.jobs.velocity import Velocity
from diffkit.models.base import WrappedModel
from diffkit.models.ddpm import DDPM
from diffkit.models.meta import RunMeta
from diffkit.models.network import build_network
from diffkit.pictures.tensors import from_tensor, to_tensor
from diffkit.recipes.schema import ModelSpec
from diffkit.types import Cond, Prediction
from tests.support.drawing import do

IMAGE = to_tensor(from_tensor(torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(5)) * 2 - 1))
RIGHT = -torch.ones(1, 1, 8, 8)
RIGHT[..., 4:] = 1.0


class Watched(WrappedModel):
    """A model that remembers what it was asked."""

    def __init__(self, noise: str = "uniform") -> None:
        torch.manual_seed(0)
        network = build_network(ModelSpec(preset="tiny", class_conditioning="none"), shape=(1, 8, 8))
        meta = RunMeta(prediction="linear_mix", resolution=8, channels=1, noise=noise, mean=[-1.0], std=[2.0])
        super().__init__(DDPM(network, FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000), meta))
        self.asked: list[tuple[Tensor, Tensor]] = []

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        self.asked.append((x.clone(), t))
        return super().__call__(x, t, cond)


def noise_in(model: Watched, x: Tensor, t: Tensor) -> Tensor:
    """The noise of the left half, which is known, in what the network was given."""
    signal, share = level(model.scheduler, t.flatten()[0])
    return (x - signal * model.codec.encode(IMAGE))[..., :4] / share


@pytest.mark.parametrize("noise", ["uniform", "normal"])
@pytest.mark.parametrize(
    ("job", "fields"),
    [
        (Inpaint, {"mask": RIGHT, "resample": 1}),
        (SDEdit, {"mask": RIGHT, "strength": 0.8}),
        (Denoise, {"methods": ["one_step"]}),
        (Velocity, {}),
    ],
)
def test_known_pixels_are_noised_by_the_model_s_own_kind(job: Any, fields: dict[str, Any], noise: str) -> None:
    model = Watched(noise)
    assert model.info.noise == noise
    steps = {} if job in (Denoise, Velocity) else {"steps": 10}
    do(job, model, [1, 2], image=IMAGE, **steps, **fields)
    found = torch.cat([noise_in(model, x, t).flatten() for x, t in model.asked if float(t.max()) > 50])
    assert len(found) >= 100
    inside = float(((found >= -1e-3) & (found <= 1 + 1e-3)).float().mean())
    if noise == "uniform":
        assert inside == 1.0
        assert float(found.mean()) == pytest.approx(0.5, abs=0.08)
    else:
        assert inside < 0.5


def test_a_mask_is_the_same_in_every_range_of_pixels() -> None:
    model = Watched()
    soft = torch.linspace(0, 1, 9)[:8].expand(1, 1, 8, 8)
    got = mask_in_space(model, soft, model.codec.encode(IMAGE))
    torch.testing.assert_close(got, soft)
    assert float(got.min()) == 0.0


def test_uniform_noise_is_not_added_to_noise() -> None:
    info = Watched().info
    assert len(build(Inpaint, {"steps": 20}).fitted(info).sampling_timesteps(info)) == 20
    with pytest.raises(UsageError, match="knows uniform noise only") as caught:
        build(Inpaint, {"steps": 20, "resample": 2}).fitted(info).check(info)
    assert "resample" in caught.value.hint
    normal = Watched("normal").info
    build(Inpaint, {"steps": 20, "resample": 2}).fitted(normal).check(normal)
