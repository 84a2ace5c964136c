"""Every command runs on tiny PixNerds, by text and by class, foretells its calls, and is replayed from its picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import pixels, told
from PIL import Image
from tiny_pixnerd_pipeline import make_pixnerd, make_pixnerd_class

from diffkit.models.pixnerd_network import PixNerdClassTransformer2DModel, PixNerdTransformer2DModel

# The command line and the network calls that it takes, scorers' not counted. Inverting ends at the first of the 3
# levels that holds some of the picture, the second: two calls at each of 2 levels, 2 steps down, and 2 to the edit.
TEXT: dict[str, tuple[str, int]] = {
    "sample": ("sample text -p a|cat -n 3 --batch-size 2 --steps 3", 6),
    "sample heun": ("sample text -p a|cat --scheduler flow_heun --steps 3", 5),
    "sample interval": ("sample text -p a|cat --negative-prompt a|dog --guidance-interval 0.1:1 --steps 4", 4),
    "sample sweep": ("sample text -p a|cat --steps 2 --sweep guidance=1,4 --sweep prompt=a|cat\\a|dog", 2),
    "sample guided": ("sample text -p a|cat --steps 3 --guide color:red@20", 3),
    "sdedit": ("sdedit drawing.png -m text -p a|cat --strength 0.5 --steps 4 -n 2", 2),
    "sdedit mask": ("sdedit drawing.png -m text -p a|cat --mask mask.png --steps 2 --strength 1", 2),
    "inpaint": ("inpaint drawing.png mask.png -m text -p a|cat --steps 4 --jump 2 --resample 2", 6),
    "anagram": ("anagram -m text --p1 a|cat --p2 a|dog --view rotate_180 --steps 3 -n 2", 3),
    "anagram negate": ("anagram -m text --p1 a|cat --p2 a|dog --view negate --steps 3", 3),
    "anagram best": ("anagram -m text --p1 a|cat --p2 a|dog --steps 4 -n 1 --best-of 3 --scorer model", 8),
    "anagram guided": ("anagram -m text --p1 a|cat --p2 a|dog --view jigsaw:4 --steps 2 --guide color:blue@20", 2),
    "hybrid": ("hybrid -m text --p1 a|cat --p2 a|dog --split low_high:2 --steps 3", 3),
    "interpolate": ("interpolate -m text -p a|cat --frames 3 --steps 3", 3),
    "interpolate images": ("interpolate drawing.png other.png -m text -p a|cat --frames 3 --steps 3 --refine 1", 6),
    "invert": ("invert drawing.png -m text -p a|cat --edit-prompt a|dog --steps 3 --refine 1", 8),
    "denoise": ("denoise drawing.png -m text -p a|cat --timesteps 300,700 --stride 250", 7),
}
CLASSES: dict[str, tuple[str, int]] = {
    "sample": ("sample classes -c 1 -n 3 --batch-size 2 --steps 3", 6),
    "sample freely": ("sample classes --steps 2", 2),
    "sample authors": ("sample classes -c 1 --steps 4 -g 3.5 --guidance-interval 0.1:1", 4),
    "sdedit": ("sdedit drawing.png -m classes -c 1 --strength 0.5 --steps 4 -n 2", 2),
    "inpaint": ("inpaint drawing.png mask.png -m classes -c 1 --steps 4 --jump 2 --resample 2", 6),
    "anagram": ("anagram -m classes --c1 1 --c2 4 --view flip --steps 3", 3),
    "anagram best": ("anagram -m classes --c1 1 --c2 4 --steps 4 -n 1 --best-of 3 --scorer model", 8),
    "hybrid": ("hybrid -m classes --c1 1 --c2 4 --split low_high:2 --steps 3", 3),
    "interpolate": ("interpolate -m classes -c 1 --frames 3 --steps 3", 3),
    "invert": ("invert drawing.png -m classes -c 1 --edit-class 4 --steps 3 --refine 1", 8),
    "denoise": ("denoise drawing.png -m classes -c 1 --timesteps 300,700 --stride 250", 7),
}
CELLS = [("text", name) for name in TEXT] + [("classes", name) for name in CLASSES]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models and their inputs: pictures and a mask of their size."""
    place = tmp_path_factory.mktemp("pixnerd")
    make_pixnerd(place / "text")
    make_pixnerd_class(place / "classes")
    shades = torch.linspace(0, 255, 32).to(torch.uint8)
    colours = torch.stack([shades.expand(32, 32), shades[:, None].expand(32, 32), shades.flip(0).expand(32, 32)], -1)
    Image.fromarray(colours.numpy()).save(place / "drawing.png")
    Image.fromarray(colours.flip(0).contiguous().numpy()).save(place / "other.png")
    mask = Image.new("L", (32, 32))
    mask.paste(255, (16, 0, 32, 32))
    mask.save(place / "mask.png")
    return place


def words(line: str) -> list[str]:
    return [part.replace("|", " ") for part in line.split()]


@pytest.fixture
def run(folder: Path, run_cli: Any, tmp_path: Path, embeddings: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a command beside the models, and return what `--json` says."""
    monkeypatch.chdir(folder)

    def runs(line: str, *more: object) -> dict[str, Any]:
        ran = run_cli(*words(line), "-o", tmp_path / "out", "--json", *more)
        assert ran.code == 0, ran.stderr
        said: dict[str, Any] = json.loads(ran.stdout)
        return said

    return runs


@pytest.mark.parametrize(("kind", "name"), CELLS)
def test_every_command_draws_foretells_and_draws_again(run, run_cli, monkeypatch, kind, name):
    line, calls = (TEXT if kind == "text" else CLASSES)[name]
    cls = PixNerdTransformer2DModel if kind == "text" else PixNerdClassTransformer2DModel
    foretold = run(line, "--dry-run")
    asked, forward = [], cls.forward
    monkeypatch.setattr(cls, "forward", lambda *a, **k: asked.append(1) or forward(*a, **k))
    said, real = run(line), len(asked)
    assert said["model"]["family"] == foretold["model"]["family"] == ("pixnerd" if kind == "text" else "pixnerd_class")
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


def test_what_is_told_matters(run):
    def drawn(line: str):
        return pixels(run(f"{line} --steps 3")["images"][0])

    for line, told_one, told_other in (("sample text", "-p a|cat", "-p a|dog"), ("sample classes", "-c 1", "-c 4")):
        one = drawn(f"{line} {told_one}")
        assert abs(one - drawn(f"{line} {told_other}")).max() > 5
        assert abs(one - drawn(f"{line} {told_one} --seed 1")).max() > 5
        assert abs(one - drawn(f"{line} {told_one} -g 1")).max() > 5
        assert abs(one - drawn(f"{line} {told_one}")).max() == 0


def test_known_pixels_of_an_inpainted_picture_stay(run, folder):
    made = pixels(run("inpaint drawing.png mask.png -m text -p a|cat --steps 4")["images"][0])
    assert abs(made - pixels(folder / "drawing.png"))[:, :16].max() == 0
    assert abs(made - pixels(folder / "drawing.png"))[:, 16:].max() > 5


def test_noise_shows_the_models_own_levels(run):
    said = run("noise drawing.png -m text --size 32 --timesteps 250,750")
    assert Path(said["images"][0]).exists()


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("sample text -c 1", "--class"),
        ("sample classes -p a|cat", "--prompt"),
        ("sample classes -c 7", "'7'"),
        ("sample text -p a|cat --scheduler ddim", "flow_euler"),
        ("sample text -p a|cat --raw", "--raw"),
        ("upscale drawing.png -m text -p x", "text"),
        ("finetune --pretrained classes --dataset digits", "PixNerdClassTransformer2DModel"),
    ],
)
def test_what_they_cannot_do_is_said_in_a_line(run_cli, folder, tmp_path, monkeypatch, line, named):
    monkeypatch.chdir(folder)
    ran = run_cli(*words(line), "-o", tmp_path / "out")
    assert ran.code in (2, 4)
    assert named in ran.stderr
    assert "Traceback" not in ran.stderr


def test_inspect_and_embed(run_cli, folder, monkeypatch, embeddings):
    monkeypatch.chdir(folder)
    for name, parts in (
        ("text", {"transformer", "scheduler", "text_encoder", "tokenizer"}),
        ("classes", {"transformer", "scheduler"}),
    ):
        ran = run_cli("inspect", name, "--json")
        assert ran.code == 0, ran.stderr
        said = json.loads(ran.stdout)
        assert set(said["components"]) == parts
        assert said["components"]["transformer"]["parameters"] > 1000
        assert said["unet"]["patch_size"] == 4
    ran = run_cli("embed", "a cat", "-m", "text", "--json")
    assert ran.code == 0, ran.stderr
    assert list(embeddings.rglob("*.safetensors"))
    ran = run_cli("embed", "a cat", "-m", "classes")
    assert ran.code == 2
    assert "knows no prompts" in ran.stderr
