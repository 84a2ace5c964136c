"""The edits on every family alike, and against analytic answers."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image
from torch import Tensor

from diffkit.engine.levels import network_level, out_of
from diffkit.engine.sampling import denoise, fresh_noise, generators
from diffkit.engine.settings import Settings
from diffkit.errors import UsageError
from diffkit.jobs.anagram import Anagram
from diffkit.jobs.base import build
from diffkit.jobs.denoise import Denoise, best_blur, gaussian_blur
from diffkit.jobs.images import fit_image
from diffkit.jobs.inpaint import Inpaint
from diffkit.jobs.interpolate import Interpolate, slerp
from diffkit.jobs.inversion import exact_sampler, first_level, invert_steps
from diffkit.jobs.invert import Invert
from diffkit.jobs.noise import Noise
from diffkit.jobs.options import Again, Run
from diffkit.jobs.sample import Sample
from diffkit.jobs.sdedit import SDEdit
from diffkit.models.base import BaseModel
from diffkit.models.ddpm import PixelCodec
from diffkit.pictures.examples import example_image, example_mask
from diffkit.pictures.masks import cut_mask
from diffkit.pictures.quality import psnr
from diffkit.pictures.tensors import to_tensor
from diffkit.types import Cond, ModelInfo, Network, Prediction
from tests.support.drawing import Steps, do, make_job
from tests.support.families import FAMILIES, Counting, label_of

WITH_IMAGE = [family for family in FAMILIES if family != "sd9"]


def picture(model, seed: int = 0) -> Tensor:
    (height, width), channels = model.info.size, model.info.channels
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return fit_image(Image.fromarray(pixels.squeeze()), model)


def right_half(model) -> Tensor:
    height, width = model.info.size
    return to_tensor(example_mask(width, height))


def plain_pictures(model, seeds: list[int], label: str | None, **fields) -> Tensor:
    given = {} if label is None else {"prompt" if model.info.text else "classes": [label]}
    job = make_job(Sample, model, **given, **fields)
    from diffkit.jobs.batch import Batch
    from diffkit.jobs.run import draw

    return to_tensor(draw(job, model, Batch(seeds, [label] * len(seeds), job.settings)).pictures)


def as_tensor(pictures: list[Image.Image]) -> Tensor:
    return to_tensor(pictures)


def rescheduled(model, **changes):
    """The model with another scheduler."""
    base = model.info.scheduler
    model.info = replace(model.info, scheduler=type(base).from_config(base.config, **changes))
    return model


# --- image to image


@pytest.mark.parametrize("family", WITH_IMAGE)
def test_strength_one_is_plain_sampling_whatever_the_image(models, family: str) -> None:
    model, label = models(family), label_of(family)
    first, second = (do(SDEdit, model, [3, 4], label, image=picture(model, k), steps=10, strength=1.0) for k in (0, 1))
    plain = plain_pictures(model, [3, 4], label, steps=10)
    assert torch.equal(first.tensor, second.tensor)
    torch.testing.assert_close(first.tensor, plain, rtol=0, atol=1 / 250)


class Right(Counting):
    """A model whose network is right about an image, up to an error of a tenth of the noise."""

    def __init__(self, model, x0: Tensor) -> None:
        super().__init__(model)
        self.x0 = x0

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        wrong = 0.1 * network_level(self.scheduler, t)[1] * fresh_noise(x, generators([9] * len(x)))
        return Prediction(out_of(self.x0 + wrong, x, t, self.scheduler))


@pytest.mark.parametrize("family", WITH_IMAGE)
def test_little_strength_keeps_the_image(models, family: str) -> None:
    """One of 50 steps, by a good network: as near as 40 dB; in latents it is those that count."""
    model = models(family)
    if family in ("classes", "plain", "flow"):  # T is 20 there
        model = rescheduled(model, num_train_timesteps=1000)
    x0 = model.codec.encode(picture(model))
    steps = Steps()
    got = do(SDEdit, Right(model, x0), [1], label_of(family), steps, image=picture(model), steps=50, strength=0.02)
    assert got.calls == len(steps.all) == 1
    assert psnr(steps.all[0].x, x0) >= 40


@pytest.mark.parametrize("family", ["plain", "classes", "if"])
def test_little_strength_keeps_the_image_with_any_network(models, family: str) -> None:
    """From the first level of all even a network that knows nothing does no harm."""
    model = models(family)
    if family != "if":
        model.info = replace(model.info, scheduler=DDPMScheduler(clip_sample=True))
    image = picture(model)
    got = do(SDEdit, model, [1], label_of(family), image=image, steps=50, strength=0.02)
    assert psnr(got.tensor, image) >= 40


@pytest.mark.parametrize("family", FAMILIES)
def test_calls_are_counted_and_one_a_step(models, family: str) -> None:
    model = Counting(models(family))
    seeds, label, scale = [1, 2, 3], label_of(family), None if family == "plain" else 3.0
    rows = 3 if family == "plain" else 6
    common = {"image": picture(model), "steps": 10, "guidance": scale}
    if family != "sd9":
        edit = do(SDEdit, model, seeds, label, strength=0.5, **common)
        assert model.rows == [rows] * 5
        assert edit.calls == len(edit.timesteps) == 5
    model.rows.clear()
    painting = {**common, "mask": right_half(model), "jump": 3, "resample": 2}
    edit = do(Inpaint, model, seeds, label, **painting)
    assert model.rows == [rows] * edit.calls == [rows] * (10 + 3 * 3)
    model.rows.clear()
    again = do(Inpaint, model, seeds, label, **painting, max_batch=4)
    assert max(model.rows) <= 4
    np.testing.assert_allclose(*(np.asarray(e.pictures[0]).astype(int) for e in (edit, again)), atol=1)


def test_a_kept_region_of_sdedit_is_kept(models) -> None:
    model = models("classes")
    image = picture(model)
    got = do(SDEdit, model, [1, 2], image=image, steps=10, strength=0.9, mask=right_half(model)).tensor
    width = image.shape[-1] // 2
    assert torch.equal(got[..., :width], image[..., :width].expand(2, -1, -1, -1))
    assert not torch.equal(got[..., width:], image[..., width:].expand(2, -1, -1, -1))


# --- inpainting


@pytest.mark.parametrize("family", FAMILIES)
def test_known_pixels_are_bit_exact(models, family: str) -> None:
    model = models(family)
    image, mask = picture(model), right_half(model)
    for options in ({"resample": 2, "jump": 4}, {}):
        got = do(Inpaint, model, [5, 6], label_of(family), image=image, mask=mask, steps=10, **options).tensor
        known = mask.expand_as(got) == -1
        assert torch.equal(got[known], image.expand_as(got)[known])
        assert not torch.equal(got[0][~known[0]], got[1][~known[1]])


def test_a_black_mask_gives_the_image_and_a_white_one_plain_sampling(models) -> None:
    model = models("classes")
    image = picture(model)
    nothing = do(Inpaint, model, [1], "one", image=image, mask=-torch.ones(1, 1, 9, 9), steps=10)
    assert torch.equal(nothing.tensor, image)
    everything = do(Inpaint, model, [1], "one", image=image, mask=torch.ones(1, 1, 9, 9), steps=10, resample=1)
    torch.testing.assert_close(everything.tensor, plain_pictures(model, [1], "one", steps=10), rtol=0, atol=1 / 250)


def test_soft_masks_blend_in_the_end(models) -> None:
    model = models("plain")
    image = picture(model)
    soft = torch.linspace(-1, 1, 9).expand(1, 1, 9, 9)
    hard, got = (
        do(Inpaint, model, [1], image=image, mask=mask, steps=10, resample=1).tensor
        for mask in ((soft > -1).float() * 2 - 1, soft)
    )
    assert torch.equal(got[..., 0], image[..., 0])
    assert (got - image).abs()[..., 1].mean() < (hard - image).abs()[..., 1].mean()


@pytest.mark.parametrize(
    ("family", "fields", "calls"), [("plain", {}, 20 + 9 * 10), ("if", {}, 20), ("plain", {"scheduler": "dpm++"}, 20)]
)
def test_defaults_of_repaint(models, family: str, fields: dict[str, str], calls: int) -> None:
    info = models(family).info
    assert len(build(Inpaint, {"steps": 20, **fields}).fitted(info).sampling_timesteps(info)) == calls


def test_steps_are_those_that_suit_the_model(models) -> None:
    """Where a family says them: of every command, with any sampler, and never above what it has of levels."""
    own, info = models("flow").info, replace(models("flow").info, steps=7)
    for cls, fields in (
        (Sample, {}),
        (SDEdit, {}),
        (Inpaint, {}),
        (Invert, {}),
        (Anagram, {"c1": "one", "c2": "zero"}),
    ):
        assert build(cls, fields).fitted(info).steps == 7 != build(cls, fields).fitted(own).steps
        assert build(cls, {"steps": 3, **fields}).fitted(info).steps == 3
        assert build(cls, fields).fitted(replace(info, steps=50)).steps == info.timesteps
    assert build(Sample, {"scheduler": "flow_heun"}).fitted(info).steps == 7
    assert build(Sample, {"timesteps": "20,10,5"}).fitted(info).steps is None


def test_masks_are_checked() -> None:
    image = Image.new("RGB", (16, 8))
    with pytest.raises(UsageError, match="16x16 pixels, the image 16x8"):
        build(Inpaint, {"image": image, "mask": Image.new("L", (16, 16))})
    for mask, said in (
        (example_mask(16, 8), []),
        (Image.new("L", (16, 8), 0), ["nothing is repainted"]),
        (Image.new("L", (16, 8), 255), ["nothing of the image is kept"]),
    ):
        warned = build(Inpaint, {"image": image, "mask": mask}).warnings()
        assert [text in line for text, line in zip(said, warned, strict=True)] == [True] * len(said)


def test_a_hard_mask_stays_hard(models) -> None:
    size = models("plain").info.size
    assert set(cut_mask(example_mask(100, 100), *size).unique().tolist()) == {0.0, 1.0}
    assert cut_mask(Image.linear_gradient("L").resize((100, 100)), *size).unique().numel() > 5


# --- analytic denoisers


class Gaussian(BaseModel):
    """The ideal denoiser of N(mean, spread) in the place of a pixel model, 8x8 grey."""

    device, codec, parameters = torch.device("cpu"), PixelCodec(8, 8), 0

    def __init__(self, mean: Tensor, spread: float, kind: str = "epsilon") -> None:
        self.mean, self.spread = mean, spread
        scheduler = DDPMScheduler(prediction_type=kind, clip_sample=False, timestep_spacing="trailing")
        self.info = ModelInfo("gaussian", None, "ddpm", "", 1, (8, 8), (1, 8, 8), Network("", "UNet2DModel"), scheduler)

    def encode(self, prompts: list) -> Cond:
        return Cond()

    def uncond(self, batch: int) -> Cond:
        return Cond()

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        signal, noise = network_level(self.scheduler, t)
        gain = signal * self.spread / (signal**2 * self.spread + noise**2)
        x0 = self.mean + gain * (x - signal * self.mean)
        return Prediction(out_of(x0, x, t, self.scheduler))


MEAN = torch.linspace(-0.5, 0.5, 64).reshape(1, 1, 8, 8)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_inversion_finds_the_gaussian_s_own_latent(kind: str) -> None:
    """DDIM's continuous flow takes mean + sqrt(spread) z to signal mean + sqrt(signal^2 spread + noise^2) z."""
    model = Gaussian(MEAN, 0.04, kind)
    image = MEAN + 0.2 * fresh_noise(MEAN, generators([1])).clamp(-1.5, 1.5)
    scheduler = exact_sampler(model.scheduler, Settings(steps=1000))
    latent = invert_steps(model, image, scheduler, Cond(), refine=1)
    signal, noise = network_level(scheduler, scheduler.timesteps[first_level(scheduler)])
    expected = signal * MEAN + math.sqrt(signal**2 * 0.04 + noise**2) * (image - MEAN) / 0.2
    torch.testing.assert_close(latent, expected, rtol=0, atol=0.05)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_refinement_makes_the_round_trip_exact(kind: str) -> None:
    model = Gaussian(MEAN, 0.04, kind)
    image = (MEAN + 0.2 * fresh_noise(MEAN, generators([1]))).clamp(-1, 1)
    found = [do(Invert, model, image=image, steps=20, refine=k).scores["round_trip_psnr"] for k in (0, 2, 6)]
    assert found[0] < found[1] < found[2]
    assert found[2] > 60


def test_pictures_of_a_gaussian_have_its_mean_and_spread() -> None:
    """RePaint's jumps and SDEdit's start must leave the law of the pictures as it is (few steps would narrow it)."""
    model = Gaussian(MEAN, 0.04)
    seeds = list(range(64))
    how = {"image": MEAN, "steps": 250, "scheduler": "ddpm"}
    for edit in (
        do(Inpaint, model, seeds, mask=torch.ones(1, 1, 8, 8), jump=10, resample=3, **how),
        do(SDEdit, model, seeds, strength=1.0, **how),
    ):
        assert float((edit.tensor.mean(0) - MEAN[0]).abs().mean()) < 0.03
        assert float((edit.tensor - MEAN).std()) == pytest.approx(0.2, rel=0.12)


def test_denoising_a_gaussian_one_step_is_the_best_there_is() -> None:
    """The mean of the posterior is the least square error of all; blur and samples cannot beat it."""
    model = Gaussian(MEAN, 0.04)
    image = (MEAN + 0.2 * fresh_noise(MEAN, generators([9]))).clamp(-1, 1)
    scores = do(Denoise, model, list(range(8)), image=image, timesteps=[300, 700], stride=37).scores["psnr"]
    for t in ("300", "700"):
        assert scores["one_step"][t] > scores["iterative"][t]
        assert scores["one_step"][t] > scores["blur"][t]
    assert scores["one_step"]["300"] > scores["one_step"]["700"]


# --- degradation


def test_the_forward_strip_is_the_formula() -> None:
    done = build(Noise, {"timesteps": [0, 500, 999], "size": 8}).execute(Run(files=False), Again())
    assert done.payload["signal"]["500"] == pytest.approx(float(DDPMScheduler().alphas_cumprod[500].sqrt()))
    with pytest.raises(UsageError, match="`timesteps`"):
        build(Noise, {"timesteps": [1000]}).execute(Run(files=False), Again())


def test_the_iterative_grid_takes_any_stride() -> None:
    info = Gaussian(MEAN, 0.04).info
    for levels, stride, expected in (([100], 30, [100, 100, 70, 40, 10]), ([5, 0], 7, [5, 5, 0, 0])):
        job = build(Denoise, {"timesteps": levels, "stride": stride}).fitted(info)
        assert job.sampling_timesteps(info) == expected
    with pytest.raises(UsageError, match="`stride`"):
        build(Denoise, {"stride": 0})


@pytest.mark.parametrize("count", [20, 500, 1000])
def test_the_levels_left_out_are_quarters_of_the_model_s(count: int) -> None:
    model = Gaussian(MEAN, 0.04)
    model.info = replace(model.info, scheduler=DDPMScheduler(num_train_timesteps=count, clip_sample=False))
    job = make_job(Denoise, model, image=MEAN, stride=count // 4)
    assert job.timesteps == ",".join(str(count * k // 4) for k in (1, 2, 3))
    assert len(do(Denoise, model, image=MEAN, stride=count // 4).scores["psnr"]["blur"]) == 3


def test_strided_ddpm_is_the_formula_between_grid_points() -> None:
    """MATHS: x' = sqrt(abar') beta/(1-abar) x0 + sqrt(alpha)(1-abar')/(1-abar) x, with alpha = abar/abar'."""
    from diffkit.engine.samplers import make_sampler

    base = DDPMScheduler(clip_sample=False)
    scheduler = make_sampler("ddpm", base)
    scheduler.quiet = True
    x, x0 = torch.full((1, 1, 2, 2), 0.7), torch.full((1, 1, 2, 2), 0.2)
    net = lambda x, t, c: Prediction(out_of(x0, x, t, base))  # noqa: E731
    step = next(denoise(net, x, scheduler, timesteps=[500, 137], generators=generators([0])))
    abar, after = base.alphas_cumprod[500], base.alphas_cumprod[137]
    alpha = abar / after
    expected = after.sqrt() * (1 - alpha) / (1 - abar) * x0 + alpha.sqrt() * (1 - after) / (1 - abar) * x
    torch.testing.assert_close(step.x, expected)


def test_the_blur_keeps_the_mean_and_the_baseline_is_at_its_best() -> None:
    flat = torch.full((1, 2, 9, 9), 0.3)
    torch.testing.assert_close(gaussian_blur(flat, 2.0), flat)
    spot = torch.zeros(1, 1, 21, 21)
    spot[..., 10, 10] = 1.0
    blurred = gaussian_blur(spot, 2.0)
    assert float(blurred.sum()) == pytest.approx(1.0, abs=1e-5)
    place = torch.arange(21.0) - 10
    assert float((blurred.sum(-2) * place**2).sum()) == pytest.approx(4.0, rel=0.03)
    noisy = MEAN + 0.3 * fresh_noise(MEAN, generators([1]))
    assert psnr(best_blur(noisy, MEAN), MEAN) > psnr(noisy, MEAN) + 3


@pytest.mark.parametrize("family", WITH_IMAGE)
def test_every_family_denoises(models, family: str) -> None:
    model = Counting(models(family))
    levels = [2, 15] if family in ("plain", "classes", "flow") else [100, 700]
    edit = do(Denoise, model, [1, 2], label_of(family), image=picture(model), timesteps=levels, stride=levels[1] // 3)
    scores = edit.scores["psnr"]
    assert {name: list(by_t) for name, by_t in scores.items()} == {
        name: [str(t) for t in levels] for name in ("blur", "one_step", "iterative")
    }
    assert all(math.isfinite(v) for by_t in scores.values() for v in by_t.values())
    assert len(model.rows) == edit.calls


# --- inversion and walks


@pytest.mark.parametrize("family", WITH_IMAGE)
def test_every_family_inverts(models, family: str) -> None:
    model, label = Counting(models(family)), label_of(family)
    back = {} if label is None else {"edit_prompt" if model.info.text else "edit_class": label}
    edit = do(Invert, model, [0], label, image=picture(model), steps=10, refine=2, **back)
    assert len(model.rows) == edit.calls
    assert [name for name, _ in edit.sheet][::2] == ["input", *([label] if label else [])]
    assert math.isfinite(edit.scores["round_trip_psnr"])


@pytest.mark.parametrize("fields", [{"scheduler": "dpm++"}, {"eta": 0.5}])
def test_inversion_refuses_what_cannot_be_walked_back(fields: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="inversion"):
        make_job(Invert, Gaussian(MEAN, 0.04), image=MEAN, **fields)


def test_the_arc_keeps_the_length_and_its_ends() -> None:
    a, b = (fresh_noise(torch.empty(1, 3, 32, 32), generators([k])) for k in (1, 2))
    assert torch.equal(slerp(a, b, 0.0), a)
    assert torch.equal(slerp(a, b, 1.0), b)
    half = slerp(a, b, 0.5)
    assert float(half.std()) == pytest.approx(1.0, abs=0.05)
    b = b / b.norm() * a.norm()
    for weight in (0.25, 0.5, 0.9):
        point = slerp(a, b, weight)
        assert float(point.norm()) == pytest.approx(float(a.norm()), rel=1e-4)
        angles = [float(torch.arccos((point * end).sum() / end.norm() / point.norm())) for end in (a, b)]
        assert angles[0] / sum(angles) == pytest.approx(weight, abs=1e-3)
    torch.testing.assert_close(slerp(a, a, 0.3), a)


@pytest.mark.parametrize("family", ["classes", "flow", "sd"])
def test_a_walk_ends_at_the_seeds_own_pictures(models, family: str) -> None:
    model, label = models(family), label_of(family)
    walk = do(Interpolate, model, [7], label, to_seed=3, steps=10, frames=4)
    ends = as_tensor([walk.frames[0], walk.frames[3]])
    torch.testing.assert_close(ends, plain_pictures(model, [7, 3], label, steps=10), rtol=0, atol=1 / 250)
    assert len(walk.frames) == 6  # there and back
    with pytest.raises(UsageError, match="`frames`"):
        build(Interpolate, {"frames": 1})


def test_a_walk_between_images_ends_at_them() -> None:
    model = Gaussian(MEAN, 0.04)
    ends = tuple((MEAN + 0.2 * fresh_noise(MEAN, generators([k]))).clamp(-1, 1) for k in (1, 2))
    walk = do(Interpolate, model, image=ends[0], image_b=ends[1], steps=20, frames=3, refine=6)
    for k, end in zip((0, 2), ends, strict=True):
        assert psnr(as_tensor([walk.frames[k]]), end) > 45


# --- examples


def test_the_examples_are_what_they_say_they_are() -> None:
    digit, heart, mask = example_image(1, 28), example_image(3, 64), example_mask(28, 28)
    assert (digit.mode, digit.size, heart.mode, heart.size) == ("L", (28, 28), "RGB", (64, 64))
    assert 0.05 < np.asarray(digit).mean() / 255 < 0.4
    assert tuple(np.asarray(heart)[0, 0]) == (255, 255, 255)
    assert np.asarray(heart)[32, 32, 0] > np.asarray(heart)[32, 32, 1] + 100
    assert np.asarray(mask)[:, :14].max() == 0
    assert np.asarray(mask)[:, 14:].min() == 255
    assert example_image(1, 28).tobytes() == digit.tobytes()
