"""What a model weighs, from configurations alone: numbers that are known of published models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from diffkit import models
from diffkit.models.hub import open_repo
from diffkit.models.memory import count_parameters
from diffkit.models.parts import count_parts
from tests.models.conftest import make_dit, make_if, make_sdxl

# Of stabilityai/stable-diffusion-xl-base-1.0; what is left out is diffusers' default.
UNET = {
    "_class_name": "UNet2DConditionModel", "sample_size": 128, "in_channels": 4, "out_channels": 4,
    "block_out_channels": [320, 640, 1280], "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20], "cross_attention_dim": 2048, "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip
VAE = {
    "_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
    "latent_channels": 4, "scaling_factor": 0.13025, "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_G = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
    "projection_dim": 1280, "hidden_act": "gelu",
}  # fmt: skip


def write(folder: Path, name: str, config: dict[str, Any], file: str = "config.json") -> None:
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / file).write_text(json.dumps(config))


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """The configurations of the published Stable Diffusion XL, without any weights."""
    folder = tmp_path / "sdxl"
    write(folder, "unet", UNET)
    write(folder, "vae", VAE)
    write(folder, "text_encoder", CLIP_L)
    write(folder, "text_encoder_2", CLIP_G)
    write(folder, "scheduler", {"_class_name": "EulerDiscreteScheduler"}, "scheduler_config.json")
    write(folder, ".", {"_class_name": "StableDiffusionXLPipeline"}, "model_index.json")
    return folder


def test_the_numbers_of_a_published_model(published: Path) -> None:
    repo = open_repo(str(published))
    known = models.info(repo)
    assert known.size == (1024, 1024)
    assert count_parameters(known.network) == 2_567_463_684
    assert count_parts(repo, known) == {
        "text_encoder": 123_060_480, "text_encoder_2": 694_659_840, "vae": 83_653_863,
    }  # fmt: skip


def test_a_dry_run_says_them_without_weights(published: Path, run_cli: Any) -> None:
    ran = run_cli("sample", published, "-p", "a cat", "--dry-run")
    assert ran.code == 0, ran.stderr
    assert "parameters  2567.46 M, 10270 MB in fp32, 5135 MB in fp16" in ran.stdout
    assert "text_encoder_2 694.66 M" in ran.stdout


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (make_if, {"text_encoder"}),
        (make_dit, {"vae"}),
        (make_sdxl, {"text_encoder", "text_encoder_2", "vae"}),
    ],
)
def test_the_parts_are_those_that_are_loaded(tmp_path: Path, make: Any, parts: set[str]) -> None:
    made = make(tmp_path / "m")
    repo = open_repo(str(tmp_path / "m"))
    counted = count_parts(repo, models.info(repo))
    assert counted == {name: sum(p.numel() for p in made[name].parameters()) for name in parts}


def test_a_part_that_cannot_be_built_is_left_out(published: Path) -> None:
    write(published, "text_encoder_2", {**CLIP_G, "hidden_size": "wide"})
    write(published, "text_encoder", {"hidden_size": 7, "num_attention_heads": 2})
    repo = open_repo(str(published))
    assert set(count_parts(repo, models.info(repo))) == {"vae"}


def test_an_autoencoder_that_cannot_be_built_is_left_out(published: Path) -> None:
    write(published, "vae", VAE | {"norm_num_groups": 7})
    repo = open_repo(str(published))
    assert list(count_parts(repo, models.info(repo))) == ["text_encoder", "text_encoder_2"]
