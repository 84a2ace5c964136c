"""Known pixels, RePaint's jumps, and both against diffusers' own pipeline where its grid is right."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler, RePaintPipeline, RePaintScheduler, UNet2DModel
from torch import Tensor

from diffkit.engine.constraints import composite, keep_known, shrink_mask
from diffkit.engine.levels import network_level
from diffkit.engine.sampler_names import MEMORYLESS, SAMPLERS
from diffkit.engine.samplers import make_sampler
from diffkit.engine.sampling import denoise, fresh_noise, generators, pure_noise, repaint_path, set_grid
from diffkit.errors import UsageError
from diffkit.types import Cond, Prediction
from tests.engine.test_levels import base_of, truth

HALF = torch.zeros(1, 1, 8, 8)
HALF[..., 4:] = 1.0
STRIP = torch.zeros(1, 1, 8, 8)
STRIP[..., 6:] = 1.0


def paint(net, scheduler, x0: Tensor, mask: Tensor, seeds: list[int], path=None, spare=False) -> Tensor:
    random = generators(seeds)
    x0 = x0.expand(len(seeds), -1, -1, -1)
    x = pure_noise(scheduler, fresh_noise(x0, random))
    hold = keep_known(scheduler, x0, mask, random)

    def constrain(x: Tensor, index: int, t: Tensor, after: Tensor | None) -> Tensor:
        if after is None and spare:
            fresh_noise(x, random)
        return hold(x, index, t, after)

    for step in denoise(net, x, scheduler, constrain=constrain, generators=random, path=path):
        x = step.x
    return x


@pytest.mark.parametrize(
    ("steps", "jump", "resample", "calls"), [(250, 10, 10, 2410), (50, 10, 10, 410), (20, 5, 2, 35), (7, 3, 1, 7)]
)
def test_the_path_is_that_of_the_paper_s_schedule(steps: int, jump: int, resample: int, calls: int) -> None:
    path = repaint_path(steps, jump, resample)
    assert len(path) == calls
    theirs = RePaintScheduler(num_train_timesteps=steps)
    theirs.set_timesteps(steps, jump, resample)
    visited, last = [], steps
    for t in theirs.timesteps.tolist():
        if t < last:
            visited.append(steps - 1 - t)
        last = t
    assert path == visited


def test_impossible_jumps() -> None:
    for jump, resample in ((0, 3), (3, 0)):
        with pytest.raises(UsageError, match="at least 1"):
            repaint_path(10, jump, resample)


def unet() -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("resample", [1, 3])
def test_parity_with_the_repaint_pipeline(resample: int) -> None:
    """At N = T, one level at a time and eta 0 both draw the same noise; diffusers' shift (n - 1 = 0) is then none.

    It draws noise after the last step as well, and multiplies it by 0: `spare` keeps the generators together.
    """
    network, image = unet(), torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    base = DDPMScheduler(num_train_timesteps=30)
    pipe = RePaintPipeline(network, RePaintScheduler(num_train_timesteps=30))
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        image, 1 - HALF.expand(1, 1, 8, 8), num_inference_steps=30, eta=0.0, jump_length=1, jump_n_sample=resample,
        generator=generators([4]), output_type="np",
    ).images  # fmt: skip
    scheduler = make_sampler("ddim", base)
    set_grid(scheduler, 30)
    net = lambda x, t, c: Prediction(network(x, t).sample)  # noqa: E731
    ours = paint(net, scheduler, image, HALF, [4], repaint_path(30, 1, resample), spare=True)
    ours = (ours / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    print("largest difference", float((ours - torch.from_numpy(theirs)).abs().max()))
    torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=0, atol=5e-6)


# --- an ideal denoiser of a set of pictures: what is known decides which one it is

PICTURES = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(3)).clamp(-1, 1)


def ideal(scheduler, kind: str):
    def net(x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        signal, noise = network_level(scheduler, t)
        distance = (x[:, None] - signal * PICTURES[None]).flatten(2).square().sum(-1)
        weights = torch.softmax(-distance / (2 * noise**2), dim=1)
        x0 = torch.einsum("bn,nchw->bchw", weights, PICTURES)
        return Prediction(truth(kind, signal, noise, x0, (x - signal * x0) / noise))

    return net


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_the_known_part_brings_the_rest(name: str) -> None:
    kind = "flow" if SAMPLERS[name].flow else "epsilon"
    path = repaint_path(20, 5, 4) if name in MEMORYLESS else None
    for picture in PICTURES:
        scheduler = make_sampler(name, base_of(kind))
        set_grid(scheduler, 20)
        if name in ("pndm", "lms"):
            with pytest.raises(UsageError, match="extrapolates"):
                keep_known(scheduler, picture[None], STRIP, generators([1]))
            continue
        got = paint(ideal(scheduler, kind), scheduler, picture[None], STRIP, [1, 2], path)
        assert torch.equal(got[..., :6], picture[None, :, :, :6].expand(2, -1, -1, -1))  # bit for bit
        torch.testing.assert_close(got, picture[None].expand(2, -1, -1, -1), rtol=0, atol=0.05)


def test_jumps_need_a_solver_without_memory() -> None:
    path = repaint_path(10, 3, 2)
    for name, row in SAMPLERS.items():
        if name in (*MEMORYLESS, "pndm", "lms"):
            continue
        scheduler = make_sampler(name, base_of("flow" if row.flow else "epsilon"))
        set_grid(scheduler, 10)
        with pytest.raises(UsageError, match="`resample` above 1"):
            paint(lambda x, t, c: Prediction(x), scheduler, PICTURES[:1], HALF, [1], path)


def test_every_call_of_the_path_is_a_step() -> None:
    scheduler = make_sampler("ddim", base_of("epsilon"))
    set_grid(scheduler, 10)
    seen: list[int] = []

    def net(x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        seen.append(int(t))
        return Prediction(x)

    random = generators([0])
    path = repaint_path(10, 4, 2)
    steps = list(denoise(net, PICTURES[:1], scheduler, generators=random, path=path))
    assert seen == [int(scheduler.timesteps[k]) for k in path]
    assert [s.index for s in steps] == list(range(len(path)))
    assert {s.total for s in steps} == {len(path)}


# --- masks


@pytest.mark.parametrize("value", [0.3, 0.5, 0.8])
def test_grey_is_repainted_in_the_last_part(value: float) -> None:
    scheduler = make_sampler("ddim", base_of("epsilon"))
    set_grid(scheduler, 10)
    random = generators([0])
    hold = keep_known(scheduler, torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), value), random)
    x, grid = torch.full((1, 1, 2, 2), 7.0), scheduler.timesteps
    free = [bool((hold(x, k, grid[k], grid[k + 1]) == 7.0).all()) for k in range(9)]
    assert free == [k + 1 > 10 * (1 - value) + 1e-9 for k in range(9)]
    torch.testing.assert_close(hold(x, 9, grid[9], None), 7.0 * torch.full((1, 1, 2, 2), value))


def test_composite_is_exact_where_the_mask_is() -> None:
    known, painted = torch.full((1, 1, 1, 3), 0.1), torch.tensor([[[[torch.nan, 0.7, 0.7]]]])
    got = composite(known, painted, torch.tensor([[[[0.0, 1.0, 0.5]]]]))
    assert got[0, 0, 0, 0] == known[0, 0, 0, 0]
    assert got[0, 0, 0, 1] == painted[0, 0, 0, 1]
    assert float(got[0, 0, 0, 2]) == pytest.approx(0.4)


def test_a_latent_that_covers_any_white_is_white() -> None:
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 3, 9] = 1.0
    small = shrink_mask(mask, (2, 2))
    assert small.flatten().tolist() == [0, 1, 0, 0]
    assert shrink_mask(mask, (16, 16)) is mask
