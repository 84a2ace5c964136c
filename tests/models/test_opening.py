"""What is said of a model that cannot be opened: the next step works, or none is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler

from diffkit.errors import ModelError
from diffkit.models import info, load, open_repo
from tests.models.conftest import make_dit, make_pipeline, make_sd
from tests.models.fakehub import FakeHub


def checkpoint(output: Path, *parts: str, scheduler: bool = False) -> Path:
    """Write checkpoint-500 as diffusers' train_unconditional.py does; the average is another network."""
    unet = make_pipeline(output / "made")
    folder = output / "checkpoint-500"
    folder.mkdir(parents=True)
    for part in parts:
        with torch.no_grad():
            unet.conv_out.bias.fill_(1.0 if part == "unet_ema" else 2.0)
        unet.save_pretrained(folder / part)
    for name in ("optimizer.bin", "scheduler.bin", "random_states_0.pkl"):
        (folder / name).write_bytes(b"not to be read")
    shutil.rmtree(output / "made")
    if scheduler:
        DDPMScheduler(num_train_timesteps=50, prediction_type="sample").save_pretrained(output / "scheduler")
    return folder


@pytest.mark.parametrize(("parts", "read", "bias"), [(("unet", "unet_ema"), "unet_ema", 1.0), (("unet",), "unet", 2.0)])
@pytest.mark.parametrize("scheduler", [True, False])
def test_a_checkpoint_is_read(tmp_path, parts, read, bias, scheduler, caplog):
    folder = checkpoint(tmp_path, *parts, scheduler=scheduler)
    with caplog.at_level("INFO", "diffkit"):
        model = load(str(folder), device="cpu")
    assert (model.info.id, model.info.sample) == (str(folder), (3, 8, 8))
    assert torch.equal(model.network.unet.conv_out.bias, torch.full((3,), bias))
    said = [line for line in caplog.messages if "checkpoint" in line and "is read" in line]
    assert len(said) == 1
    assert f"its {read}/ is read" in said[0]
    assert ("with the scheduler in" in said[0]) == scheduler
    assert ("has no scheduler" in caplog.text) != scheduler
    wanted = (50, "sample") if scheduler else (1000, "epsilon")
    assert (model.info.timesteps, model.scheduler.config.prediction_type) == wanted


def test_a_whole_pipeline_is_no_checkpoint(tmp_path):
    """Its unet_ema/ (as some repositories have) is not what is read."""
    unet = make_pipeline(tmp_path)
    unet.save_pretrained(tmp_path / "unet_ema")
    assert info(open_repo(tmp_path)).network.folder == "unet"


def test_a_folder_of_checkpoints_names_the_newest(tmp_path):
    checkpoint(tmp_path, "unet")
    shutil.copytree(tmp_path / "checkpoint-500", tmp_path / "checkpoint-1500")
    with pytest.raises(ModelError, match=r"holds no model_index\.json") as caught:
        open_repo(tmp_path)
    assert caught.value.hint == f"It holds checkpoints of a training; give one of them: {tmp_path / 'checkpoint-1500'}."
    assert load(str(tmp_path / "checkpoint-1500"), device="cpu")


def test_an_unfinished_run_is_to_be_finished(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ModelError) as caught:
        open_repo(tmp_path)
    assert "diffkit train" in caught.value.hint


@pytest.mark.parametrize(
    ("where", "given"),
    [
        ("unet/diffusion_pytorch_model.safetensors", "."),  # inside a pipeline: the pipeline
        ("model_index.json", "."),
        ("alone/diffusion_pytorch_model.safetensors", "alone"),  # config.json beside it
    ],
)
def test_a_file_names_the_folder_that_can_be_opened(tmp_path, where, given):
    make_pipeline(tmp_path)
    shutil.copytree(tmp_path / "unet", tmp_path.parent / "alone", dirs_exist_ok=True)
    root = tmp_path.parent if where.startswith("alone") else tmp_path
    with pytest.raises(ModelError, match="is a file") as caught:
        open_repo(root / where)
    assert caught.value.hint == f"Give its folder: {root / given}."
    assert load(str(root / given), device="cpu")


def test_a_file_alone_says_what_is_missing(tmp_path):
    make_pipeline(tmp_path / "made")
    (tmp_path / "deep").mkdir()
    path = tmp_path / "deep" / "model.safetensors"
    shutil.copy(tmp_path / "made" / "unet" / "diffusion_pytorch_model.safetensors", path)
    with pytest.raises(ModelError, match=r"no config\.json beside it") as caught:
        open_repo(path)
    assert "config.json" in caught.value.hint
    assert "Give its folder" not in caught.value.hint
    # What it says works.
    shutil.copy(tmp_path / "made" / "unet" / "config.json", path.parent)
    path.rename(path.with_name("diffusion_pytorch_model.safetensors"))
    assert load(str(path.parent), device="cpu")


LOCAL = ["./models/plain", "../models/plain", "models/plain", "a/b/c", "runs/x/y/z", "~/nothing/here", "/nothing/here"]


@pytest.mark.parametrize("reachable", [True, False])
@pytest.mark.parametrize("name", LOCAL)
def test_a_path_that_is_not_there_is_no_download(tmp_path, monkeypatch, fake_hub: FakeHub, name, reachable):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", not reachable)
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="no such folder") as caught:
        open_repo(name)
    assert "hf download" not in caught.value.hint
    assert caught.value.hint
    assert (str(tmp_path) in caught.value.message) == (name[0] not in "~/")


def test_an_id_is_still_an_id(tmp_path, monkeypatch, fake_hub: FakeHub):
    """Though a folder of its owner's name is here, and though it cannot be had."""
    make_pipeline(tmp_path / "made")
    fake_hub.repos["google/tiny"] = tmp_path / "made"
    (tmp_path / "google").mkdir()
    monkeypatch.chdir(tmp_path)
    assert info(open_repo("google/tiny")).family == "ddpm"
    with pytest.raises(ModelError) as caught:
        open_repo("someone/nothing")
    assert "hf download someone/nothing" in caught.value.hint
    fake_hub.gated.add("google/other")
    fake_hub.repos["google/other"] = tmp_path / "made"
    with pytest.raises(ModelError, match="gated"):
        open_repo("google/other")


@pytest.mark.parametrize("part", ["unet", "transformer", "vae"])
def test_a_part_alone_asks_for_the_whole(tmp_path, part):
    (make_dit if part == "transformer" else make_sd)(tmp_path / "m")
    with pytest.raises(ModelError, match="cannot load") as caught:
        info(open_repo(tmp_path / "m" / part))
    assert "model_index.json" in caught.value.hint


def test_replay_from_another_folder_looks_for_a_folder(tmp_path, monkeypatch, run_cli):
    make_pipeline(tmp_path / "here" / "models" / "plain")
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    ran = run_cli("sample", "models/plain", "--steps", 2, "-o", tmp_path / "out", "--json")
    (picture,) = json.loads(ran.stdout)["images"]
    monkeypatch.chdir(tmp_path / "there")
    ran = run_cli("replay", picture)
    assert ran.code == 4
    assert "'models/plain': no such folder in" in ran.stderr
    assert "hf download" not in ran.stderr
    monkeypatch.chdir(tmp_path / "here")
    ran = run_cli("replay", picture)
    assert (ran.code, "identical" in ran.stdout) == (0, True)
