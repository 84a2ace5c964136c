"""Stable Diffusion 3 beside the stock pipelines, on tiny random weights: three text encoders, or two, and a flow."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusion3Pipeline,
)
from torch import Tensor

from diffkit import models
from diffkit.engine.grids import scheduler_for
from diffkit.engine.guidance import cfg
from diffkit.engine.sampling import denoise, generators, pure_noise
from diffkit.engine.settings import Settings
from diffkit.errors import ModelError, UsageError
from diffkit.jobs.base import build
from diffkit.jobs.sample import Sample
from diffkit.models import load
from diffkit.models.hub import open_repo
from diffkit.models.memory import count_parameters
from diffkit.models.parts import count_parts
from diffkit.types import Cond
from tests.models.conftest import make_sd3
from tests.models.fakehub import FakeHub

PROMPT, NEGATIVE, STEPS, SCALE = "a photo of a cat", "blurry", 5, 7.0
ATOL = 5e-6  # on pictures in [-1, 1], fp32; guidance by 7 multiplies what another order of rows rounds otherwise
# Of stabilityai/stable-diffusion-3-medium-diffusers; what is left out is diffusers' default.
MEDIUM: dict[str, dict[str, Any]] = {
    "transformer": {
        "_class_name": "SD3Transformer2DModel", "sample_size": 128, "patch_size": 2, "in_channels": 16,
        "out_channels": 16, "num_layers": 24, "attention_head_dim": 64, "num_attention_heads": 24,
        "joint_attention_dim": 4096, "caption_projection_dim": 1536, "pooled_projection_dim": 2048,
        "pos_embed_max_size": 192,
    },
    "vae": {
        "_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
        "latent_channels": 16, "scaling_factor": 1.5305, "shift_factor": 0.0609, "use_quant_conv": False,
        "use_post_quant_conv": False, "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
    },
    "text_encoder": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "projection_dim": 768,
    },
    "text_encoder_2": {
        "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
        "projection_dim": 1280,
    },
    "text_encoder_3": {
        "d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_heads": 64, "num_layers": 24, "vocab_size": 32128,
        "feed_forward_proj": "gated-gelu", "is_gated_act": True,
    },
}  # fmt: skip


def stock(cls: Any, parts: dict) -> Any:
    pipe = cls(**{"text_encoder_3": None, "tokenizer_3": None} | parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe: Any, seeds: list[int], **options: Any) -> Tensor:
    given = {"num_inference_steps": STEPS, "output_type": "pt", "height": 16, "width": 16, "guidance_scale": SCALE}
    images: Tensor = pipe([PROMPT] * len(seeds), generator=generators(seeds), **given | options).images
    return images * 2 - 1


def drawn(
    model: Any, seeds: list[int], negative: str | None = None, scale: float = SCALE, steps: int = STEPS
) -> Tensor:
    scheduler, made = scheduler_for(model.scheduler, Settings(steps=steps)), generators(seeds)
    x = pure_noise(scheduler, model.noise(made))
    net = cfg(model, model.encode([negative]), scale)
    for step in denoise(net, x, scheduler, model.encode([PROMPT]).expand(len(seeds)), generators=made):
        x = step.x
    decoded: Tensor = model.codec.decode(x)
    return decoded.clamp(-1, 1)


def images(size: int = 16, batch: int = 2) -> Tensor:
    """Pictures whose way to [0, 1] and back is exact."""
    return torch.randint(0, 129, (batch, 3, size, size), generator=torch.Generator().manual_seed(9)) / 64 - 1


def close(ours: Tensor, theirs: Tensor) -> None:
    print("largest difference", float((ours - theirs).abs().max()))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=ATOL)


@pytest.mark.parametrize("t5", [True, False])
@pytest.mark.parametrize("negative", [None, NEGATIVE])
def test_parity_text_to_image(tmp_path: Path, embeddings: Path, negative: str | None, t5: bool) -> None:
    """Without a negative prompt both guide away from the empty one, encoded."""
    parts = make_sd3(tmp_path / "m", t5=t5)
    model = load(str(tmp_path / "m"), device="cpu")
    assert model.info.family == "stable_diffusion_3"
    theirs = run(stock(StableDiffusion3Pipeline, parts), [3, 4], negative_prompt=negative and [negative] * 2)
    close(drawn(model, [3, 4], negative), theirs)
    assert (theirs[0] - theirs[1]).abs().max() > 0.01


@pytest.mark.parametrize("network", [{}, {"qk_norm": "rms_norm", "dual_attention_layers": [0]}], ids=["3", "3.5"])
def test_parity_without_guidance_and_oblong(tmp_path: Path, embeddings: Path, network: dict[str, Any]) -> None:
    """And with the attention of 3.5."""
    parts = make_sd3(tmp_path / "m", **network)
    model, pipe = load(str(tmp_path / "m"), device="cpu"), stock(StableDiffusion3Pipeline, parts)
    close(drawn(model, [3], scale=1.0), run(pipe, [3], guidance_scale=1.0))
    close(drawn(model.at(12, 24), [3]), run(pipe, [3], height=24, width=48))


@pytest.mark.parametrize("strength", [0.4, 0.6])
def test_parity_image_to_image(tmp_path: Path, embeddings: Path, strength: float) -> None:
    parts = make_sd3(tmp_path / "m", name="StableDiffusion3Img2ImgPipeline")
    model, seeds = load(str(tmp_path / "m"), device="cpu"), [3, 4]
    pipe = stock(StableDiffusion3Img2ImgPipeline, parts)
    theirs = run(pipe, seeds, image=images() / 2 + 0.5, strength=strength, negative_prompt=[NEGATIVE] * 2)

    made = generators(seeds)
    latents = model.codec.encode(images(), made)
    scheduler = scheduler_for(model.scheduler, Settings(steps=STEPS))
    start = STEPS - int(STEPS * strength)
    x = scheduler.scale_noise(latents, scheduler.timesteps[start].expand(2), model.noise(made))
    net = cfg(model, model.encode([NEGATIVE]), SCALE)
    for step in denoise(net, x, scheduler, model.encode([PROMPT]).expand(2), start=start, generators=made):
        x = step.x
    close(model.codec.decode(x).clamp(-1, 1), theirs)


def test_an_inpainting_pipeline_is_a_model_that_draws_from_noise(tmp_path: Path, embeddings: Path) -> None:
    """Its network is no other one; what is known is put back after each step."""
    parts = make_sd3(tmp_path / "m", name="StableDiffusion3InpaintPipeline")
    assert stock(StableDiffusion3InpaintPipeline, parts)
    model = load(str(tmp_path / "m"), device="cpu")
    assert (model.info.source, model.info.pipeline) == ("noise", "StableDiffusion3InpaintPipeline")
    close(drawn(model, [3]), run(stock(StableDiffusion3Pipeline, parts), [3]))
    with pytest.raises(UsageError, match="not from an image"):
        model.image_cond(images(), generators([0, 1]), mask=torch.ones(2, 1, 16, 16))


def test_parity_with_a_shift_by_size(tmp_path: Path, embeddings: Path) -> None:
    """The stock pipeline's line between two numbers of patches; another size is shifted otherwise."""
    made = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=4, max_image_seq_len=100
    )
    parts = make_sd3(tmp_path / "m", scheduler=made)
    model, pipe = load(str(tmp_path / "m"), device="cpu"), stock(StableDiffusion3Pipeline, parts)
    close(drawn(model, [3]), run(pipe, [3]))
    own = scheduler_for(model.scheduler, Settings(steps=STEPS)).timesteps
    large = model.at(16, 16)
    close(drawn(large, [3]), run(pipe, [3], height=32, width=32))
    torch.testing.assert_close(
        scheduler_for(large.scheduler, Settings(steps=STEPS)).timesteps, pipe.scheduler.timesteps
    )
    assert (own[1:] < pipe.scheduler.timesteps[1:]).all()
    assert torch.equal(own, scheduler_for(model.scheduler, Settings(steps=STEPS)).timesteps)


def test_the_grid_is_the_stock_pipelines(tmp_path: Path) -> None:
    """28 steps where nobody says how many, by the scheduler's own spacing and shift."""
    make_sd3(tmp_path / "m")
    known = models.info(open_repo(tmp_path / "m"))
    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs.set_timesteps(28)
    job = build(Sample, {"prompt": [PROMPT]}).fitted(known)
    assert (job.steps, job.guidance) == (28, 7.0)
    assert job.sampling_timesteps(known) == pytest.approx(theirs.timesteps.tolist(), rel=0, abs=1e-3)


@pytest.mark.parametrize("t5", [True, False])
@pytest.mark.parametrize("prompt", [PROMPT, "", "two ducks " * 60])
def test_prompt_tensors_are_those_of_the_stock_pipeline(
    tmp_path: Path, embeddings: Path, t5: bool, prompt: str
) -> None:
    parts = make_sd3(tmp_path / "m", t5=t5)
    with torch.no_grad():
        words, _, pooled, _ = stock(StableDiffusion3Pipeline, parts).encode_prompt(prompt, None, None, device="cpu")
    for attempt in ("encoded", "from the cache"):
        got = load(str(tmp_path / "m"), device="cpu").encode([prompt]).tensors
        assert set(got) == {"encoder_hidden_states", "pooled_projections"}, attempt
        assert got["encoder_hidden_states"].shape == (1, 77 + 256, 64)
        torch.testing.assert_close(got["encoder_hidden_states"], words, rtol=0, atol=0)
        torch.testing.assert_close(got["pooled_projections"], pooled, rtol=0, atol=0)
        assert bool(words[:, 77:].any()) == t5


@pytest.mark.parametrize(("t5", "words", "said"), [(True, 60, 0), (True, 200, 1), (False, 60, 1), (False, 20, 0)])
def test_what_no_encoder_reads_of_a_long_prompt_is_said_once(
    tmp_path: Path, embeddings: Path, caplog: pytest.LogCaptureFixture, t5: bool, words: int, said: int
) -> None:
    make_sd3(tmp_path / "m", t5=t5)
    model = load(str(tmp_path / "m"), device="cpu")
    with caplog.at_level(logging.WARNING, "diffkit"):
        model.encode(["ab " * words])
    assert len([line for line in caplog.messages if f"longer than {256 if t5 else 77} tokens" in line]) == said
    assert len(caplog.messages) == said


def test_prompts_with_t5_and_without_are_kept_apart(tmp_path: Path, embeddings: Path) -> None:
    """The cache's key says which encoders there were, and how wide the transformer is."""
    make_sd3(tmp_path / "with")
    shutil.copytree(tmp_path / "with", tmp_path / "without")
    index = tmp_path / "without" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"text_encoder_3": [None, None]}))
    whole, less = (load(str(tmp_path / name), device="cpu") for name in ("with", "without"))
    assert whole.prompts is not None
    assert less.prompts is not None
    labels = [one.prompts.key(PROMPT)["encoder"] for one in (whole, less)]
    assert labels == ["sd3-77-t5-256-64", "sd3-77-zeros-256-64"]
    assert not torch.equal(*(one.encode([PROMPT]).tensors["encoder_hidden_states"] for one in (whole, less)))


def test_everything_is_known_without_weights(tmp_path: Path) -> None:
    parts = make_sd3(tmp_path)
    for path in tmp_path.rglob("*.safetensors"):
        path.unlink()
    repo = open_repo(tmp_path)
    known = models.info(repo)
    assert (known.size, known.sample, known.latent, known.factor) == ((16, 16), (16, 8, 8), True, 2)
    assert (known.guidance, known.illusion_guidance, known.steps, known.source) == (7.0, 7.0, 28, "noise")
    assert (known.text, known.null, known.text_encoder) == (True, True, "sd3")
    assert count_parameters(known.network) == sum(p.numel() for p in parts["transformer"].parameters())
    names = ("text_encoder", "text_encoder_2", "text_encoder_3", "vae")
    assert count_parts(repo, known) == {name: sum(p.numel() for p in parts[name].parameters()) for name in names}
    with pytest.raises(ModelError, match="transformer"):
        load(str(tmp_path), device="cpu")


def test_a_dry_run_counts_the_published_model(tmp_path: Path, run_cli: Any) -> None:
    for name, config in MEDIUM.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(
        json.dumps({"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0})
    )
    index = {"_class_name": "StableDiffusion3Pipeline", "text_encoder_3": ["transformers", "T5EncoderModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    ran = run_cli("sample", tmp_path, "-p", "a cat", "--dry-run", "--json")
    assert ran.code == 0, ran.stderr
    said = json.loads(ran.stdout)
    assert (said["steps"], said["unet_calls"]) == (28, 28)
    assert said["parameters"] == 2_028_328_000
    assert said["parts"] == {
        "text_encoder": 123_650_304, "text_encoder_2": 694_659_840, "text_encoder_3": 4_762_310_656, "vae": 83_819_683,
    }  # fmt: skip


def test_memory_low_changes_no_picture(tmp_path: Path, embeddings: Path) -> None:
    make_sd3(tmp_path)
    plain, low, lowest = (load(str(tmp_path), device="cpu", memory=level) for level in ("auto", "low", "lowest"))
    want = drawn(plain, [0, 1], steps=3)
    for model in (low, lowest):
        torch.testing.assert_close(drawn(model, [0, 1], steps=3), want, rtol=0, atol=1e-5)
    assert (plain.row_limit, low.row_limit, lowest.row_limit) == (None, None, 1)


def test_types_and_an_autoencoder_that_overflows(tmp_path: Path, embeddings: Path) -> None:
    """In half precision its latents are decoded in single (`force_upcast`); bfloat16 has the range for it."""
    make_sd3(tmp_path)
    x = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    single = load(str(tmp_path), device="cpu").codec.decode(x)
    for dtype in ("fp16", "bf16"):
        model = load(str(tmp_path), device="cpu", dtype=dtype)
        assert model(x, torch.tensor([5.0, 900.0]), model.encode([PROMPT, None])).out.dtype == torch.float32
        assert model.codec.decode(x).dtype == torch.float32
        assert torch.equal(model.codec.decode(x), single) == (dtype == "fp16")


def test_other_sizes_are_whole_patches_within_the_positions(tmp_path: Path, embeddings: Path) -> None:
    make_sd3(tmp_path)
    model = load(str(tmp_path), device="cpu")
    assert model.at(24, 24).info.size == (48, 48)
    with pytest.raises(UsageError, match="multiples of 4, not 18x16"):
        model.at(8, 9)
    with pytest.raises(UsageError, match="up to 48x48 pixels, not 16x52"):
        model.at(26, 8)


def test_a_condition_without_its_prompt(tmp_path: Path) -> None:
    make_sd3(tmp_path)
    model = load(str(tmp_path), device="cpu")
    with pytest.raises(UsageError, match="needs a prompt"):
        model(torch.zeros(1, *model.info.sample), torch.tensor(5.0), Cond())


def test_from_the_hub(tmp_path: Path, fake_hub: FakeHub) -> None:
    """What it is costs small files alone."""
    make_sd3(tmp_path / "m")
    fake_hub.repos["stabilityai/tiny-3"] = tmp_path / "m"
    assert models.info(open_repo("stabilityai/tiny-3")).revision == fake_hub.commit("stabilityai/tiny-3")
    parts = ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
    small = {"model_index.json", "scheduler/scheduler_config.json", *(f"{part}/config.json" for part in parts)}
    assert set(fake_hub.fetched()) == small


@pytest.mark.parametrize("part", ["transformer", "vae", "scheduler"])
def test_a_missing_part(tmp_path: Path, part: str) -> None:
    make_sd3(tmp_path)
    shutil.rmtree(tmp_path / part)
    with pytest.raises(ModelError, match=part) as caught:
        load(str(tmp_path), device="cpu")
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer_2", "tokenizer_3"])
def test_a_missing_encoder_is_missed_where_a_prompt_is_not_in_the_cache(
    tmp_path: Path, embeddings: Path, part: str
) -> None:
    """And nowhere else; in the cache of a folder, what is in it is a part of the key."""
    make_sd3(tmp_path)
    shutil.rmtree(tmp_path / part)
    model = load(str(tmp_path), device="cpu")
    with pytest.raises(ModelError, match=part):
        model.encode([PROMPT])


@pytest.mark.parametrize(
    ("file", "changes", "named"),
    [
        ("transformer", {"sample_size": None}, "sample_size is missing"),
        ("transformer", {"sample_size": [8, 16]}, "sample_size is .8, 16."),
        ("transformer", {"sample_size": 9}, "sample_size is 9x9; needed: multiples of 2"),
        ("transformer", {"sample_size": 32}, "pos_embed_max_size is 12; needed: 16 or more"),
        ("transformer", {"pos_embed_max_size": None}, "pos_embed_max_size is missing"),
        ("transformer", {"pos_embed_max_size": 3}, "pos_embed_max_size is 3; needed: 4 or more"),
        ("transformer", {"patch_size": 0}, "patch_size is 0"),
        ("transformer", {"in_channels": 4}, "out_channels is 16; needed: 4"),
        ("transformer", {"in_channels": 33}, "out_channels is 16"),
        ("transformer", {"in_channels": 8, "out_channels": 8}, "latent_channels is 16; needed: 8"),
        ("transformer", {"joint_attention_dim": 48}, "joint_attention_dim is 48; needed: 56 or more"),
        ("transformer", {"joint_attention_dim": 60}, "joint_attention_dim is 60; needed: 64, the d_model"),
        ("transformer", {"joint_attention_dim": "64"}, "joint_attention_dim is '64'"),
        ("transformer", {"pooled_projection_dim": 30}, "pooled_projection_dim is 30; needed: 32"),
        ("transformer", {"caption_projection_dim": 24}, "caption_projection_dim is 24; needed: 16: 2 heads of 8"),
        ("transformer", {"num_attention_heads": -2}, "num_attention_heads is -2"),
        ("transformer", {"num_layers": 0}, "num_layers is 0"),
        ("transformer", {"_class_name": "DiTTransformer2DModel"}, "_class_name"),
        ("text_encoder_2", {"projection_dim": None}, "text_encoder_2/config.json: projection_dim is missing"),
        ("text_encoder_3", {"d_model": True}, "text_encoder_3/config.json: d_model is True"),
        ("vae", {"shift_factor": "a little"}, "shift_factor is 'a little'"),
        ("vae", {"scaling_factor": 0}, "scaling_factor is 0"),
        ("vae", {"latent_channels": 4}, "latent_channels is 4; needed: 16"),
        ("scheduler", {"num_train_timesteps": 0}, "num_train_timesteps is 0"),
        ("scheduler", {"use_dynamic_shifting": True, "max_image_seq_len": 256}, "max_image_seq_len is 256"),
        ("scheduler", {"use_dynamic_shifting": True, "base_shift": "low"}, "base_shift is 'low'"),
    ],
)
def test_a_wrong_configuration_is_refused_by_name(tmp_path: Path, file: str, changes: dict, named: str) -> None:
    make_sd3(tmp_path)
    path = tmp_path / file / ("scheduler_config.json" if file == "scheduler" else "config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ModelError, match=named) as caught:
        models.info(open_repo(tmp_path))
    assert caught.value.exit_code == 4


def test_a_scheduler_of_diffusion_is_refused(tmp_path: Path) -> None:
    make_sd3(tmp_path)
    index = tmp_path / "model_index.json"
    named = json.loads(index.read_text()) | {"scheduler": ["diffusers", "DDIMScheduler"]}
    index.write_text(json.dumps(named))
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": "DDIMScheduler"}))
    with pytest.raises(ModelError, match="_class_name is 'DDIMScheduler'; needed: FlowMatchEulerDiscreteScheduler"):
        models.info(open_repo(tmp_path))


def test_a_transformer_alone_is_no_model(tmp_path: Path) -> None:
    make_sd3(tmp_path)
    with pytest.raises(ModelError, match="SD3Transformer2DModel") as caught:
        models.info(open_repo(tmp_path / "transformer"))
    assert "whole pipeline" in caught.value.hint
