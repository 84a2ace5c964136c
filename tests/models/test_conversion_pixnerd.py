"""PixNerd's checkpoints as their authors' training writes them: the folder draws what the network draws."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_pixnerd import SIDE
from tiny_pixnerd_pipeline import class_network, make_pixnerd, make_pixnerd_class, text_network, text_parts

from diffkit.errors import ModelError, UsageError
from diffkit.models import load
from diffkit.models.conversion import Options, convert

TINY = Options(size=SIDE, allow_pickle=True)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFKIT_CACHE", str(tmp_path / "cache"))


def lightning(network: torch.nn.Module, path: Path, **more: Any) -> Path:
    """Write a training's whole state: the last weights are zeros, the average is the network's."""
    state = {f"ema_denoiser.{name}": value for name, value in network.state_dict().items()}
    state |= {f"denoiser.{name}": torch.zeros_like(value) for name, value in network.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3, "optimizer_states": [{"state": {}}], **more}, path)
    return path


@pytest.mark.parametrize("kind", ["text", "class"])
@pytest.mark.parametrize("form", ["lightning", "safetensors", "network alone"])
def test_a_checkpoint_draws_what_its_network_draws(tmp_path: Path, kind: str, form: str) -> None:
    network = text_network() if kind == "text" else class_network()
    (make_pixnerd if kind == "text" else make_pixnerd_class)(tmp_path / "whole")
    if form == "lightning":
        source = lightning(network, tmp_path / "model.ckpt")
    else:
        prefix, source = ("ema_denoiser." if form == "safetensors" else ""), tmp_path / "model.safetensors"
        save_file({f"{prefix}{name}": value for name, value in network.state_dict().items()}, source)
    encoder = ""
    if kind == "text":
        encoder = str(tmp_path / "qwen")
        for part in text_parts():
            part.save_pretrained(encoder)
    facts = convert(str(source), tmp_path / "out", Options(size=SIDE, allow_pickle=form == "lightning", config=encoder))
    assert (facts["kind"], facts["dtype"]) == ("PixNerd", "fp32")
    assert facts["family"] == ("pixnerd" if kind == "text" else "pixnerd_class")
    answers = []
    for place in ("out", "whole"):
        model = load(str(tmp_path / place), device="cpu")
        x = model.noise([torch.Generator().manual_seed(0)])
        with torch.no_grad():
            answers.append(model(x, torch.tensor(300.0), model.encode(["a cat" if kind == "text" else "1"])).out)
    assert torch.equal(*answers)
    assert answers[0].any()


def test_the_last_weights_and_a_number_type(tmp_path: Path) -> None:
    source = lightning(class_network(), tmp_path / "model.ckpt")
    convert(str(source), tmp_path / "last", Options(size=SIDE, allow_pickle=True, ema=False))
    assert not any(v.any() for v in load(str(tmp_path / "last"), device="cpu").network.parameters())
    planned = convert(str(source), tmp_path / "half", Options(size=SIDE, allow_pickle=True, dtype="bf16"), dry_run=True)
    facts = convert(str(source), tmp_path / "half", Options(size=SIDE, allow_pickle=True, dtype="bf16"))
    assert facts["dtype"] == "bf16"
    assert planned["bytes"] == 2 * sum(value.numel() for value in class_network().state_dict().values())
    assert json.loads((tmp_path / "half" / "transformer" / "config.json").read_text())["sample_size"] == SIDE


def test_what_is_refused(tmp_path: Path) -> None:
    source = lightning(class_network(), tmp_path / "model.ckpt")
    with pytest.raises(ModelError, match="pickled") as caught:
        convert(str(source), tmp_path / "out", Options())
    assert "`allow_pickle`" in caught.value.hint
    with pytest.raises(UsageError, match="no text encoder"):
        convert(str(source), tmp_path / "out", Options(allow_pickle=True, config="Qwen/Qwen3-1.7B"))
    state = {f"ema_denoiser.{name}": value for name, value in class_network().state_dict().items()}
    del state["ema_denoiser.blocks.0.norm1.weight"]
    torch.save({"state_dict": state}, tmp_path / "short.ckpt")
    with pytest.raises(ModelError, match=r"blocks\.0\.norm1\.weight|no PixNerd"):
        convert(str(tmp_path / "short.ckpt"), tmp_path / "out", TINY)
    lightning(class_network(), tmp_path / "hyper.ckpt", hyper_parameters=argparse.Namespace(lr=1.0))
    with pytest.raises(ModelError, match=r"argparse\.Namespace"):
        convert(str(tmp_path / "hyper.ckpt"), tmp_path / "out", TINY)
    make_pixnerd_class(tmp_path / "whole")
    with pytest.raises(UsageError, match="`size`"):
        convert(str(tmp_path / "whole"), tmp_path / "out", Options(size=SIDE, dtype="fp16"))
    assert not (tmp_path / "out").exists()


def test_a_text_encoder_that_is_not_there_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = lightning(text_network(), tmp_path / "model.ckpt")
    make_pixnerd(tmp_path / "pipeline")
    rows = {"./nowhere": "no such folder", "a/b/c": "no such folder", "pipeline": "holds no text encoder"}
    for named, said in rows.items():
        with pytest.raises(ModelError, match=said):
            convert(str(source), tmp_path / "out", Options(size=SIDE, allow_pickle=True, config=named))
    assert not (tmp_path / "out").exists()
    convert(str(source), tmp_path / "out", Options(size=SIDE, allow_pickle=True, config="someone/qwen"))
    assert json.loads((tmp_path / "out" / "model_index.json").read_text())["text_encoder_id"] == "someone/qwen"
