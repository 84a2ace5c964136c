"""Repositories that hold `.bin` weights only, as older ones of the Hub do: refused by name, and read where allowed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffkit.errors import ModelError
from diffkit.models import load
from diffkit.types import Cond
from tests.models.conftest import make_dit
from tests.models.test_stable_diffusion import add_checker
from tests.support.families import label_of

FAMILIES = ("plain", "classes", "flow", "sd", "sd9", "if", "dit")


def pickled(folder: Path, part: str = "**") -> list[Path]:
    """Turn the weights of a model, or of one part of it, to pickles."""
    found = sorted(folder.glob(f"{part}/*.safetensors"))
    for file in found:
        stem = file.stem.replace("model", "pytorch_model") if file.stem == "model" else file.stem
        torch.save(load_file(file), file.with_name(f"{stem}.bin"))
        file.unlink()
    return found


@pytest.fixture
def copied(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DIFFKIT_CACHE", str(tmp_path / "kit"))

    def copy(family: str) -> Path:
        if family == "dit":
            make_dit(tmp_path / "m")
        else:
            shutil.copytree(folders[family], tmp_path / "m")
        return tmp_path / "m"

    return copy


@pytest.mark.parametrize("family", FAMILIES)
def test_a_repository_of_pickles_is_refused_and_read_where_allowed(copied, family: str) -> None:
    def answer(**options: bool) -> torch.Tensor:
        model = load(str(folder), device="cpu", **options)
        x = model.noise([torch.Generator().manual_seed(0)])
        label = "1" if family == "dit" else label_of(family)
        cond = model.encode([label])
        if family == "sd9":
            cond = cond.join(Cond({"channels": torch.zeros(1, 5, *x.shape[2:])}))
        with torch.no_grad():
            picture = model.codec.decode(x)
            return torch.cat([model(x, torch.tensor(3), cond).out.flatten(), picture.flatten()])

    folder = copied(family)
    expected = answer()
    assert pickled(folder)
    with pytest.raises(ModelError, match=r"only pickled weights \(diffusion_pytorch_model.*\.bin\)") as caught:
        answer()
    assert "`allow_pickle`" in caught.value.hint
    assert torch.equal(answer(allow_pickle=True), expected)


def test_a_text_encoder_of_pickles_is_refused_when_a_prompt_is_missing(copied) -> None:
    folder = copied("sd")
    assert pickled(folder, "text_encoder")
    with pytest.raises(ModelError, match=r"text_encoder/.*only pickled weights \(pytorch_model.bin\)"):
        load(str(folder), device="cpu").encode(["a dog"])
    assert load(str(folder), device="cpu", allow_pickle=True).encode(["a dog"]).tensors


def test_a_safety_checker_of_pickles_judges_where_allowed_and_is_missed_aloud_where_not(copied, caplog) -> None:
    folder = copied("sd")
    add_checker(folder, True)
    assert pickled(folder, "safety_checker")
    images = torch.zeros(1, 3, 32, 32)
    assert load(str(folder), device="cpu").screen(images)[1] == [False]
    assert "pictures are not judged" in caplog.text
    assert "pickled" in caplog.text
    caplog.clear()
    model = load(str(folder), device="cpu", allow_pickle=True)
    assert model.screen(images)[1] == [True]
    assert "not judged" not in caplog.text
