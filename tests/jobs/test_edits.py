"""The edits on every family alike, and against diffusers' own pipelines and analytic answers."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image
from torch import Tensor

from diffkit.engine.levels import network_level, out_of
from diffkit.engine.sampling import denoise, fresh_noise, generators
from diffkit.errors import UsageError
from diffkit.jobs.denoise import add_noise, best_blur, compare, gaussian_blur, stops_of
from diffkit.jobs.edit import check_mask, fit, fit_mask, picture_shape, psnr
from diffkit.jobs.inpaint import inpaint
from diffkit.jobs.inpaint import visits as inpaint_visits
from diffkit.jobs.interpolate import interpolate, slerp
from diffkit.jobs.invert import exact_sampler, invert, invert_steps, top_of
from diffkit.jobs.sample import Settings, generate
from diffkit.jobs.sdedit import sdedit
from diffkit.jobs.sdedit import visits as sdedit_visits
from diffkit.models.ddpm import PixelCodec, RunMeta
from diffkit.pictures.examples import example_image, example_mask
from diffkit.pictures.images import to_tensor
from diffkit.types import Cond, Prediction
from tests.support.families import FAMILIES, Counting, label_of

WITH_IMAGE = [family for family in FAMILIES if family != "sd9"]


def picture(model, seed: int = 0) -> Tensor:
    channels, height, width = picture_shape(model)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return fit(model, Image.fromarray(pixels.squeeze()))


def right_half(model) -> Tensor:
    _, height, width = picture_shape(model)
    return fit_mask(model, example_mask(width, height))


def settings(**changes) -> Settings:
    return Settings(steps=changes.pop("steps", 10), **changes)


def as_tensor(pictures: list[Image.Image]) -> Tensor:
    return to_tensor(pictures)


# --- image to image


@pytest.mark.parametrize("family", WITH_IMAGE)
def test_strength_one_is_plain_sampling_whatever_the_image(models, family: str) -> None:
    model, labels = models(family), [label_of(family)] * 2
    first, second = (sdedit(model, picture(model, k), [3, 4], labels, settings(), strength=1.0) for k in (0, 1))
    plain = [p.image for batch in generate(model, [3, 4], labels, settings()) for p in batch]
    for k in range(2):
        assert first.pictures[k].tobytes() == second.pictures[k].tobytes()
        assert torch.equal(as_tensor([first.pictures[k]]), as_tensor([second.pictures[k]]))
    torch.testing.assert_close(as_tensor(first.pictures), torch.stack(plain).clamp(-1, 1), rtol=0, atol=1 / 250)


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
        model.scheduler = type(model.scheduler).from_config(model.scheduler.config, num_train_timesteps=1000)
    image = picture(model)
    x0 = model.codec.encode(image)
    found = []
    model.codec = PixelCodec(x0.shape[-1], x0.shape[-1])  # what is finished is then the sample itself
    got = sdedit(
        Right(model, x0), x0[:, :3], [1], [label_of(family)], Settings(steps=50), strength=0.02,
        on_step=lambda step, _: found.append(step.x),
    ) if family != "sd" else sdedit_latent(Right(model, x0), x0, found)  # fmt: skip
    assert got.calls == len(found) == 1
    assert psnr(found[0], x0) >= 40


def sdedit_latent(model, x0: Tensor, found: list[Tensor]):
    model._model.screen = lambda images: (images[:, :3], [False])
    return sdedit(
        model, x0, [1], ["a cat"], Settings(steps=50), strength=0.02, on_step=lambda step, _: found.append(step.x)
    )


@pytest.mark.parametrize("family", ["plain", "classes", "if"])
def test_little_strength_keeps_the_image_with_any_network(models, family: str) -> None:
    """From the first level of all even a network that knows nothing does no harm."""
    model = models(family)
    if family != "if":
        model.scheduler = DDPMScheduler(clip_sample=True)
    image = picture(model)
    got = sdedit(model, image, [1], [label_of(family)], Settings(steps=50), strength=0.02)
    assert psnr(as_tensor(got.pictures), image) >= 40


@pytest.mark.parametrize("family", FAMILIES)
def test_calls_are_counted_and_one_a_step(models, family: str) -> None:
    model = Counting(models(family))
    seeds, labels, how = [1, 2, 3], [label_of(family)] * 3, settings(guidance=None if family == "plain" else 3.0)
    rows = 3 if family == "plain" else 6
    if family != "sd9":
        edit = sdedit(model, picture(model), seeds, labels, how, strength=0.5)
        assert model.rows == [rows] * 5
        assert edit.calls == 5
        assert edit.timesteps == sdedit_visits(model, how, 0.5)
    model.rows.clear()
    edit = inpaint(model, picture(model), right_half(model), seeds, labels, how, jump=3, resample=2)
    assert edit.timesteps == inpaint_visits(model, how, 3, 2)
    assert model.rows == [rows] * edit.calls == [rows] * (10 + 3 * 3)
    model.rows.clear()
    small = settings(guidance=how.guidance, max_batch=4)
    again = inpaint(model, picture(model), right_half(model), seeds, labels, small, jump=3, resample=2)
    assert max(model.rows) <= 4
    np.testing.assert_allclose(*(np.asarray(e.pictures[0]).astype(int) for e in (edit, again)), atol=1)


def test_a_kept_region_of_sdedit_is_kept(models) -> None:
    model = models("classes")
    image, mask = picture(model), right_half(model)
    got = as_tensor(sdedit(model, image, [1, 2], None, settings(), strength=0.9, mask=mask).pictures)
    width = image.shape[-1] // 2
    assert torch.equal(got[..., :width], image[..., :width].expand(2, -1, -1, -1))
    assert not torch.equal(got[..., width:], image[..., width:].expand(2, -1, -1, -1))


# --- inpainting


@pytest.mark.parametrize("family", FAMILIES)
def test_known_pixels_are_bit_exact(models, family: str) -> None:
    model = models(family)
    image, mask = picture(model), right_half(model)
    for how, options in ((settings(), {"resample": 2, "jump": 4}), (settings(scheduler=None, eta=0.0), {})):
        got = as_tensor(inpaint(model, image, mask, [5, 6], [label_of(family)] * 2, how, **options).pictures)
        known = mask.expand_as(got) == 0
        assert torch.equal(got[known], image.expand_as(got)[known])
        assert not torch.equal(got[0][~known[0]], got[1][~known[1]])


def test_a_black_mask_gives_the_image_and_a_white_one_plain_sampling(models) -> None:
    model = models("classes")
    image = picture(model)
    nothing = inpaint(model, image, torch.zeros(1, 1, 9, 9), [1], ["one"], settings())
    assert torch.equal(as_tensor(nothing.pictures), image)
    everything = inpaint(model, image, torch.ones(1, 1, 9, 9), [1], ["one"], settings(), resample=1)
    (plain,) = next(generate(model, [1], ["one"], settings()))
    torch.testing.assert_close(as_tensor(everything.pictures)[0], plain.image.clamp(-1, 1), rtol=0, atol=1 / 250)


def test_soft_masks_blend_in_the_end(models) -> None:
    model = models("plain")
    image = picture(model)
    soft = torch.linspace(0, 1, 9).expand(1, 1, 9, 9)
    hard = inpaint(model, image, (soft > 0).float(), [1], None, settings(), resample=1)
    got = as_tensor(inpaint(model, image, soft, [1], None, settings(), resample=1).pictures)
    assert torch.equal(got[..., 0], image[..., 0])
    assert (got - image).abs()[..., 1].mean() < (as_tensor(hard.pictures) - image).abs()[..., 1].mean()


def test_defaults_of_repaint(models) -> None:
    assert len(inpaint_visits(models("plain"), Settings(steps=20), 10, None)) == 20 + 9 * 10
    assert len(inpaint_visits(models("if"), Settings(steps=20), 10, None)) == 20
    assert len(inpaint_visits(models("plain"), Settings(steps=20, scheduler="dpm++"), 10, None)) == 20


def test_masks_are_checked(caplog: pytest.LogCaptureFixture) -> None:
    image = Image.new("RGB", (16, 8))
    with pytest.raises(UsageError, match="16x16 pixels, the image 16x8"):
        check_mask(Image.new("L", (16, 16)), image)
    with caplog.at_level(logging.WARNING, logger="diffkit"):
        check_mask(example_mask(16, 8), image)
        assert not caplog.records
        check_mask(Image.new("L", (16, 8), 0), image)
        check_mask(Image.new("L", (16, 8), 255), image)
    assert [("nothing is repainted" in r.message, "nothing of the image" in r.message) for r in caplog.records] == [
        (True, False), (False, True),
    ]  # fmt: skip


def test_a_hard_mask_stays_hard(models) -> None:
    model = models("plain")
    assert set(fit_mask(model, example_mask(100, 100)).unique().tolist()) == {0.0, 1.0}
    soft = fit_mask(model, Image.linear_gradient("L").resize((100, 100)))
    assert soft.unique().numel() > 5


# --- analytic denoisers


class Gaussian:
    """The ideal denoiser of N(mean, spread) in the place of a pixel model, 8x8 grey."""

    family, num_classes, id, device = "ddpm", 0, "gaussian", torch.device("cpu")
    shape, codec, meta = (1, 8, 8), PixelCodec(8, 8), RunMeta(resolution=8, channels=1, conditioning="none")

    def __init__(self, mean: Tensor, spread: float, kind: str = "epsilon") -> None:
        self.mean, self.spread = mean, spread
        self.scheduler = DDPMScheduler(prediction_type=kind, clip_sample=False, timestep_spacing="trailing")

    def noise(self, made: list[torch.Generator]) -> Tensor:
        return fresh_noise(torch.empty(len(made), *self.shape), made)

    def encode(self, labels: list) -> Cond:
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
    signal, noise = network_level(scheduler, scheduler.timesteps[top_of(scheduler)])
    expected = signal * MEAN + math.sqrt(signal**2 * 0.04 + noise**2) * (image - MEAN) / 0.2
    torch.testing.assert_close(latent, expected, rtol=0, atol=0.05)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_refinement_makes_the_round_trip_exact(kind: str) -> None:
    model = Gaussian(MEAN, 0.04, kind)
    image = (MEAN + 0.2 * fresh_noise(MEAN, generators([1]))).clamp(-1, 1)
    found = [invert(model, image, [0], None, Settings(steps=20), refine=k).scores["round_trip_psnr"] for k in (0, 2, 6)]
    assert found[0] < found[1] < found[2]
    assert found[2] > 60


def test_pictures_of_a_gaussian_have_its_mean_and_spread() -> None:
    """RePaint's jumps and SDEdit's start must leave the law of the pictures as it is (few steps would narrow it)."""
    model = Gaussian(MEAN, 0.04)
    seeds = list(range(64))
    how = Settings(steps=250, scheduler="ddpm")
    for edit in (
        inpaint(model, MEAN, torch.ones(1, 1, 8, 8), seeds, None, how, jump=10, resample=3),
        sdedit(model, MEAN, seeds, None, how, strength=1.0),
    ):
        got = as_tensor(edit.pictures)
        assert float((got.mean(0) - MEAN[0]).abs().mean()) < 0.03
        assert float((got - MEAN).std()) == pytest.approx(0.2, rel=0.12)


def test_denoising_a_gaussian_one_step_is_the_best_there_is() -> None:
    """The mean of the posterior is the least square error of all; blur and samples cannot beat it."""
    model = Gaussian(MEAN, 0.04)
    image = (MEAN + 0.2 * fresh_noise(MEAN, generators([9]))).clamp(-1, 1)
    scores = compare(model, image, list(range(8)), None, Settings(), timesteps=[300, 700], stride=37).scores["psnr"]
    for t in ("300", "700"):
        assert scores["one_step"][t] > scores["iterative"][t]
        assert scores["one_step"][t] > scores["blur"][t]
    assert scores["one_step"]["300"] > scores["one_step"]["700"]


# --- degradation


def test_the_forward_strip_is_the_formula() -> None:
    scheduler = DDPMScheduler()
    edit = add_noise(MEAN, scheduler, [0, 500, 999], [4])
    assert edit.scores["signal"]["500"] == pytest.approx(float(scheduler.alphas_cumprod[500].sqrt()))
    with pytest.raises(UsageError, match="--timesteps"):
        add_noise(MEAN, scheduler, [1000], [4])


def test_the_iterative_grid_takes_any_stride() -> None:
    model = Gaussian(MEAN, 0.04)
    assert stops_of(model, Settings(), [100], 30) == [100, 100, 70, 40, 10]
    assert stops_of(model, Settings(), [5, 0], 7) == [5, 5, 0, 0]
    with pytest.raises(UsageError, match="--stride"):
        stops_of(model, Settings(), [100], 0)


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
    model = models(family)
    levels = [2, 15] if family in ("plain", "classes", "flow") else [100, 700]
    edit = compare(
        model, picture(model), [1, 2], [label_of(family)] * 2, Settings(), timesteps=levels, stride=levels[1] // 3
    )
    scores = edit.scores["psnr"]
    assert {name: list(by_t) for name, by_t in scores.items()} == {
        name: [str(t) for t in levels] for name in ("blur", "one_step", "iterative")
    }
    assert all(math.isfinite(v) for by_t in scores.values() for v in by_t.values())
    assert edit.timesteps == stops_of(model, Settings(), levels, levels[1] // 3)


# --- inversion and walks


@pytest.mark.parametrize("family", WITH_IMAGE)
def test_every_family_inverts(models, family: str) -> None:
    model = Counting(models(family))
    edit = invert(model, picture(model), [0], label_of(family), settings(), edit=label_of(family), refine=2)
    assert len(model.rows) == edit.calls
    assert [name for name, _ in edit.sheet][::2] == ["input", *([label_of(family)] if label_of(family) else [])]
    assert math.isfinite(edit.scores["round_trip_psnr"])


def test_inversion_refuses_what_cannot_be_walked_back() -> None:
    model = Gaussian(MEAN, 0.04)
    for how in (Settings(scheduler="dpm++"), Settings(eta=0.5)):
        with pytest.raises(UsageError, match="inversion"):
            invert(model, MEAN, [0], None, how)


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
    walk = interpolate(model, (7, 3), label, settings(), frames=4)
    plain = [p.image for batch in generate(model, [7, 3], [label] * 2, settings()) for p in batch]
    ends = as_tensor([walk.frames[0], walk.frames[3]])
    torch.testing.assert_close(ends, torch.stack(plain).clamp(-1, 1), rtol=0, atol=1 / 250)
    assert len(walk.frames) == 6  # there and back
    with pytest.raises(UsageError, match="--frames"):
        interpolate(model, (7, 3), label, settings(), frames=1)


def test_a_walk_between_images_ends_at_them() -> None:
    model = Gaussian(MEAN, 0.04)
    ends = tuple((MEAN + 0.2 * fresh_noise(MEAN, generators([k]))).clamp(-1, 1) for k in (1, 2))
    walk = interpolate(model, ends, None, Settings(steps=20), frames=3, refine=6)
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
