"""Stable Diffusion XL beside the stock pipelines: two text encoders, pooled embeddings, sizes, inpainting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.pipelines.stable_diffusion_xl import pipeline_stable_diffusion_xl_inpaint
from torch import Tensor

from diffkit import models
from diffkit.engine.guidance import cfg
from diffkit.engine.sampling import denoise, generators, pure_noise, set_grid
from diffkit.errors import ModelError, UsageError
from diffkit.models import load
from diffkit.models.hub import open_repo
from diffkit.types import Cond
from tests.models.conftest import make_sdxl

PROMPT, NEGATIVE = "a photo of a cat", "blurry"
ATOL = 2e-6  # on pictures in [-1, 1], fp32


def stock(cls: Any, parts: dict) -> Any:
    pipe = cls(**parts, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe: Any, seeds: list[int], **options: Any) -> Tensor:
    given = {"num_inference_steps": 5, "output_type": "pt", "height": 16, "width": 16, "guidance_scale": 5.0}
    if isinstance(pipe, StableDiffusionXLImg2ImgPipeline):
        del given["height"], given["width"]
    images: Tensor = pipe([PROMPT] * len(seeds), generator=generators(seeds), **given | options).images
    return images * 2 - 1


def drawn(model: Any, seeds: list[int], negative: str | None, *, extra: Cond | None = None, size: Any = None) -> Tensor:
    model = model if size is None else model.at(*size)
    made = generators(seeds)
    set_grid(model.scheduler, 5)
    x, more = pure_noise(model.scheduler, model.noise(made)), extra or Cond()
    net = cfg(model, model.encode([negative]).join(more), 5.0)
    cond = model.encode([PROMPT]).expand(len(seeds)).join(more)
    for step in denoise(net, x, model.scheduler, cond, generators=made):
        x = step.x
    decoded: Tensor = model.codec.decode(x)
    return decoded.clamp(-1, 1)


def images(size: int = 16, batch: int = 2) -> Tensor:
    """Pictures whose way to [0, 1] and back is exact."""
    return torch.randint(0, 129, (batch, 3, size, size), generator=torch.Generator().manual_seed(9)) / 64 - 1


def close(ours: Tensor, theirs: Tensor) -> None:
    print("largest difference", float((ours - theirs).abs().max()))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=ATOL)


@pytest.mark.parametrize("negative", [None, NEGATIVE])
def test_parity_text_to_image(tmp_path: Path, embeddings: Path, negative: str | None) -> None:
    """Without a negative prompt the stock pipeline guides away from zeros, and so do we."""
    parts = make_sdxl(tmp_path / "m")
    model = load(str(tmp_path / "m"), device="cpu")
    assert model.info.family == "stable_diffusion_xl"
    theirs = run(stock(StableDiffusionXLPipeline, parts), [3, 4], negative_prompt=negative and [negative] * 2)
    close(drawn(model, [3, 4], negative), theirs)


def test_the_empty_prompt_is_encoded_where_the_repository_says_so(tmp_path: Path, embeddings: Path) -> None:
    parts = make_sdxl(tmp_path / "m")
    index = json.loads((tmp_path / "m" / "model_index.json").read_text())
    (tmp_path / "m" / "model_index.json").write_text(json.dumps(index | {"force_zeros_for_empty_prompt": False}))
    model = load(str(tmp_path / "m"), device="cpu")
    pipe = stock(StableDiffusionXLPipeline, parts)
    pipe.register_to_config(force_zeros_for_empty_prompt=False)
    close(drawn(model, [3], None), run(pipe, [3]))
    assert all(v.abs().max() > 0 for v in model.uncond(1).tensors.values())


def test_prompt_tensors_are_those_of_the_stock_pipeline(tmp_path: Path, embeddings: Path) -> None:
    parts = make_sdxl(tmp_path / "m")
    wanted, _, pooled, _ = stock(StableDiffusionXLPipeline, parts).encode_prompt(PROMPT, device="cpu")
    for attempt in ("encoded", "from the cache"):
        got = load(str(tmp_path / "m"), device="cpu").encode([PROMPT, None]).tensors
        assert set(got) == {"encoder_hidden_states", "text_embeds"}, attempt
        torch.testing.assert_close(got["encoder_hidden_states"][:1], wanted, rtol=0, atol=0)
        torch.testing.assert_close(got["text_embeds"][:1], pooled, rtol=0, atol=0)
        assert all(v[1].abs().max() == 0 for v in got.values())


def test_an_oblong_size_is_told(tmp_path: Path, embeddings: Path) -> None:
    parts = make_sdxl(tmp_path / "m")
    model = load(str(tmp_path / "m"), device="cpu")
    theirs = run(stock(StableDiffusionXLPipeline, parts), [3], height=16, width=32)
    close(drawn(model, [3], None, size=(8, 16)), theirs)


@pytest.mark.parametrize("strength", [0.4, 0.8])
def test_parity_image_to_image(tmp_path: Path, embeddings: Path, strength: float) -> None:
    parts = make_sdxl(tmp_path / "m", name="StableDiffusionXLImg2ImgPipeline")
    model, seeds, steps = load(str(tmp_path / "m"), device="cpu"), [3, 4], 5
    pipe = stock(StableDiffusionXLImg2ImgPipeline, parts)
    theirs = run(pipe, seeds, image=images() / 2 + 0.5, strength=strength)

    made = generators(seeds)
    latents = model.codec.encode(images(), made)
    set_grid(model.scheduler, steps)
    start = steps - int(steps * strength)
    x = model.scheduler.add_noise(latents, model.noise(made), model.scheduler.timesteps[start : start + 1])
    net = cfg(model, model.uncond(1), 5.0)
    for step in denoise(net, x, model.scheduler, model.encode([PROMPT]).expand(2), start=start, generators=made):
        x = step.x
    close(model.codec.decode(x).clamp(-1, 1), theirs)


def test_parity_nine_channel_inpainting(tmp_path: Path, embeddings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = make_sdxl(tmp_path / "m", name="StableDiffusionXLInpaintPipeline", in_channels=9)
    # The pipeline draws from the VAE's posterior; we take its mean, so that the picture alone decides.
    monkeypatch.setattr(pipeline_stable_diffusion_xl_inpaint, "retrieve_latents", lambda out, **_: out.latent_dist.mean)
    model, seeds = load(str(tmp_path / "m"), device="cpu"), [3, 4]
    assert model.info.source == "mask"
    mask = torch.zeros(2, 1, 16, 16)
    mask[:, :, 4:12, 6:] = 1.0
    pipe = stock(StableDiffusionXLInpaintPipeline, parts)
    theirs = run(pipe, seeds, image=images() / 2 + 0.5, mask_image=mask, strength=1.0)
    close(drawn(model, seeds, None, extra=model.image_cond(images(), generators(seeds), mask=mask)), theirs)
    with pytest.raises(UsageError, match="5 channels"):
        drawn(model, seeds, None)


def test_statistics_of_latents_per_channel(tmp_path: Path, embeddings: Path) -> None:
    """Some of its fine-tuned models give a mean and a standard deviation for each channel of the latents."""
    parts = make_sdxl(tmp_path / "m", vae={"latents_mean": [1.0, 2.0, -1.0, 0.5], "latents_std": [2.0, 1.0, 4.0, 0.5]})
    model = load(str(tmp_path / "m"), device="cpu")
    close(drawn(model, [3, 4], None), run(stock(StableDiffusionXLPipeline, parts), [3, 4]))
    latents = model.codec.encode(images())
    raw = parts["vae"].encode(images()).latent_dist.mean
    mean, std = (torch.tensor(parts["vae"].config[key]).reshape(1, 4, 1, 1) for key in ("latents_mean", "latents_std"))
    torch.testing.assert_close(latents, (raw - mean) / std * 0.13025)


def test_what_it_says_of_itself(tmp_path: Path, embeddings: Path) -> None:
    make_sdxl(tmp_path / "m")
    known = models.info(open_repo(str(tmp_path / "m")))
    assert (known.size, known.sample, known.factor) == ((16, 16), (4, 8, 8), 2)
    assert (known.text_encoder, known.guidance, known.null, known.latent) == ("sdxl", 5.0, True, True)


@pytest.mark.parametrize(
    ("file", "changes", "named"),
    [
        ("unet", {"in_channels": 7}, "in_channels"),
        ("unet", {"addition_embed_type": None}, "addition_embed_type"),
        ("unet", {"addition_embed_type": "text"}, "addition_embed_type"),
        ("unet", {"addition_time_embed_dim": "8"}, "addition_time_embed_dim"),
        ("unet", {"projection_class_embeddings_input_dim": None}, "projection_class_embeddings_input_dim"),
        ("unet", {"projection_class_embeddings_input_dim": 70}, "68"),
        ("unet", {"projection_class_embeddings_input_dim": 60}, "refiner"),
        ("unet", {"time_cond_proj_dim": 16}, "time_cond_proj_dim"),
        ("unet", {"sample_size": 0}, "sample_size"),
        ("text_encoder_2", {"projection_dim": -1}, "projection_dim"),
        ("vae", {"latents_mean": ["x"], "latents_std": [1.0]}, "latents_mean"),
        ("vae", {"latents_mean": [0.0], "latents_std": [0.0]}, "latents_std"),
        ("vae", {"shift_factor": "much"}, "shift_factor"),
        ("vae", {"latent_channels": 16}, "latent_channels"),
    ],
)  # fmt: skip
def test_a_configuration_that_cannot_be_right(tmp_path: Path, file: str, changes: dict, named: str) -> None:
    make_sdxl(tmp_path / "m")
    path = tmp_path / "m" / file / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ModelError, match=named):
        models.info(open_repo(str(tmp_path / "m")))


def test_a_second_encoder_that_is_missing_is_named(tmp_path: Path, embeddings: Path) -> None:
    make_sdxl(tmp_path / "m")
    (tmp_path / "m" / "text_encoder_2" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="text_encoder_2"):
        load(str(tmp_path / "m"), device="cpu").encode([PROMPT])


@pytest.mark.parametrize("said", [None, True, False])
def test_an_autoencoder_overflows_unless_its_configuration_says_otherwise(
    said: bool | None, tmp_path: Path, embeddings: Path
) -> None:
    """In half precision latents are decoded in single; older configurations do not speak of it (`force_upcast`)."""
    make_sdxl(tmp_path)
    file = tmp_path / "vae" / "config.json"
    config = json.loads(file.read_text()) | {"force_upcast": said}
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    single, half = (load(str(tmp_path), device="cpu", dtype=d).codec.decode(x) for d in ("fp32", "fp16"))
    assert torch.equal(single, half) == (said is not False)
