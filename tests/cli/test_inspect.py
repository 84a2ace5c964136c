"""`diffkit inspect`, and the choice of a model where none is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from diffkit.models import bundled, vocabulary
from diffkit.models.hub import open_repo
from diffkit.models.text_encoder import word_tokenizer
from tests.models.conftest import make_if, make_sd
from tests.support.families import make_run

CAPTIONS = ["the letter M", "a red heart", "a handwritten three"]


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny stage of IF whose tokenizer knows a few words, in the place of the model inside the package."""
    folder = tmp_path / "assets" / "tiny"
    parts = make_if(folder)
    for path in (folder / "tokenizer").iterdir():
        path.unlink()
    tokenizer = word_tokenizer(CAPTIONS)
    assert len(tokenizer) <= parts["text_encoder"].config.vocab_size
    tokenizer.save_pretrained(folder / "tokenizer")
    monkeypatch.setattr(bundled, "FOLDER", folder)
    vocabulary.bundled_tokens.cache_clear()
    monkeypatch.setenv("DIFFKIT_CACHE", str(tmp_path / "kit"))
    monkeypatch.chdir(tmp_path)
    yield folder
    vocabulary.bundled_tokens.cache_clear()


def test_a_run_is_described_without_loading_it(run_cli, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    told = json.loads(run_cli("inspect", run, "--json").stdout)
    unet = told["components"]["unet"]
    assert (told["model"]["family"], unet["class"], told["trained"]["class_names"]) == (
        "ddpm", "UNet2DModel", ["zero", "one", "two, three"],
    )  # fmt: skip
    from diffkit.models import load

    assert unet["parameters"] == sum(p.numel() for p in load(str(run), device="cpu").network.unet.parameters())
    assert unet["dtypes"] == ["F32"]
    assert "vocabulary" not in told
    lines = run_cli("inspect", run).stdout
    assert f"{unet['parameters']:,} parameters" in lines


def test_words_and_tokens(run_cli, shipped: Path) -> None:
    told = json.loads(run_cli("inspect", "tiny", "--prompt", "The letter X", "--json").stdout)
    assert told["vocabulary"] == sorted(["the", "letter", "m", "a", "red", "heart", "handwritten", "three"])
    assert [token.strip("▁") for token in told["tokens"][:2]] == ["the", "letter"]
    assert "<unk>" in told["tokens"][2:]


def test_a_vae_is_measured(run_cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_sd(tmp_path / "sd")
    Image.new("RGB", (32, 16), "red").save(tmp_path / "photo.png")
    told = json.loads(
        run_cli("inspect", tmp_path / "sd", "--image", tmp_path / "photo.png", "-o", "x.png", "--json").stdout
    )
    with Image.open(told["images"][0]) as back:
        assert back.size == (32, 16)
    assert 0 < told["psnr"] < 40
    make_if(tmp_path / "if")
    ran = run_cli("inspect", tmp_path / "if", "--image", tmp_path / "photo.png", "--json")
    assert ran.code == 2
    assert "no VAE" in json.loads(ran.stdout)["error"]["message"]


def test_unknown_words_in_their_order(shipped: Path) -> None:
    known = vocabulary.bundled_tokens()
    assert vocabulary.unknown_words("The letter M, and a green HEART!", known) == ["and", "green"]
    assert vocabulary.unknown_words("", known) == []
    assert open_repo("tiny").root == shipped


def test_the_shipped_model_draws_what_it_knows(run_cli, shipped: Path) -> None:
    ran = run_cli("sdedit", "--prompt", "a red heart", "--steps", 3, "-o", "x.png", "--json")
    assert ran.code == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert told["model"]["id"] == "tiny"
    assert "tiny is used" in ran.stderr
    assert "knows every word" in ran.stderr
    assert json.loads(run_cli("replay", told["images"][0], "--json").stdout)["identical"] is True


def test_an_unknown_prompt_without_a_network_has_two_ways_out(run_cli, shipped: Path) -> None:
    ran = run_cli("sdedit", "--prompt", "a green castle", "--offline", "--json")
    assert ran.code == 4
    error = json.loads(ran.stdout)["error"]
    assert "does not know 'green'" in error["message"]
    assert "hf download stable-diffusion-v1-5/stable-diffusion-v1-5" in error["hint"]
    assert "diffkit inspect tiny" in error["hint"]
