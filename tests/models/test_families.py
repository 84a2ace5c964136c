"""A family is one file and one row: every command runs on a tiny model of each, and none of them was told of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import pixels, told
from PIL import Image

from diffkit import models
from diffkit.models import info, open_repo
from tests.models.families import FAMILIES

CELLS = [(family, name) for family, row in FAMILIES.items() for name in row.cells()]
REFUSALS = [(family, name) for family, row in FAMILIES.items() for name in row.refusals()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models, a folder for each family, and their inputs: pictures and a mask of their size."""
    place = tmp_path_factory.mktemp("families")
    for name, family in FAMILIES.items():
        family.make(place / name)
    shades = torch.linspace(0, 255, 16).to(torch.uint8)
    colours = torch.stack([shades.expand(16, 16), shades[:, None].expand(16, 16), shades.flip(0).expand(16, 16)], -1)
    Image.fromarray(colours.numpy()).save(place / "drawing.png")
    Image.fromarray(colours.flip(0).contiguous().numpy()).save(place / "other.png")
    mask = Image.new("L", (16, 16))
    mask.paste(255, (8, 0, 16, 16))
    mask.save(place / "mask.png")
    return place


@pytest.fixture
def run(folder: Path, run_cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a command beside the models, with one cache of prompts for all, and return what `--json` says."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DIFFKIT_CACHE", str(folder / "cache"))

    def runs(family: str, line: str, *more: object) -> dict[str, Any]:
        ran = run_cli(*FAMILIES[family].line(line, family), "-o", tmp_path / "out", "--json", *more)
        assert ran.code == 0, ran.stderr
        said: dict[str, Any] = json.loads(ran.stdout)
        return said

    return runs


@contextmanager
def asked(network: str) -> Iterator[list[str]]:
    """Count the calls of networks of a class, whoever makes them: one entry for each."""
    calls: list[str] = []

    def note(module: torch.nn.Module, args: Any) -> None:
        if type(module).__name__ == network:
            calls.append(network)

    handle = torch.nn.modules.module.register_module_forward_pre_hook(note)
    try:
        yield calls
    finally:
        handle.remove()


def test_no_family_is_left_out() -> None:
    missing = set(models.FAMILIES) - {row.family or name for name, row in FAMILIES.items()}
    assert not missing, "give it a row in tests/models/families.py"


@pytest.mark.parametrize(("family", "name"), CELLS, ids=lambda part: part.replace(" ", "-"))
def test_every_command_draws_foretells_and_draws_again(run, run_cli, family: str, name: str) -> None:
    cell = FAMILIES[family].cells()[name]
    foretold = run(family, cell.line, "--dry-run")
    with asked(FAMILIES[family].network) as calls:
        said = run(family, cell.line)
    assert said["model"]["family"] == foretold["model"]["family"] == (FAMILIES[family].family or family)
    judged = said.get("scores", {}).get("judge_calls", 0)
    assert len(calls) == said["unet_calls"] == cell.calls + judged
    assert foretold["unet_calls"] == cell.calls
    assert foretold["parameters"] > 1000
    picture = Path(said["images"][0])
    assert pixels(picture).shape[-1] == 3
    assert pixels(picture).std() > 1
    assert told(picture)["model"]["weights"]
    ran = run_cli("replay", picture, "--json")
    assert ran.code == 0, ran.stderr
    assert json.loads(ran.stdout)["identical"]


@pytest.mark.parametrize("family", FAMILIES)
def test_noise_goes_up_without_the_network(run, run_cli, family: str) -> None:
    with asked(FAMILIES[family].network) as calls:
        said = run(family, "noise drawing.png -m MODEL --timesteps 300,700")
    assert not calls
    picture = Path(said["images"][0])
    assert pixels(picture).std() > 1
    ran = run_cli("replay", picture, "--json")
    assert ran.code == 0, ran.stderr
    assert json.loads(ran.stdout)["identical"]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_it_is_told_and_seeds_make_the_picture(run, family: str) -> None:
    one, same, other, seeded, unguided = (
        pixels(run(family, f"sample MODEL {line} --steps 3")["images"][0])
        for line in ("TOLD", "TOLD", "OTHER", "TOLD --seed 1", "TOLD -g 1")
    )
    assert abs(one - same).max() == 0
    assert all(abs(one - changed).max() > 5 for changed in (other, seeded, unguided))


@pytest.mark.parametrize("family", FAMILIES)
def test_known_pixels_of_an_inpainted_picture_stay(run, folder: Path, family: str) -> None:
    made = pixels(run(family, "inpaint drawing.png mask.png -m MODEL TOLD --steps 4")["images"][0])
    assert abs(made - pixels(folder / "drawing.png"))[:, :8].max() == 0
    assert abs(made - pixels(folder / "drawing.png"))[:, 8:].max() > 5


@pytest.mark.parametrize("family", FAMILIES)
def test_another_size_is_drawn_or_refused(run, run_cli, folder: Path, family: str) -> None:
    """What a model says of sizes is what it does; the size is in the picture's memory, and a dry run knows it."""
    unit = info(open_repo(str(folder / family))).size_multiple
    for line in ("sample MODEL TOLD --steps 2", "inpaint drawing.png mask.png -m MODEL TOLD --steps 2"):
        if not unit:
            ran = run_cli(*FAMILIES[family].line(f"{line} --resolution 32", family), "-o", "refused")
            assert ran.code == 2
            assert "16x16 pixels only" in ran.stderr
            continue
        foretold = run(family, line, "--resolution", "48x32", "--dry-run")
        said = run(family, line, "--resolution", "48x32")
        assert said["unet_calls"] == foretold["unet_calls"]
        picture = Path(said["images"][0])
        assert pixels(picture).shape == (32, 48, 3)
        assert told(picture)["arguments"]["resolution"] == "48x32"
        ran = run_cli("replay", picture, "--json")
        assert json.loads(ran.stdout)["identical"], ran.stderr
    if unit > 1:
        ran = run_cli(*FAMILIES[family].line(f"sample MODEL --resolution {16 + unit - 1}x16", family), "-o", "refused")
        assert ran.code == 2
        assert f"multiples of {unit}" in ran.stderr


@pytest.mark.parametrize(("family", "name"), REFUSALS, ids=lambda part: part.replace(" ", "-"))
def test_what_it_cannot_do_is_said_in_a_line(run_cli, folder, tmp_path, monkeypatch, family: str, name: str) -> None:
    monkeypatch.chdir(folder)
    line, named = FAMILIES[family].refusals()[name]
    ran = run_cli(*FAMILIES[family].line(line, family), "-o", tmp_path / "out")
    assert ran.code in (2, 4)
    assert named.replace("MODEL", family) in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("family", FAMILIES)
def test_inspect(run_cli, folder, monkeypatch, tmp_path, family: str) -> None:
    monkeypatch.chdir(folder)
    ran = run_cli("inspect", family, "--json")
    assert ran.code == 0, ran.stderr
    said = json.loads(ran.stdout)
    assert said["model"]["family"] == (FAMILIES[family].family or family)
    assert set(said["components"]) == FAMILIES[family].parts
    network = [part for part in said["components"].values() if part["class"] == FAMILIES[family].network]
    assert [part["parameters"] > 1000 for part in network] == [True]
    ran = run_cli("inspect", family, "--image", "drawing.png", "-o", tmp_path / "back.png", "--json")
    assert (ran.code == 0) == ("vae" in FAMILIES[family].parts), ran.stderr
    assert ran.code == 0 or "no VAE" in ran.stdout


@pytest.mark.parametrize("family", FAMILIES)
def test_embed(run_cli, folder, monkeypatch, tmp_path, family: str) -> None:
    """Prompts are encoded ahead, where it takes any."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DIFFKIT_CACHE", str(tmp_path))
    ran = run_cli("embed", "a cat", "-m", family, "--json")
    text = "text_encoder" in FAMILIES[family].parts
    assert (ran.code == 0) == text == bool(list(tmp_path.rglob("*.safetensors"))), ran.stderr
    assert text or "knows no prompts" in ran.stdout
