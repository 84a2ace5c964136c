"""A family that is one file and one row: every command runs on a tiny DiT, and none of them was told of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel
from golden import pixels, told
from PIL import Image

from tests.models.conftest import make_dit

NAMES = {"0": "tench, Tinca tinca", "1": "crane", "2": "great white shark, white shark", "3": "crane", "4": "maillot"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model and its inputs: a picture and a mask of its size."""
    place = tmp_path_factory.mktemp("dit")
    make_dit(place / "dit", id2label=NAMES)
    shades = torch.linspace(0, 255, 16).to(torch.uint8)
    colours = torch.stack([shades.expand(16, 16), shades[:, None].expand(16, 16), shades.flip(0).expand(16, 16)], -1)
    Image.fromarray(colours.numpy()).save(place / "drawing.png")
    Image.fromarray(colours.flip(0).contiguous().numpy()).save(place / "other.png")
    mask = Image.new("L", (16, 16))
    mask.paste(255, (8, 0, 16, 16))
    mask.save(place / "mask.png")
    return place


# The command line, with the model behind `-m` (sample: as its argument), and the network calls that it takes: on the
# way up both ways of inverting ask twice at each of 3 levels; then 3 steps down, and 3 more to what is edited.
COMMANDS: dict[str, tuple[str, int]] = {
    "sample": ("sample dit -c tench -n 3 --batch-size 2 --steps 3", 6),
    "sample freely": ("sample dit --steps 2 --scheduler dpm++", 2),
    "sample all": ("sample dit -c all --steps 2", 2),
    "sample ancestral": ("sample dit -c 3 --steps 3 --scheduler ddpm --guidance 2 --guidance-interval 0:0.5", 3),
    "sample sweep": ("sample dit --steps 2 --sweep class=tench,4 --sweep guidance=1,4", 2),
    "sdedit": ("sdedit drawing.png -m dit -c tench --strength 0.5 --steps 4 -n 2", 2),
    "sdedit mask": ("sdedit drawing.png -m dit -c tench --mask mask.png --steps 2", 2),
    "inpaint": ("inpaint drawing.png mask.png -m dit -c tench --steps 4 --jump 2 --resample 2", 6),
    "anagram direct": ("anagram -m dit --c1 tench --c2 maillot --view rotate_180 --latent direct --steps 3 -n 2", 3),
    "anagram decode": ("anagram -m dit --c1 tench --c2 maillot --view negate --steps 3", 3),
    "anagram best": ("anagram -m dit --c1 tench --c2 maillot --steps 4 -n 1 --best-of 3 --scorer model", 8),
    "hybrid": ("hybrid -m dit --c1 tench --c2 maillot --split low_high:2 --steps 3", 3),
    "interpolate": ("interpolate -m dit -c tench --frames 3 --steps 3", 3),
    "interpolate images": ("interpolate drawing.png other.png -m dit --frames 3 --steps 3 --refine 1", 9),
    "invert": ("invert drawing.png -m dit -c tench --edit-class maillot --steps 3 --refine 1", 12),
    "denoise": ("denoise drawing.png -m dit -c tench --timesteps 300,700 --stride 250", 7),
}


def words(line: str) -> list[str]:
    return [part.replace("|", " ") for part in line.split()]


@pytest.fixture
def run(folder: Path, run_cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a command beside the model, and return what `--json` says."""
    monkeypatch.chdir(folder)

    def runs(line: str, *more: object) -> dict[str, Any]:
        ran = run_cli(*words(line), "-o", tmp_path / "out", "--json", *more)
        assert ran.code == 0, ran.stderr
        said: dict[str, Any] = json.loads(ran.stdout)
        return said

    return runs


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_draws_foretells_and_draws_again(run, run_cli, monkeypatch, name):
    line, calls = COMMANDS[name]
    foretold = run(line, "--dry-run")
    asked, forward = [], DiTTransformer2DModel.forward
    monkeypatch.setattr(DiTTransformer2DModel, "forward", lambda *a, **k: asked.append(1) or forward(*a, **k))
    said, real = run(line), len(asked)
    assert said["model"]["family"] == foretold["model"]["family"] == "dit"
    judged = said.get("scores", {}).get("judge_calls", 0)
    assert real == said["unet_calls"] == calls + judged
    assert foretold["unet_calls"] == calls
    assert foretold["parameters"] > 1000
    picture = Path(said["images"][0])
    assert pixels(picture).shape[-1] == 3
    assert pixels(picture).std() > 1
    assert told(picture)["model"]["weights"]
    ran = run_cli("replay", picture, "--json")
    assert ran.code == 0, ran.stderr
    assert json.loads(ran.stdout)["identical"]


def test_classes_are_told_apart_and_seeds_too(run):
    one, other = (run(f"sample dit -c {label} --steps 3 --guidance 4")["images"][0] for label in ("tench", "maillot"))
    assert one == other or Path(one).exists()
    tench = pixels(run("sample dit -c tench --steps 3")["images"][0])
    assert abs(tench - pixels(run("sample dit -c maillot --steps 3")["images"][0])).max() > 5
    assert abs(tench - pixels(run("sample dit -c|Tinca|tinca --steps 3")["images"][0])).max() == 0
    assert abs(tench - pixels(run("sample dit -c 0 --steps 3")["images"][0])).max() == 0
    assert abs(tench - pixels(run("sample dit -c tench --steps 3 --seed 1")["images"][0])).max() > 5


def test_known_pixels_of_an_inpainted_picture_stay(run, folder):
    made = pixels(run("inpaint drawing.png mask.png -m dit -c tench --steps 4")["images"][0])
    assert abs(made - pixels(folder / "drawing.png"))[:, :8].max() == 0
    assert abs(made - pixels(folder / "drawing.png"))[:, 8:].max() > 5


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("sample dit -p|a|shark", "--prompt"),
        ("sample dit -c trench", "'tench'"),
        ("sample dit -c tench --negative-prompt blurry", "--negative-prompt"),
        ("sample dit --raw", "--raw"),
        ("anagram -m dit --c1 tench --c2 maillot --view negate --latent direct", "negate"),
        ("upscale drawing.png -m dit -p x", "dit"),
        ("finetune --pretrained dit --dataset digits", "DiTTransformer2DModel"),
    ],
)
def test_what_it_cannot_do_is_said_in_a_line(run_cli, folder, tmp_path, monkeypatch, line, named):
    monkeypatch.chdir(folder)
    ran = run_cli(*words(line), "-o", tmp_path / "out")
    assert ran.code in (2, 4)
    assert named in ran.stderr
    assert "Traceback" not in ran.stderr


def test_inspect(run_cli, folder, monkeypatch, tmp_path):
    monkeypatch.chdir(folder)
    ran = run_cli("inspect", "dit", "--json")
    assert ran.code == 0, ran.stderr
    said = json.loads(ran.stdout)
    assert said["model"]["family"] == "dit"
    assert set(said["components"]) == {"transformer", "vae", "scheduler"}
    assert said["components"]["transformer"]["parameters"] > 1000
    assert said["unet"]["patch_size"] == 2
    ran = run_cli("inspect", "dit", "--image", "drawing.png", "-o", tmp_path / "back.png", "--json")
    assert ran.code == 0, ran.stderr
