"""Stable Diffusion against diffusers' own pipelines, on tiny random weights: same seed, same steps, fp32."""

from __future__ import annotations

import logging

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionUpscalePipeline,
)
from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_inpaint
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from diffkit.engine.guidance import cfg
from diffkit.engine.sampling import denoise, generators, pure_noise, set_grid
from diffkit.errors import ModelError, UsageError
from diffkit.models import load
from diffkit.models.stable_diffusion import StableDiffusion
from diffkit.types import Cond
from tests.models.conftest import TINY_VISION, drop_tensor, make_sd, sd_parts, text_unet, write_checker, write_index

PROMPT, NEGATIVE = "a photo of a cat", "blurry"


def stock(cls, parts: dict, **more):
    pipe = cls(**parts, **more, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample(
    model: StableDiffusion, scheduler, scale: float, steps: int, seeds: list[int], cond: Cond | None = None
) -> Tensor:
    made = generators(seeds)
    set_grid(scheduler, steps)
    x = pure_noise(scheduler, model.noise(made))
    net = cfg(model, model.encode([NEGATIVE]), scale)
    for step in denoise(net, x, scheduler, model.encode([PROMPT]).expand(len(seeds)), generators=made):
        x = step.x
    return model.codec.decode(x)


def images(size: int = 16, batch: int = 2) -> Tensor:
    """Pictures whose way to [0, 1] and back is exact."""
    return torch.randint(0, 129, (batch, 3, size, size), generator=torch.Generator().manual_seed(9)) / 64 - 1


def run(pipe, seeds: list[int], **options) -> Tensor:
    options = {"negative_prompt": [NEGATIVE] * len(seeds), "num_inference_steps": 5, "output_type": "pt"} | options
    return pipe([PROMPT] * len(seeds), generator=generators(seeds), **options).images * 2 - 1


def close(ours: Tensor, theirs: Tensor, atol: float = 1e-6) -> None:
    print("largest difference", float((ours.clamp(-1, 1) - theirs).abs().max()))
    torch.testing.assert_close(ours.clamp(-1, 1), theirs, rtol=0, atol=atol)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("scale", [7.5, 1.0])
def test_parity_text_to_image(tmp_path, embeddings, prediction, scale):
    parts = make_sd(tmp_path / "m", prediction=prediction)
    model = load(str(tmp_path / "m"), device="cpu")
    theirs = run(stock(StableDiffusionPipeline, parts), [3, 4], guidance_scale=scale)
    close(sample(model, model.scheduler, scale, 5, [3, 4]), theirs)


@pytest.mark.parametrize(
    "scheduler", [PNDMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler, DDPMScheduler]
)
def test_parity_with_other_schedulers(tmp_path, embeddings, scheduler):
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    config |= {"skip_prk_steps": True} if scheduler is PNDMScheduler else {}
    config |= {"clip_sample": False} if scheduler is DDPMScheduler else {}
    parts = make_sd(tmp_path / "m", scheduler=scheduler(**config))
    model = load(str(tmp_path / "m"), device="cpu")
    assert type(model.scheduler) is scheduler
    theirs = run(stock(StableDiffusionPipeline, parts), [3, 4], guidance_scale=5.0)
    close(sample(model, model.scheduler, 5.0, 5, [3, 4]), theirs)


@pytest.mark.parametrize("strength", [0.4, 0.8])
def test_parity_image_to_image(tmp_path, embeddings, strength):
    parts = make_sd(tmp_path / "m")
    model, seeds, steps = load(str(tmp_path / "m"), device="cpu"), [3, 4], 5
    pipe = stock(StableDiffusionImg2ImgPipeline, parts)
    theirs = run(pipe, seeds, image=images() / 2 + 0.5, strength=strength, guidance_scale=7.5)

    made = generators(seeds)
    latents = model.codec.encode(images(), made)
    set_grid(model.scheduler, steps)
    start = steps - int(steps * strength)
    t = model.scheduler.timesteps[start : start + 1]
    x = model.scheduler.add_noise(latents, model.noise(made), t)
    net = cfg(model, model.encode([NEGATIVE]), 7.5)
    for step in denoise(net, x, model.scheduler, model.encode([PROMPT]).expand(2), start=start, generators=made):
        x = step.x
    close(model.codec.decode(x), theirs)


def test_parity_nine_channel_inpainting(tmp_path, embeddings, monkeypatch):
    parts = make_sd(tmp_path / "m", in_channels=9)
    # The pipeline draws from the VAE's posterior; we take its mean, so that the picture alone decides.
    monkeypatch.setattr(pipeline_stable_diffusion_inpaint, "retrieve_latents", lambda out, **_: out.latent_dist.mean)
    model, seeds = load(str(tmp_path / "m"), device="cpu"), [3, 4]
    assert model.info.source == "mask"
    mask = torch.zeros(2, 1, 16, 16)
    mask[:, :, 4:12, 6:] = 1.0
    pipe = stock(StableDiffusionInpaintPipeline, parts)
    theirs = run(pipe, seeds, image=images() / 2 + 0.5, mask_image=mask, height=16, width=16, guidance_scale=7.5)

    made = generators(seeds)
    set_grid(model.scheduler, 5)
    x = pure_noise(model.scheduler, model.noise(made))
    extra = model.image_cond(images(), made, mask=mask)
    net = cfg(model, model.encode([NEGATIVE]).join(extra), 7.5)
    for step in denoise(net, x, model.scheduler, model.encode([PROMPT]).join(extra), generators=made):
        x = step.x
    close(model.codec.decode(x), theirs)


def test_parity_upscaler(tmp_path, embeddings):
    """DeepFloyd's stage III: seven input channels, noise level as class, v-prediction."""
    parts = sd_parts(tmp_path / "m")
    parts["unet"] = text_unet(in_channels=7, num_class_embeds=50)
    parts["scheduler"] = DDIMScheduler(prediction_type="v_prediction", clip_sample=False)
    parts["low_res_scheduler"] = DDPMScheduler(beta_schedule="scaled_linear")
    write_index(tmp_path / "m", "StableDiffusionUpscalePipeline", parts)
    model, seeds = load(str(tmp_path / "m"), device="cpu").at(8, 8), [3, 4]
    assert (model.info.source, model.info.input_multiple, model.info.guidance) == ("small", 8, 9.0)
    pipe = StableDiffusionUpscalePipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    theirs = run(pipe, seeds, image=images(8) / 2 + 0.5, noise_level=20, guidance_scale=9.0)

    made = generators(seeds)
    extra = model.image_cond(images(8), made, noise_level=20)
    set_grid(model.scheduler, 5)
    x = pure_noise(model.scheduler, model.noise(made))
    net = cfg(model, model.encode([NEGATIVE]).join(extra), 9.0)
    for step in denoise(net, x, model.scheduler, model.encode([PROMPT]).join(extra), generators=made):
        x = step.x
    close(model.codec.decode(x), theirs)
    with pytest.raises(UsageError, match=r"outside 0\.\.49"):
        model.image_cond(images(8), made, noise_level=50)


def test_one_image_does_not_depend_on_the_batch(tmp_path, embeddings):
    make_sd(tmp_path / "m")
    model = load(str(tmp_path / "m"), device="cpu")
    together = sample(model, model.scheduler, 7.5, 3, [0, 1, 2])
    alone = sample(model, model.scheduler, 7.5, 3, [2])
    torch.testing.assert_close(together[2:], alone, rtol=0, atol=1e-5)


def test_codec(tmp_path, embeddings):
    make_sd(tmp_path / "m")
    codec = load(str(tmp_path / "m"), device="cpu").codec
    mean = codec.encode(images())
    assert mean.shape == (2, 4, 8, 8)
    torch.testing.assert_close(mean, codec.encode(images()), rtol=0, atol=0)
    drawn = codec.encode(images(), generators([0, 1]))
    assert not torch.equal(drawn, mean)
    torch.testing.assert_close(drawn[1:], codec.encode(images()[1:], generators([1])), rtol=0, atol=1e-6)
    torch.testing.assert_close(codec.encode(images()[:, :1]), codec.encode(images()[:, :1].expand(-1, 3, -1, -1)))
    with pytest.raises(UsageError, match="15x16"):
        codec.encode(images()[..., :15])
    x0 = mean.clone().requires_grad_()
    codec.decode(x0).sum().backward()  # guidance by image losses needs it
    assert x0.grad is not None


def test_memory_low_slices_and_tiles_but_draws_the_same(tmp_path, embeddings):
    make_sd(tmp_path / "m")
    plain, low = (load(str(tmp_path / "m"), device="cpu", memory=level) for level in ("auto", "low"))
    want, got = (sample(m, m.scheduler, 7.5, 3, [0, 1]) for m in (plain, low))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    vae = low._parts["vae"]
    assert vae.use_slicing
    assert vae.use_tiling
    assert not plain._parts["vae"].use_slicing
    with pytest.raises(UsageError, match="'huge'"):
        load(str(tmp_path / "m"), device="cpu", memory="huge")


def test_nothing_large_is_loaded_before_it_is_used(tmp_path, embeddings):
    make_sd(tmp_path / "m")
    model = load(str(tmp_path / "m"), device="cpu")
    assert model._parts == {}
    cond = model.encode([PROMPT])
    assert model._parts == {}
    model(torch.zeros(1, *model.info.sample), torch.tensor(5), cond)
    assert set(model._parts) == {"network"}
    assert model.at(4, 4).network is model.network
    assert model.at(4, 4).noise(generators([0])).shape == (1, 4, 4, 4)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_keeps_the_sample_in_fp32(tmp_path, embeddings, dtype):
    make_sd(tmp_path / "m")
    model = load(str(tmp_path / "m"), device="cpu", dtype=dtype)
    out = model(torch.zeros(1, *model.info.sample), torch.tensor(5), model.encode([PROMPT])).out
    assert out.dtype == torch.float32
    assert model.network.dtype == {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    full = load(str(tmp_path / "m"), device="cpu")
    want = full(torch.zeros(1, *model.info.sample), torch.tensor(5), full.encode([PROMPT])).out
    torch.testing.assert_close(out, want, rtol=0.05, atol=0.05)


def test_wrong_use_is_an_error_before_anything_is_loaded(tmp_path, embeddings):
    make_sd(tmp_path / "m")
    model = load(str(tmp_path / "m"), device="cpu")
    x, t = torch.zeros(1, *model.info.sample), torch.tensor(5)
    with pytest.raises(UsageError, match="needs a prompt"):
        model(x, t, Cond())
    for mask in (torch.zeros(2, 1, 16, 16), None):
        with pytest.raises(UsageError, match="not from an image"):
            model.image_cond(images(), generators([0, 1]), mask=mask)
    assert model._parts == {}
    make_sd(tmp_path / "nine", in_channels=9)
    nine = load(str(tmp_path / "nine"), device="cpu")
    with pytest.raises(UsageError, match="5 channels beside the sample, got 0"):
        nine(x, t, nine.encode([PROMPT]))
    make_sd(tmp_path / "eight", in_channels=8)
    with pytest.raises(ModelError, match="in_channels is 8; needed: 4 or 7 or 9"):
        load(str(tmp_path / "eight"), device="cpu")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_missing_part(tmp_path, embeddings, part):
    make_sd(tmp_path / "m")
    for path in (tmp_path / "m" / part).glob("*.safetensors"):
        path.unlink()
    if part == "text_encoder":  # not needed until a prompt is missing
        with pytest.raises(ModelError, match=part):
            load(str(tmp_path / "m"), device="cpu").encode([PROMPT])
    else:
        with pytest.raises(ModelError, match=part):
            load(str(tmp_path / "m"), device="cpu")


def test_variant_for_the_parts_that_have_it(tmp_path, embeddings):
    """As some repositories are: the UNet in fp16 only, the rest plain."""
    parts = make_sd(tmp_path / "m")
    (tmp_path / "m" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    parts["unet"].half().save_pretrained(tmp_path / "m" / "unet", variant="fp16")
    for variant in (None, "fp16"):
        model = load(str(tmp_path / "m"), device="cpu", variant=variant)
        assert model.network.dtype == torch.float32
        model.codec.decode(torch.zeros(1, *model.info.sample))
    with pytest.raises(ModelError, match="no variant 'ema'"):
        load(str(tmp_path / "m"), device="cpu", variant="ema")


# --- the safety checker ------------------------------------------------------------------------------------------


def add_checker(folder, flags_all: bool):
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig

    torch.manual_seed(5)
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=TINY_VISION, projection_dim=4))
    with torch.no_grad():
        for name in ("concept_embeds", "special_care_embeds"):
            getattr(checker, name).copy_(torch.randn_like(getattr(checker, name)))
        checker.concept_embeds_weights.fill_(-2.0 if flags_all else 2.0)
        checker.special_care_embeds_weights.fill_(2.0)
    write_checker(folder, "stable_diffusion", checker)


@pytest.mark.parametrize("flags_all", [True, False])
def test_safety_checker_judges(tmp_path, embeddings, flags_all, caplog):
    make_sd(tmp_path / "m")
    add_checker(tmp_path / "m", flags_all)
    model = load(str(tmp_path / "m"), device="cpu", safety="on")
    with caplog.at_level(logging.WARNING, "diffkit"):
        out, flagged = model.screen(images())
    assert flagged == [flags_all] * 2
    assert torch.equal(out, torch.full_like(out, -1.0) if flags_all else images())
    assert ("are black" in caplog.text) == flags_all


def test_safety_is_the_users_open_choice(tmp_path, embeddings, caplog):
    make_sd(tmp_path / "m")
    with caplog.at_level(logging.INFO, "diffkit"):
        model = load(str(tmp_path / "m"), device="cpu")
    assert "holds no safety checker" in caplog.text
    assert model.screen(images())[1] == [False, False]
    with pytest.raises(ModelError, match="holds no safety checker"):
        load(str(tmp_path / "m"), device="cpu", safety="on")
    add_checker(tmp_path / "m", True)
    caplog.clear()
    with caplog.at_level(logging.INFO, "diffkit"):
        off = load(str(tmp_path / "m"), device="cpu", safety="off")
    assert "is off, as asked" in caplog.text
    assert torch.equal(off.screen(images())[0], images())
    drop_tensor(tmp_path / "m" / "safety_checker" / "model.safetensors", "visual_projection.weight")
    caplog.clear()
    broken = load(str(tmp_path / "m"), device="cpu")
    with caplog.at_level(logging.WARNING, "diffkit"):
        assert broken.screen(images())[1] == [False, False]
    assert "not judged" in caplog.text
