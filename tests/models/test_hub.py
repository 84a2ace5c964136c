"""Every form a model repository takes on the Hub, and everything that must be refused."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from diffkit.errors import ModelError
from diffkit.models.configuration import load_scheduler
from diffkit.models.hub import open_repo
from diffkit.models.weights import load_component
from tests.models.conftest import drop_tensor, make_flat, make_pipeline
from tests.models.fakehub import FakeHub

WEIGHTS = "diffusion_pytorch_model.safetensors"


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return set(left) == set(right) and all(torch.equal(left[k], right[k]) for k in left)


# --- forms that load ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["safetensors", "bin"])
def test_flat_repository_with_old_names(tmp_path, weights, caplog):
    unet = make_flat(tmp_path / "m", weights=weights)
    repo = open_repo(tmp_path / "m")
    assert (repo.pipeline, repo.part("unet"), repo.revision) == ("DDPMPipeline", "", None)
    with caplog.at_level(logging.INFO, "diffkit"):
        loaded = load_component(repo, UNet2DModel, repo.part("unet"))
    assert same(loaded, unet)
    assert not loaded.training
    assert load_scheduler(repo).config.beta_end == 0.02
    notices = [r for r in caplog.records if "restricted unpickler" in r.message]
    assert len(notices) == (1 if weights == "bin" else 0)


@pytest.mark.parametrize(("variant", "shard"), [(None, None), ("fp16", None), (None, "30KB"), ("fp16", "30KB")])
def test_usual_layout_variants_and_shards(tmp_path, variant, shard):
    unet = make_pipeline(tmp_path / "m", variant=variant, shard=shard)
    names = [p.name for p in (tmp_path / "m" / "unet").glob("*.safetensors")]
    assert (len(names) > 1) == bool(shard)
    repo = open_repo(tmp_path / "m")
    loaded = load_component(repo, UNet2DModel, repo.part("unet"))
    assert same(loaded, unet)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_half_precision_prefers_the_half_variant(tmp_path):
    make_pipeline(tmp_path / "m")
    other = make_pipeline(tmp_path / "v", variant="fp16")
    with torch.no_grad():
        other.conv_in.weight.zero_()
    other.half().save_pretrained(tmp_path / "m" / "unet", variant="fp16")
    repo = open_repo(tmp_path / "m")
    half = load_component(repo, UNet2DModel, "unet", dtype=torch.float16)
    full = load_component(repo, UNet2DModel, "unet")
    chosen = load_component(repo, UNet2DModel, "unet", variant="fp16")
    assert half.dtype == torch.float16
    assert half.conv_in.weight.abs().sum() == 0 == chosen.conv_in.weight.abs().sum()
    assert full.conv_in.weight.abs().sum() > 0


def test_variant_comes_before_bin(tmp_path):
    unet = make_pipeline(tmp_path / "m", variant="fp16")
    torch.save({"nothing": torch.zeros(1)}, tmp_path / "m" / "unet" / "diffusion_pytorch_model.bin")
    assert same(load_component(open_repo(tmp_path / "m"), UNet2DModel, "unet", allow_pickle=True), unet)


def test_bin_outside_flat_repositories_needs_leave(tmp_path):
    unet = make_pipeline(tmp_path / "m")
    (tmp_path / "m" / "unet" / WEIGHTS).unlink()
    torch.save(unet.state_dict(), tmp_path / "m" / "unet" / "diffusion_pytorch_model.bin")
    repo = open_repo(tmp_path / "m")
    with pytest.raises(ModelError, match=r"pickled") as error:
        load_component(repo, UNet2DModel, "unet")
    assert "`allow_pickle`" in error.value.hint
    assert same(load_component(repo, UNet2DModel, "unet", allow_pickle=True), unet)


# --- what is refused ---------------------------------------------------------------------------------------------


class Bomb:
    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self):
        return (os.system, (f"touch '{self.sentinel}'",))


@pytest.mark.parametrize("allow_pickle", [False, True])
@pytest.mark.parametrize("form", ["zip", "plain"])
def test_malicious_bin_does_not_run(tmp_path, allow_pickle, form):
    folder, sentinel = tmp_path / "m", tmp_path / "sentinel"
    make_flat(folder, weights="none")
    bomb = {"conv_in.weight": Bomb(sentinel)}
    path = folder / "diffusion_pytorch_model.bin"
    if form == "zip":
        torch.save(bomb, path)
    else:
        path.write_bytes(pickle.dumps(bomb))
    for name in ("model.pt", "weights.pkl", "training_args.bin"):
        shutil.copy(path, folder / name)
    with pytest.raises(ModelError, match="refused"):
        load_component(open_repo(folder), UNet2DModel, "", allow_pickle=allow_pickle)
    assert not sentinel.exists()
    pickle.loads(pickle.dumps(bomb))  # the bomb is real
    assert sentinel.exists()


@pytest.mark.parametrize(
    "entry",
    [
        {"unet": ["my_unet", "MyUNet"]},
        {"unet": [None, "MyUNet"]},
        {"_class_name": ["my_pipeline", "MyPipeline"]},
        {"unet": ["../evil", "MyUNet"]},
        {"scheduler": ["my_scheduler.py", "S", "x"]},
    ],
)
def test_custom_code_is_refused(tmp_path, entry):
    make_pipeline(tmp_path / "m")
    sentinel = tmp_path / "sentinel"
    for folder in (tmp_path / "m", tmp_path / "m" / "unet"):
        for name in ("my_unet.py", "my_pipeline.py", "pipeline.py"):
            (folder / name).write_text(f"open({str(sentinel)!r}, 'w')\nclass MyUNet: pass\nclass MyPipeline: pass\n")
    path = tmp_path / "m" / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entry))
    with pytest.raises(ModelError, match="custom code"):
        open_repo(tmp_path / "m")
    assert not sentinel.exists()


def test_remote_code_in_a_config_is_refused(tmp_path):
    make_pipeline(tmp_path / "m")
    path = tmp_path / "m" / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoModel": "evil.Evil"}}))
    with pytest.raises(ModelError, match="custom code"):
        load_component(open_repo(tmp_path / "m"), UNet2DModel, "unet")


def test_parts_of_other_libraries_and_absent_parts_are_fine(tmp_path):
    make_pipeline(tmp_path / "m")
    path = tmp_path / "m" / "model_index.json"
    extra = {"safety_checker": ["stable_diffusion", "Checker"], "watermarker": ["deepfloyd_if", "W"],
             "feature_extractor": [None, None], "requires_safety_checker": True}  # fmt: skip
    path.write_text(json.dumps(json.loads(path.read_text()) | extra))
    assert open_repo(tmp_path / "m").pipeline == "DDPMPipeline"


def test_missing_tensor_is_never_random(tmp_path):
    make_pipeline(tmp_path / "m")
    drop_tensor(tmp_path / "m" / "unet" / WEIGHTS, "conv_out.weight")
    with pytest.raises(ModelError, match=r"1 tensors are missing.*conv_out\.weight"):
        load_component(open_repo(tmp_path / "m"), UNet2DModel, "unet")


def test_tensor_of_the_wrong_shape(tmp_path):
    make_pipeline(tmp_path / "m")
    path = tmp_path / "m" / "unet" / WEIGHTS
    save_file(load_file(path) | {"conv_out.bias": torch.zeros(7)}, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_component(open_repo(tmp_path / "m"), UNet2DModel, "unet")


@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_broken_weights(tmp_path, damage):
    make_pipeline(tmp_path / "m")
    path = tmp_path / "m" / "unet" / WEIGHTS
    data = path.read_bytes()
    path.write_bytes({"truncated": data[: len(data) // 2], "empty": b"", "text": b"<html>not found</html>"}[damage])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_component(open_repo(tmp_path / "m"), UNet2DModel, "unet")


def test_missing_shard_and_escaping_index(tmp_path):
    make_pipeline(tmp_path / "m", shard="30KB")
    folder = tmp_path / "m" / "unet"
    shard = sorted(folder.glob("*-of-*.safetensors"))[1]
    shard.rename(tmp_path / "elsewhere.safetensors")
    with pytest.raises(ModelError, match=f"shard unet/{shard.name}"):
        load_component(open_repo(tmp_path / "m"), UNet2DModel, "unet")
    index = folder / f"{WEIGHTS}.index.json"
    data = json.loads(index.read_text())
    data["weight_map"] = dict.fromkeys(data["weight_map"], "../../elsewhere.safetensors")
    index.write_text(json.dumps(data))
    with pytest.raises(ModelError, match="no shard index"):
        load_component(open_repo(tmp_path / "m"), UNet2DModel, "unet")


def test_errors_of_local_folders(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.safetensors").write_bytes(b"x")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "model_index.json").write_text("{")
    for target, text in [("empty", "holds no model_index.json"), ("file.safetensors", "is a file"), ("bad", "JSON")]:
        with pytest.raises(ModelError, match=text):
            open_repo(tmp_path / target)
    for text in ("./no/such/folder", "/no/such/folder", "a/b/c", "name with spaces", "..name", ""):
        with pytest.raises(ModelError, match="no such folder"):
            open_repo(text)
    make_pipeline(tmp_path / "m")
    repo = open_repo(tmp_path / "m")
    assert repo.file("unet/nothing.json") is None
    assert repo.json("nothing.json") is None
    with pytest.raises(ModelError, match="outside"):
        repo.file("../empty")
    with pytest.raises(ModelError, match=r"has no variant 'bf16' \(there: plain\)"):
        load_component(repo, UNet2DModel, "unet", variant="bf16")


# --- the Hub -----------------------------------------------------------------------------------------------------


def test_hub_fetches_only_what_is_needed(tmp_path, fake_hub: FakeHub, monkeypatch):
    unet = make_pipeline(tmp_path / "m")
    (tmp_path / "m" / "text_encoder").mkdir()
    (tmp_path / "m" / "text_encoder" / "model.safetensors").write_bytes(b"huge")
    fake_hub.repos["someone/tiny"] = tmp_path / "m"
    repo = open_repo("someone/tiny")
    assert repo.revision == fake_hub.commit("someone/tiny")
    assert same(load_component(repo, UNet2DModel, repo.part("unet")), unet)
    assert sorted(fake_hub.fetched()) == ["model_index.json", "unet/config.json", f"unet/{WEIGHTS}"]

    fake_hub.requests.clear()  # warm: one question, nothing fetched
    load_component(open_repo("someone/tiny"), UNet2DModel, "unet")
    assert fake_hub.requests == ["GET /api/models/someone/tiny"]

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # offline: none
    fake_hub.requests.clear()
    repo = open_repo("someone/tiny")
    assert repo.revision == fake_hub.commit("someone/tiny")
    assert same(load_component(repo, UNet2DModel, "unet"), unet)
    assert same(load_component(open_repo("someone/tiny", revision=repo.revision), UNet2DModel, "unet"), unet)
    assert fake_hub.requests == []
    with pytest.raises(ModelError, match=r"scheduler_config\.json is not in the local cache") as error:  # partial cache
        load_scheduler(repo)
    assert "hf download someone/tiny" in error.value.hint


def test_unreachable_hub_falls_back_to_the_cache(tmp_path, fake_hub: FakeHub, monkeypatch):
    make_pipeline(tmp_path / "m")
    fake_hub.repos["someone/tiny"] = tmp_path / "m"
    load_component(open_repo("someone/tiny"), UNet2DModel, "unet")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    started = time.monotonic()
    load_component(open_repo("someone/tiny"), UNet2DModel, "unet")
    with pytest.raises(ModelError, match="'someone/other' is not in the local cache") as error:
        open_repo("someone/other")
    assert "hf download someone/other" in error.value.hint
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("status", [401, 403])
def test_gated(tmp_path, fake_hub: FakeHub, status):
    make_pipeline(tmp_path / "m")
    fake_hub.repos["DeepFloyd/IF"] = tmp_path / "m"
    fake_hub.gated.add("DeepFloyd/IF")
    fake_hub.status = status
    with pytest.raises(ModelError, match="'DeepFloyd/IF' is gated") as error:
        open_repo("DeepFloyd/IF")
    assert error.value.exit_code == 4
    assert "hf auth login" in error.value.hint
    assert "hf download DeepFloyd/IF" in error.value.hint


def test_missing_repository_and_revision(tmp_path, fake_hub: FakeHub):
    make_pipeline(tmp_path / "m")
    fake_hub.repos["someone/tiny"] = tmp_path / "m"
    with pytest.raises(ModelError, match="'someone/nothing' is neither") as error:
        open_repo("someone/nothing")
    assert "hf download someone/nothing" in error.value.hint
    with pytest.raises(ModelError, match="no revision 'v9'"):
        open_repo("someone/tiny", revision="v9")
    assert open_repo("someone/tiny", revision=fake_hub.commit("someone/tiny")).revision


def test_offline_process_fails_within_five_seconds(tmp_path):
    """HF_HUB_OFFLINE is read at import, so this needs a process of its own; the imports are not the network's fault."""
    code = """
import time
import huggingface_hub, torch
from diffkit.models.hub import open_repo
from diffkit.errors import ModelError
start = time.monotonic()
try:
    open_repo("google/ddpm-celebahq-256")
except ModelError as error:
    assert error.exit_code == 4 and time.monotonic() - start < 5
    print(error.message, "|", error.hint)
"""
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert "google/ddpm-celebahq-256" in done.stdout, done.stderr
    assert "hf download google/ddpm-celebahq-256" in done.stdout
