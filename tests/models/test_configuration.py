"""Configurations that are unusual, old, incomplete or wrong: read as they are meant, or refused before any weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DiffusionPipeline, StableDiffusionPipeline

from diffkit.engine.sampling import denoise, generators, pure_noise, set_grid
from diffkit.errors import ModelError
from diffkit.models import info, load, open_repo
from tests.models.conftest import make_if, make_pipeline, make_sd
from tests.support.families import make_run

UNET, SCHEDULER, INDEX, RECORD = (
    "unet/config.json",
    "scheduler/scheduler_config.json",
    "model_index.json",
    "diffkit.json",
)
VAE = "vae/config.json"
GONE = object()  # the field is not there at all


def make(folder: Path, kind: str) -> Path:
    """Write a model of a kind."""
    makers: dict[str, Callable[[Path], Any]] = {
        "ddpm": make_pipeline,
        "run": make_run,  # of diffkit: 9 pixels padded to 10, three classes
        "laid": lambda path: make_run(path, kind="concat"),  # the same, with classes laid over the image
        "sd": make_sd,
        "if": make_if,
        "if2": lambda path: make_if(path, stage=2),
    }
    makers[kind](folder)
    return folder


def change(folder: Path, file: str, **fields: Any) -> None:
    """Write other values into a JSON file."""
    path = folder / file
    data = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not GONE}))


WRONG: list[tuple[str, str, dict[str, Any], str]] = [
    # sizes
    ("ddpm", UNET, {"sample_size": GONE}, "sample_size is missing"),
    ("ddpm", UNET, {"sample_size": None}, "sample_size is missing"),
    ("ddpm", UNET, {"sample_size": "8"}, "sample_size is '8'"),
    ("ddpm", UNET, {"sample_size": 8.0}, "sample_size is 8.0"),
    ("ddpm", UNET, {"sample_size": True}, "sample_size is True"),
    ("ddpm", UNET, {"sample_size": -8}, "sample_size is -8"),
    ("ddpm", UNET, {"sample_size": 0}, "sample_size is 0"),
    ("ddpm", UNET, {"sample_size": [8]}, r"sample_size is \[8\]"),
    ("ddpm", UNET, {"sample_size": [8, 8, 8]}, "sample_size"),
    ("ddpm", UNET, {"sample_size": [8, "8"]}, "sample_size"),
    ("ddpm", UNET, {"sample_size": 9}, "sample_size is 9x9; needed: multiples of 2"),
    ("ddpm", UNET, {"sample_size": [8, 9]}, "sample_size is 8x9; needed: multiples of 2"),
    ("sd", UNET, {"sample_size": None}, "sample_size is missing"),
    ("if", UNET, {"sample_size": [64]}, "sample_size"),
    ("if2", UNET, {"sample_size": GONE}, "sample_size is missing"),
    ("run", RECORD, {"resolution": 7}, "resolution is 7; needed: .*sample_size 10x10"),
    ("run", RECORD, {"resolution": 11}, "resolution is 11"),
    ("run", RECORD, {"resolution": -1}, "resolution is -1"),
    ("run", RECORD, {"resolution": "9"}, "resolution is '9'"),
    ("run", RECORD, {"resolution": True}, "resolution is True"),
    ("run", UNET, {"sample_size": 16}, "resolution is 9"),
    ("run", UNET, {"sample_size": [10, 12]}, "resolution is 9"),
    # levels
    ("ddpm", UNET, {"block_out_channels": GONE}, "block_out_channels is missing"),
    ("ddpm", UNET, {"block_out_channels": 16}, "block_out_channels is 16"),
    ("ddpm", UNET, {"block_out_channels": [8, "16"]}, "block_out_channels"),
    ("sd", VAE, {"block_out_channels": GONE}, "vae/config.json: block_out_channels is missing"),
    ("sd", VAE, {"block_out_channels": 8}, "block_out_channels is 8"),
    ("sd", VAE, {"block_out_channels": []}, "block_out_channels"),
    # channels
    ("ddpm", UNET, {"in_channels": 2, "out_channels": 2}, "in_channels is 2"),
    ("ddpm", UNET, {"in_channels": 4, "out_channels": 4}, "in_channels is 4"),
    ("ddpm", UNET, {"in_channels": GONE}, "in_channels is missing"),
    ("ddpm", UNET, {"out_channels": 2}, "out_channels is 2; needed: 3, or 6"),
    ("ddpm", UNET, {"out_channels": "3"}, "out_channels is '3'"),
    ("run", RECORD, {"channels": 3}, "channels is 3; needed: 1"),
    ("laid", RECORD, {"channels": GONE}, "channels is missing"),
    ("laid", RECORD, {"channels": 3}, "out_channels is 1"),
    ("sd", UNET, {"in_channels": 5}, "in_channels is 5; needed: 4 or 7 or 9"),
    ("sd", UNET, {"in_channels": 8}, "in_channels is 8"),
    ("sd", UNET, {"in_channels": 3, "out_channels": 3}, "latent_channels is 4; needed: 3"),
    ("sd", VAE, {"latent_channels": 16}, "latent_channels is 16; needed: 4"),
    ("sd", VAE, {"scaling_factor": 0}, "scaling_factor is 0"),
    ("sd", VAE, {"scaling_factor": "0.2"}, "scaling_factor is '0.2'"),
    ("if", UNET, {"in_channels": 5}, "in_channels is 5; needed: .*stage of IF"),
    ("if", UNET, {"out_channels": 4}, "out_channels is 4"),
    ("if2", UNET, {"out_channels": 12}, "out_channels is 12"),
    # classes and other inputs
    ("ddpm", UNET, {"class_embed_type": "timestep"}, "class_embed_type is 'timestep'"),
    ("ddpm", UNET, {"class_embed_type": "identity"}, "class_embed_type is 'identity'"),
    ("ddpm", UNET, {"class_embed_type": "projection"}, "class_embed_type is 'projection'"),
    ("ddpm", UNET, {"num_class_embeds": -1}, "num_class_embeds is -1"),
    ("ddpm", UNET, {"num_class_embeds": "10"}, "num_class_embeds is '10'"),
    ("run", UNET, {"num_class_embeds": 5}, "num_class_embeds is 5; needed: 4, for the class_names"),
    ("run", UNET, {"num_class_embeds": None}, "num_class_embeds is missing"),
    ("run", RECORD, {"class_names": ["a", "b"]}, "num_class_embeds is 4; needed: 3"),
    ("run", RECORD, {"class_names": [0, 1, 2]}, "class_names"),
    ("run", RECORD, {"null_class": False}, "num_class_embeds is 4; needed: 3"),
    ("run", RECORD, {"null_class": 1}, "null_class is 1"),
    ("run", RECORD, {"conditioning": "none"}, "num_class_embeds is 4"),
    ("run", RECORD, {"conditioning": "text"}, "conditioning is 'text'"),
    ("run", RECORD, {"conditioning": "concat"}, "num_class_embeds is 4"),
    ("laid", RECORD, {"class_names": ["a", "b"]}, "class_embedding.safetensors holds 4 rows"),
    ("sd", UNET, {"class_embed_type": "projection"}, "class_embed_type is 'projection'"),
    ("sd", UNET, {"num_class_embeds": 10}, "num_class_embeds is 10"),
    ("sd", UNET, {"addition_embed_type": "text_time"}, "addition_embed_type is 'text_time'"),
    ("sd", UNET, {"time_cond_proj_dim": 256}, "time_cond_proj_dim is 256"),
    ("if", UNET, {"class_embed_type": "timestep"}, "class_embed_type is 'timestep'"),
    ("if2", UNET, {"class_embed_type": "identity"}, "class_embed_type is 'identity'"),
    ("if", UNET, {"encoder_hid_dim_type": "image_proj"}, "encoder_hid_dim_type is 'image_proj'"),
    # what a file holds
    ("ddpm", UNET, {"_class_name": "UNet2DConditionModel"}, "_class_name is 'UNet2DConditionModel'"),
    ("sd", UNET, {"_class_name": "UNet2DModel"}, "_class_name is 'UNet2DModel'"),
    ("sd", VAE, {"_class_name": "AutoencoderTiny"}, "_class_name is 'AutoencoderTiny'"),
    # the scheduler
    ("ddpm", SCHEDULER, {"prediction_type": "noise"}, "prediction_type is 'noise'; needed: one of epsilon, sample"),
    ("sd", SCHEDULER, {"prediction_type": "flow"}, "prediction_type"),
    ("ddpm", SCHEDULER, {"prediction_type": None}, "prediction_type"),
    ("ddpm", SCHEDULER, {"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True}, "flow_prediction"),
    ("ddpm", SCHEDULER, {"num_train_timesteps": 0}, "num_train_timesteps is 0"),
    ("ddpm", SCHEDULER, {"num_train_timesteps": -10}, "num_train_timesteps is -10"),
    ("ddpm", SCHEDULER, {"num_train_timesteps": "1000"}, "num_train_timesteps is '1000'"),
    ("ddpm", SCHEDULER, {"num_train_timesteps": 9.5}, "num_train_timesteps is 9.5"),
    ("ddpm", SCHEDULER, {"trained_betas": [0.1, 0.2, 0.3]}, "num_train_timesteps is 1000; needed: 3"),
    ("ddpm", SCHEDULER, {"beta_schedule": "wavy"}, "no DDPMScheduler can be made of it.*wavy"),
    ("ddpm", SCHEDULER, {"beta_start": "low"}, "no DDPMScheduler can be made of it"),
    ("ddpm", SCHEDULER, {"predict_epsilon": False, "prediction_type": "epsilon"}, "predict_epsilon is False"),
    ("ddpm", SCHEDULER, {"_class_name": "os"}, "'os' is not one of diffusers'"),
    ("ddpm", SCHEDULER, {"_class_name": "NoiseScheduler"}, "'NoiseScheduler' is not one of diffusers'"),
    ("ddpm", SCHEDULER, {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "_class_name is 'FlowMatch.*model_index"),
    ("ddpm", INDEX, {"scheduler": ["diffusers", "UNet2DModel"]}, "'UNet2DModel' is not one of diffusers'"),
    ("run", RECORD, {"prediction": "v_prediction"}, "prediction is 'v_prediction'; needed: .*predicts epsilon"),
    ("run", RECORD, {"prediction": "flow"}, "prediction is 'flow'"),
    ("run", RECORD, {"prediction": "magic"}, "prediction is 'magic'"),
    ("if2", "image_noising_scheduler/scheduler_config.json", {"num_train_timesteps": 0}, "image_noising.*is 0"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "file", "fields", "named"), WRONG)
def test_what_cannot_be_right_is_refused_by_name_before_weights_are_read(tmp_path, kind, file, fields, named):
    folder = make(tmp_path / "m", kind)
    for weights in folder.rglob("*.safetensors"):
        if weights.parent.name != "unet" or "class" not in weights.name:
            weights.unlink()
    if not (folder / file).exists():
        (folder / file).write_text("{}")
    change(folder, file, **fields)
    with pytest.raises(ModelError, match=named) as caught:
        load(str(folder), device="cpu")
    assert caught.value.exit_code == 4
    assert "\n" not in caught.value.message
    assert str(folder) in caught.value.message


@pytest.mark.parametrize("part", ["unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"])
def test_a_missing_configuration_is_not_made_up(tmp_path, part):
    folder = make(tmp_path / "m", "sd")
    (folder / part).unlink()
    with pytest.raises(ModelError, match=f"holds no {part}"):
        info(open_repo(folder))


def test_a_vae_is_not_read_from_another_file_of_that_name(tmp_path):
    folder = make(tmp_path / "m", "sd")
    (folder / "vae" / "config.json").rename(folder / "config.json")
    with pytest.raises(ModelError, match=r"holds no vae/config\.json"):
        info(open_repo(folder))


@pytest.mark.parametrize("kind", ["ddpm", "sd", "if"])
@pytest.mark.parametrize("size", [(8, 16), (12, 4)])
def test_oblong_pictures_are_drawn_oblong(tmp_path, embeddings, kind, size):
    folder = make(tmp_path / "m", kind)
    change(folder, UNET, sample_size=list(size))
    model, random = load(str(folder), device="cpu"), generators([0, 1])
    channels, factor = (4, 2) if kind == "sd" else (3, 1)
    assert model.info.sample == (channels, *size)
    assert model.info.size == (size[0] * factor, size[1] * factor)
    assert model.info.factor == factor
    scheduler = model.scheduler
    set_grid(scheduler, 3)
    cond = model.encode([None, None]).expand(2)
    for step in denoise(model, pure_noise(scheduler, model.noise(random)), scheduler, cond, generators=random):
        x = step.x
    assert x.shape == (2, channels, *size)
    pictures = model.codec.decode(x)
    assert pictures.shape == (2, 3, *model.info.size)
    assert pictures.isfinite().all()
    again = model.codec.encode(pictures)
    assert again.shape == x.shape
    if kind != "sd":
        assert torch.equal(again, x)


def test_an_oblong_picture_is_the_stock_pipelines(tmp_path):
    folder = make(tmp_path / "m", "ddpm")
    change(folder, UNET, sample_size=[8, 16])
    pipe = DDPMPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(generator=generators([3])[0], num_inference_steps=4, output_type="np").images
    model, random = load(str(folder), device="cpu"), generators([3])
    set_grid(model.scheduler, 4)
    for step in denoise(model, model.noise(random), model.scheduler, generators=random):
        x = step.x
    ours = (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert ours.shape == theirs.shape == (1, 8, 16, 3)
    assert abs(ours - theirs).max() < 1e-5


def test_a_padded_picture_lies_in_the_middle_of_an_oblong_sample():
    from diffkit.models.ddpm import PixelCodec

    codec, images = PixelCodec((9, 15), (12, 16)), torch.rand(2, 1, 9, 15)
    padded = codec.encode(images)
    assert padded.shape == (2, 1, 12, 16)
    assert torch.equal(codec.decode(padded), images)
    assert torch.equal(padded[:, :, 1:10, 0:15], images)


@pytest.mark.parametrize("kind", ["ddpm", "sd"])
def test_predict_epsilon_false_is_prediction_of_the_sample(tmp_path, embeddings, kind):
    """As diffusers before 0.6 wrote it; today's ignores it, and every picture would be wrong."""
    folder = make(tmp_path / "m", kind)
    change(folder, SCHEDULER, prediction_type="sample")
    wanted = load(str(folder), device="cpu")
    change(folder, SCHEDULER, prediction_type=GONE, predict_epsilon=False)
    old = load(str(folder), device="cpu")
    assert old.scheduler.config.prediction_type == "sample"
    assert _drawn(old) == _drawn(wanted)
    change(folder, SCHEDULER, predict_epsilon=True)
    assert load(str(folder), device="cpu").scheduler.config.prediction_type == "epsilon"


def _drawn(model) -> list[float]:
    random = generators([0])
    set_grid(model.scheduler, 3)
    x = model.noise(random)
    for step in denoise(model, x, model.scheduler, model.encode([None]), generators=random):
        x = step.x
    return x.flatten().tolist()


@pytest.mark.parametrize("named", ["DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler"])
def test_the_index_says_which_scheduler_it_is(tmp_path, named, caplog):
    """The stock pipelines take the class of model_index.json, whatever wrote the scheduler's configuration."""
    folder = make(tmp_path / "m", "ddpm")
    change(folder, SCHEDULER, num_train_timesteps=40, beta_end=0.03)
    change(folder, INDEX, scheduler=["diffusers", named], _class_name="DDIMPipeline")
    with caplog.at_level("INFO", "diffkit"):
        ours = info(open_repo(folder)).scheduler
    theirs = DiffusionPipeline.from_pretrained(folder).scheduler if named == "DDIMScheduler" else None
    assert type(ours).__name__ == named
    assert ours.config.num_train_timesteps == 40
    assert "model_index.json makes it a" in caplog.text
    if theirs is not None:
        assert type(ours) is type(theirs)
        assert {k: v for k, v in ours.config.items() if k[0] != "_"} == {
            k: v for k, v in theirs.config.items() if k[0] != "_"
        }
        assert torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod)


def test_timesteps_that_are_not_named_are_diffusers_own(tmp_path):
    folder = make(tmp_path / "m", "ddpm")
    change(folder, SCHEDULER, num_train_timesteps=GONE)
    known = info(open_repo(folder))
    assert known.timesteps == DDPMPipeline.from_pretrained(folder).scheduler.config.num_train_timesteps == 1000


@pytest.mark.parametrize(("version", "size"), [("0.3.0", 64), ("0.8.1", 64), ("0.9.0", 8), ("0.36.0", 8), (GONE, 8)])
def test_an_outdated_size_of_stable_diffusion_is_put_right_as_stock_does(tmp_path, version, size):
    folder = make(tmp_path / "m", "sd")
    change(folder, UNET, _diffusers_version=version)
    known = info(open_repo(folder))
    assert known.sample == (4, size, size)
    if version is not GONE:
        pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, feature_extractor=None)
        assert pipe.unet.config.sample_size == size


def test_an_old_bare_network_is_read(tmp_path, caplog):
    """By its old name, and without a scheduler."""
    folder = make(tmp_path / "m", "ddpm") / "unet"
    change(folder, "config.json", _class_name="UNetUnconditionalModel")
    with caplog.at_level("INFO", "diffkit"):
        model = load(str(folder), device="cpu")
    assert model.info.pipeline == "UNetUnconditionalModel"
    assert (model.info.timesteps, model.scheduler.config.prediction_type) == (1000, "epsilon")
    assert "has no scheduler: DDPM's linear schedule" in caplog.text


def test_the_command_line_exits_with_4(tmp_path, run_cli):
    folder = make(tmp_path / "m", "ddpm")
    change(folder, UNET, class_embed_type="timestep")
    ran = run_cli("sample", folder, "-o", tmp_path / "out")
    assert ran.code == 4
    assert "class_embed_type" in ran.stderr
    assert len([line for line in ran.stderr.splitlines() if line.strip()]) <= 2
