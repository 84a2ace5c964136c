from __future__ import annotations

import math
import re

import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)
from torch import Tensor

from diffkit.engine.sampler_names import SAMPLERS
from diffkit.engine.samplers import GridDDIM, GridDDPM, make_sampler
from diffkit.engine.sampling import denoise, draw_noise, fresh_noise, generators, pure_noise, set_grid
from diffkit.engine.settings import Settings, check_settings
from diffkit.errors import NumericalError, UsageError
from diffkit.jobs.sampling import make_scheduler
from diffkit.models.conditioning import conditioned, finished
from diffkit.models.ddpm import DDPM, DDPMNetwork, RunMeta
from diffkit.types import Cond, Prediction

SEEDS = [3, 11, 7]


@pytest.fixture(scope="module")
def unet() -> UNet2DModel:
    return _unet()


def _unet(classes: int | None = None, out_channels: int = 1) -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8, in_channels=1, out_channels=out_channels, block_out_channels=(8, 8), layers_per_block=1,
        norm_num_groups=4, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), num_class_embeds=classes,
    ).eval()  # fmt: skip


def as_net(unet: UNet2DModel):
    def net(x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        return Prediction(unet(x, t, class_labels=cond.tensors.get("class_labels")).sample)

    return net


def noise(seeds: list[int] = SEEDS, size: int = 8) -> tuple[Tensor, list[torch.Generator]]:
    random = generators(seeds)
    return torch.cat([torch.randn(1, 1, size, size, generator=g) for g in random]), random


def run(net, scheduler, seeds: list[int] = SEEDS, cond: Cond | None = None, **options) -> Tensor:
    steps, timesteps = options.pop("steps", None), options.pop("timesteps", None)
    set_grid(scheduler, steps, timesteps)
    x, random = noise(seeds)
    for step in denoise(net, pure_noise(scheduler, x), scheduler, cond, generators=random, **options):
        x = step.x
    return x


def to_unit(x: Tensor) -> Tensor:
    return (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)


# --- parity with diffusers' own pipelines


@pytest.mark.parametrize("steps", [7, 30])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_ddpm_is_bit_equal_to_the_pipeline(unet: UNet2DModel, steps: int, prediction: str) -> None:
    base = DDPMScheduler(num_train_timesteps=30, prediction_type=prediction)
    pipe = DDPMPipeline(unet, base)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(batch_size=3, generator=generators(SEEDS), num_inference_steps=steps, output_type="np").images
    got = to_unit(run(as_net(unet), make_sampler("ddpm", base), steps=steps)).numpy()
    assert (got == expected).all()


@pytest.mark.parametrize("eta", [0.0, 0.6])
@pytest.mark.parametrize("steps", [10, 7])
def test_ddim_agrees_with_the_pipeline(unet: UNet2DModel, steps: int, eta: float) -> None:
    base = DDPMScheduler(num_train_timesteps=60)
    pipe = DDIMPipeline(unet, DDIMScheduler.from_config(base.config))
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(3, generators(SEEDS), eta=eta, num_inference_steps=steps, output_type="np").images
    got = to_unit(run(as_net(unet), make_sampler("ddim", base), steps=steps, eta=eta))
    torch.testing.assert_close(got, torch.from_numpy(expected), rtol=0, atol=1e-5)


def test_class_conditional_ddpm_is_bit_equal_to_a_plain_loop() -> None:
    unet, labels = _unet(classes=4), torch.tensor([0, 3, 1])
    base = DDPMScheduler(num_train_timesteps=20)
    got = run(as_net(unet), make_sampler("ddpm", base), cond=Cond({"class_labels": labels}), steps=20)
    x, random = noise()
    base.set_timesteps(20)
    with torch.no_grad():
        for t in base.timesteps:
            x = base.step(unet(x, t, class_labels=labels).sample, t, x, generator=random).prev_sample
    torch.testing.assert_close(got, x, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpm++sde", "euler_a", "unipc"])
def test_an_image_does_not_depend_on_its_batch(unet: UNet2DModel, name: str) -> None:
    base = DDPMScheduler(num_train_timesteps=100, timestep_spacing="trailing")
    eta = 1.0 if name == "ddim" else 0.0
    together = run(as_net(unet), make_sampler(name, base), steps=8, eta=eta)
    for k, seed in enumerate(SEEDS):
        alone = run(as_net(unet), make_sampler(name, base), [seed], steps=8, eta=eta)
        torch.testing.assert_close(alone[0], together[k], rtol=1e-5, atol=1e-5)


def test_noise_of_an_image_is_its_seed_s_alone() -> None:
    together = draw_noise((2, 4, 4), generators(SEEDS), "cpu")
    assert together.shape == (3, 2, 4, 4)
    for k, seed in enumerate(SEEDS):
        alone = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(together[k : k + 1], alone)
    wide = torch.zeros(3, 2, 4, 4, dtype=torch.float64)
    assert torch.equal(fresh_noise(wide, generators(SEEDS)), together.double())


def test_noise_is_drawn_by_its_kind() -> None:
    even = draw_noise((2, 64, 64), generators(SEEDS), "cpu", "uniform")
    for k, seed in enumerate(SEEDS):
        assert torch.equal(even[k], torch.rand(2, 64, 64, generator=torch.Generator().manual_seed(seed)))
    assert torch.equal(fresh_noise(torch.zeros(3, 2, 64, 64), generators(SEEDS), "uniform"), even)
    assert float(draw_noise((2, 64, 64), generators(SEEDS), "cpu").min()) < 0 <= float(even.min())


# --- DDIM's formula on every grid


def ddim_by_hand(net, abar: Tensor, grid: list[int], x: Tensor) -> Tensor:
    for t, before in zip(grid, [*grid[1:], -1], strict=True):
        a, b = abar[t], abar[before] if before >= 0 else torch.tensor(1.0)
        with torch.no_grad():
            eps = net(x, torch.tensor(t), Cond()).out
        x0 = ((x - (1 - a).sqrt() * eps) / a.sqrt()).clamp(-1, 1)
        x = b.sqrt() * x0 + (1 - b).sqrt() * eps
    return x


@pytest.mark.parametrize(
    ("spacing", "steps", "timesteps"),
    [("leading", 30, None), ("trailing", 30, None), ("linspace", 7, None), (None, None, [95, 40, 39, 3])],
)
def test_ddim_is_right_on_every_grid(unet: UNet2DModel, spacing, steps, timesteps) -> None:
    base = DDPMScheduler(num_train_timesteps=100)
    sampler = make_sampler("ddim", base, spacing=spacing)
    got = run(as_net(unet), sampler, steps=steps, timesteps=timesteps)
    grid = sampler.timesteps.tolist()
    assert timesteps is None or grid == timesteps
    expected = ddim_by_hand(as_net(unet), base.alphas_cumprod, grid, noise()[0])
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert sampler.num_inference_steps == len(grid)


def test_the_stock_step_is_wrong_where_ours_is_right(unet: UNet2DModel) -> None:
    base = DDPMScheduler(num_train_timesteps=100, timestep_spacing="linspace")
    stock = DDIMScheduler.from_config(base.config)
    assert (
        run(as_net(unet), stock, steps=7) - run(as_net(unet), make_sampler("ddim", base), steps=7)
    ).abs().max() > 1e-3


# --- analytic denoisers


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", [n for n, row in SAMPLERS.items() if not row.flow])
def test_every_sampler_finds_the_only_image_there_is(name: str, prediction: str) -> None:
    if prediction not in SAMPLERS[name].predicts:
        pytest.skip("refused, see test_schedulers")
    base = DDPMScheduler(prediction_type=prediction, timestep_spacing="trailing")
    target = torch.linspace(-0.9, 0.9, 64).reshape(1, 1, 8, 8)
    scheduler = make_sampler(name, base)

    def net(x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        # Samplers give the variance-preserving x after scale_model_input; t may lie between two levels.
        low, high = math.floor(float(t)), math.ceil(float(t))
        sigma = ((1 - base.alphas_cumprod) / base.alphas_cumprod).sqrt()
        s = torch.exp(torch.lerp(sigma[low].log(), sigma[high].log(), float(t) - low))
        a = 1 / (1 + s**2)
        eps = (x - a.sqrt() * target) / (1 - a).sqrt()
        velocity = a.sqrt() * eps - (1 - a).sqrt() * target
        return Prediction({"epsilon": eps, "sample": target.expand_as(x), "v_prediction": velocity}[prediction])

    got = run(net, scheduler, steps=20)
    torch.testing.assert_close(got, target.expand(3, -1, -1, -1), rtol=0, atol=0.03)


@pytest.mark.parametrize("name", [name for name, row in SAMPLERS.items() if row.flow])
@pytest.mark.parametrize("grid", [{"steps": 1}, {"steps": 13}, {"timesteps": [1000, 400, 7]}])
def test_flow_finds_the_only_image_there_is(name: str, grid: dict) -> None:
    base = FlowMatchEulerDiscreteScheduler()
    target = torch.linspace(-0.9, 0.9, 64).reshape(1, 1, 8, 8)

    def net(x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        return Prediction((x - target) / (t / 1000))

    got = run(net, make_sampler(name, base), **grid)
    torch.testing.assert_close(got, target.expand(3, -1, -1, -1), rtol=0, atol=1e-4)


# --- the loop


def test_steps_and_constraint_see_the_grid() -> None:
    scheduler = make_sampler("ddim", DDPMScheduler(num_train_timesteps=100))
    seen = []

    def constrain(x: Tensor, index: int, t: Tensor, after: Tensor | None) -> Tensor:
        seen.append((index, int(t), None if after is None else int(after)))
        return torch.full_like(x, 0.25)

    x = torch.zeros(1, 1, 2, 2)
    steps = list(denoise(lambda x, t, c: Prediction(x), x, scheduler, timesteps=[80, 50, 9], constrain=constrain))
    assert seen == [(0, 80, 50), (1, 50, 9), (2, 9, None)]
    assert [(s.index, s.total, int(s.t)) for s in steps] == [(0, 3, 80), (1, 3, 50), (2, 3, 9)]
    assert all((s.x == 0.25).all() and s.x0 is not None for s in steps)


def test_start_skips_the_first_steps_for_every_kind_of_scheduler() -> None:
    for name in ("ddim", "euler", "dpm++"):
        scheduler = make_sampler(name, DDPMScheduler(num_train_timesteps=100, timestep_spacing="trailing"))
        steps = list(denoise(lambda x, t, c: Prediction(x), torch.zeros(1, 1, 2, 2), scheduler, steps=10, start=7))
        assert [s.index for s in steps] == [7, 8, 9]
        assert [int(s.t) for s in steps] == [29, 19, 9]


def test_the_loop_keeps_no_gradient_and_leaks_no_mode(unet: UNet2DModel) -> None:
    loop = denoise(as_net(unet), noise()[0], make_sampler("ddim", DDPMScheduler()), steps=2)
    assert not next(loop).x.requires_grad
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(("name", "eta"), [("ddpm", 0.0), ("ddim", 1.0)])
def test_noise_stops_where_it_is_told(unet: UNet2DModel, name: str, eta: float) -> None:
    base = DDPMScheduler(num_train_timesteps=100)

    def path(after: int | None, seeds: list[int]) -> list[Tensor]:
        sampler = make_sampler(name, base)
        x, _ = noise()
        steps = denoise(
            as_net(unet), x, sampler, steps=8, eta=eta, generators=generators(seeds), stop_noise_after=after
        )
        return [s.x for s in steps]

    full, some = path(None, [1, 2, 3]), path(3, [1, 2, 3])
    for k in range(3):
        torch.testing.assert_close(some[k], full[k], rtol=0, atol=0)
    assert not torch.equal(some[3], full[3])
    for other in (path(0, [4, 5, 6]), path(0, [7, 8, 9])):  # no noise at all: the seeds play no part
        torch.testing.assert_close(other[-1], path(0, [1, 2, 3])[-1], rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["fixed_small", "fixed_small_log", "fixed_large", "learned_range"])
def test_a_quiet_ddpm_step_goes_to_the_mean(kind: str) -> None:
    scheduler = GridDDPM(num_train_timesteps=50, variance_type=kind)
    set_grid(scheduler, 10)
    out, x = torch.randn(1, 2 if kind == "learned_range" else 1, 4, 4), torch.randn(1, 1, 4, 4)
    scheduler.quiet = True
    quiet = [scheduler.step(out, 25, x, generator=generators([s])).prev_sample for s in (0, 1)]
    torch.testing.assert_close(quiet[0], quiet[1], rtol=0, atol=0)
    scheduler.quiet = False
    draws = torch.stack([scheduler.step(out, 25, x, generator=generators([s])).prev_sample for s in range(1000)])
    spread = draws.std(0)
    assert ((draws.mean(0) - quiet[0]).abs() < 5 * spread / 1000**0.5).all()


def test_noise_that_is_not_there_cannot_be_stopped(unet: UNet2DModel) -> None:
    """A sampler that adds noise by its own formula is not said to add none: its seeds are seen to matter."""
    x, _ = noise()
    for name in [name for name, row in SAMPLERS.items() if not row.flow and name != "ddpm"]:
        drawn = [
            list(denoise(as_net(unet), x, make_sampler(name, DDPMScheduler()), steps=3, generators=generators(seeds)))
            for seeds in ((1, 2, 3), (4, 5, 6))
        ]
        adds = not torch.equal(drawn[0][-1].x, drawn[1][-1].x)
        said = re.escape(name) + (" adds fresh noise in every step" if adds else "( with `eta` 0)? adds no noise")
        with pytest.raises(UsageError, match=f"`stop_noise_after`: {said}"):
            run(as_net(unet), make_sampler(name, DDPMScheduler()), steps=3, stop_noise_after=1)
        with pytest.raises(UsageError, match=f"`stop_noise_after`: {said}"):
            check_settings(Settings(scheduler=name, stop_noise_after=1))


def test_learned_variance_is_packed_for_ddpm_only() -> None:
    unet = _unet(out_channels=2)
    base = DDPMScheduler(num_train_timesteps=40, variance_type="learned_range")

    def net(x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        return Prediction(*unet(x, t).sample.chunk(2, dim=1))

    got = run(net, make_sampler("ddpm", base), steps=10)
    x, random = noise()
    base.set_timesteps(10)
    with torch.no_grad():
        for t in base.timesteps:
            x = base.step(unet(x, t).sample, t, x, generator=random).prev_sample
    torch.testing.assert_close(got, x, rtol=0, atol=0)
    for name in ("ddim", "dpm++", "euler"):  # 3-channel images would lose channels if these saw the variance
        assert run(net, make_sampler(name, base), steps=5).shape == x.shape
    with pytest.raises(UsageError, match="learned variance"):
        run(lambda x, t, c: Prediction(x), make_sampler("ddpm", base), steps=2)


# --- grids


def test_no_grid_ends_below_zero() -> None:
    for name in ("ddim", "ddpm"):
        sampler = make_sampler(name, DDPMScheduler(), spacing="trailing")
        for steps in range(1, 1001):
            grid = set_grid(sampler, steps)
            assert len(grid) == steps
            assert grid[-1] >= 0
            assert grid[0] == 999


def test_the_stock_trailing_grid_can_end_at_minus_one() -> None:
    stock = DDIMScheduler(timestep_spacing="trailing")
    stock.set_timesteps(61)
    assert stock.timesteps[-1] == -1
    with pytest.raises(UsageError, match="61"):
        set_grid(make_sampler("unipc", DDPMScheduler(), spacing="trailing"), 61)


@pytest.mark.parametrize("bad", [[], [5, 5], [3, 9], [1000, 3], [50, -1]])
def test_impossible_custom_grids(bad: list[int]) -> None:
    with pytest.raises(UsageError, match="`timesteps`"):
        set_grid(GridDDIM(), None, bad)


def test_impossible_steps() -> None:
    for steps in (0, 1001, None):
        with pytest.raises(UsageError, match="`steps`"):
            set_grid(GridDDIM(), steps)
    with pytest.raises(UsageError, match="only step would be at timestep 0"):
        set_grid(GridDDIM(timestep_spacing="leading"), 1)
    with pytest.raises(UsageError, match="no custom grids"):
        set_grid(make_sampler("unipc", DDPMScheduler()), None, [99, 3])


def test_a_flow_s_custom_grid_is_taken_as_it_is_given() -> None:
    shifted = make_sampler("flow_euler", FlowMatchEulerDiscreteScheduler(shift=3.0))
    assert set_grid(shifted, None, [900, 300, 10]) == pytest.approx([900, 300, 10])


# --- the whole way through the model and the task


def pictures(model: DDPM, seeds: list[int], settings: Settings) -> Tensor:
    scheduler, random = make_scheduler(model.scheduler, settings), generators(seeds)
    net, cond = conditioned(model, [None] * len(seeds), settings)
    x = pure_noise(scheduler, model.noise(random))
    for step in denoise(net, x, scheduler, cond, generators=random):
        x = step.x
    return finished(model, x)


@pytest.mark.parametrize(("name", "pipeline"), [("ddpm", DDPMPipeline), ("ddim", DDIMPipeline)])
def test_the_whole_way_is_equal_to_the_pipeline(name: str, pipeline: type) -> None:
    unet, base = _unet(), DDPMScheduler(num_train_timesteps=12)
    model = DDPM(DDPMNetwork(unet), base, RunMeta(resolution=8, channels=1), attention="sdpa")
    got = to_unit(pictures(model, SEEDS, Settings(scheduler=name, steps=6))).numpy()
    scheduler = base if name == "ddpm" else DDIMScheduler.from_config(base.config)
    pipe = pipeline(unet, scheduler)
    pipe.set_progress_bar_config(disable=True)
    assert (got == pipe(3, generators(SEEDS), num_inference_steps=6, output_type="np").images).all()


def test_pictures_that_are_not_finite_are_refused() -> None:
    unet = _unet()
    with torch.no_grad():
        unet.conv_out.bias.fill_(math.nan)
    model = DDPM(DDPMNetwork(unet), DDPMScheduler(), RunMeta(resolution=8, channels=1))
    with pytest.raises(NumericalError, match="finite"):
        pictures(model, [1], Settings(steps=2))


def test_ddim_steps_in_the_direction_of_the_clipped_x0():
    """A guided x0 network overshoots [-1, 1]; each step must still lie between the clipped x0 and its own noise."""
    from diffusers import DDPMScheduler

    base = DDPMScheduler(100, prediction_type="sample", clip_sample=True, timestep_spacing="trailing")
    sampler = make_sampler("ddim", base)
    set_grid(sampler, 10)
    target = torch.tensor([-1.0, -0.5, 0.5, 1.0]).reshape(1, 1, 2, 2)
    x = torch.randn(1, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    start = x
    for step in denoise(lambda x, t, cond: Prediction(3 * target), x, sampler):
        x = step.x
        if step.index + 1 < step.total:
            after = sampler.timesteps[step.index + 1]
            abar, first = base.alphas_cumprod[after], base.alphas_cumprod[sampler.timesteps[0]]
            clipped = (3 * target).clamp(-1, 1)
            noise = (start - first.sqrt() * clipped) / (1 - first).sqrt()
            torch.testing.assert_close(x, abar.sqrt() * clipped + (1 - abar).sqrt() * noise, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(x, (3 * target).clamp(-1, 1), atol=1e-5, rtol=1e-5)
