"""Every command on a flow whose network gives x0 and whose noise is scaled, and the options that only flows have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diffkit.engine.sampler_names import SAMPLERS
from tests.support.families import make_run
from tests.support.golden import pixels, told

FLOWS = [name for name, row in SAMPLERS.items() if row.flow]
FIELDS = {"prediction_type": "sample", "noise_scale": 2.0, "least_sigma": 0.05}


@pytest.fixture(scope="module")
def scaled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("scaled") / "m", "flow")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **FIELDS}))
    return folder


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.linear_gradient("L").resize((9, 9)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    half = Image.new("L", (9, 9))
    half.paste(255, (0, 0, 4, 9))
    half.save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


def commands(model: Path, photo: Path, mask: Path) -> dict[str, list[Any]]:
    of_class = ["--class", "one", "--steps", 4]
    return {
        "sample": ["sample", model, *of_class, "-n", 2],
        "sdedit": ["sdedit", photo, "-m", model, *of_class, "--strength", 0.5],
        "inpaint": ["inpaint", photo, mask, "-m", model, *of_class, "--resample", 2, "--jump", 2],
        "anagram": ["anagram", "-m", model, "--c1", "one", "--c2", "zero", "--view", "flip", "--steps", 4],
        "hybrid": ["hybrid", "-m", model, "--c1", "one", "--c2", "zero", "--steps", 4],
        "denoise": ["denoise", photo, "-m", model, "--class", "one", "-t", "5,10", "--stride", 4],
        "velocity": ["velocity", photo, "-m", model, "--class", "one", "--times", "0.25,0.75"],
        "interpolate": ["interpolate", "-m", model, *of_class, "--frames", 3],
        "invert": ["invert", photo, "-m", model, *of_class],
        "guide": ["sample", model, *of_class, "--guide", "color:#80a0c0"],
        "best-of": ["anagram", "-m", model, "--c1", "one", "--c2", "zero", "--view", "flip", "--steps", 4,
                    "--best-of", 2, "--scorer", f"model:{model}"],
    }  # fmt: skip


@pytest.mark.parametrize("which", list(commands(Path(), Path(), Path())))
def test_every_command_draws_and_counts(
    which: str, scaled: Path, photo: Path, mask: Path, tmp_path: Path, run_cli: Callable[..., Any]
) -> None:
    words = commands(scaled, photo, mask)[which]
    counted = run_cli(*words, "--dry-run", "--json")
    assert counted.code == 0, counted.stderr
    found = []
    for out in ("a", "b"):
        ran = run_cli(*words, "--json", "--out", tmp_path / out)
        assert ran.code == 0, ran.stderr
        found.append(json.loads(ran.stdout))
    assert found[0]["unet_calls"] == json.loads(counted.stdout)["unet_calls"]
    one, two = (pixels(done["images"][0]) for done in found)
    assert (one == two).all()
    again = run_cli("replay", found[0]["images"][0], "--json", "--out", tmp_path / "again")
    assert again.code == 0, again.stderr
    assert (pixels(json.loads(again.stdout)["images"][0]) == one).all()
    if which == "inpaint":
        assert (one.reshape(9, 9, -1)[:, 4:, 0] == pixels(photo)[:, 4:]).all()


@pytest.mark.parametrize("kind", ["velocity", "x0"])
@pytest.mark.parametrize("name", FLOWS)
def test_every_sampler_by_name(
    name: str, kind: str, scaled: Path, folders: dict[str, Path], photo: Path, tmp_path: Path,
    run_cli: Callable[..., Any],
) -> None:  # fmt: skip
    model = scaled if kind == "x0" else folders["flow"]
    for words in (["sample", model, "--class", "one", "-n", 2], ["sdedit", photo, "-m", model, "--strength", 0.5]):
        options = ["--scheduler", name, "--steps", 5, "--shift", 3, "--spacing", "linspace"]
        counted = json.loads(run_cli(*words, *options, "--dry-run", "--json").stdout)
        ran = run_cli(*words, *options, "--json", "--out", tmp_path / words[0])
        assert ran.code == 0, ran.stderr
        done = json.loads(ran.stdout)
        assert (done["unet_calls"], done["timesteps"]) == (counted["unet_calls"], counted["timesteps"])
        assert told(done["images"][0])["arguments"]["shift"] == 3.0
        again = run_cli("replay", done["images"][-1], "--json", "--out", tmp_path / "again")
        assert again.code == 0, again.stderr
        last = json.loads(again.stdout)["images"][0]
        assert (pixels(last) == pixels(done["images"][-1])).all()


def test_a_shift_is_remembered_only_where_it_is_given(
    folders: dict[str, Path], tmp_path: Path, run_cli: Callable[..., Any]
) -> None:
    ran = run_cli("sample", folders["flow"], "--steps", 2, "--json", "--out", tmp_path)
    assert "shift" not in told(json.loads(ran.stdout)["images"][0])["arguments"]
    for words, said in ((["sample", folders["classes"], "--shift", 3], "--shift 3 belongs to flow models"),
                        (["sample", folders["flow"], "--shift", 3, "--timesteps", "20,10"], "excludes"),
                        (["sample", folders["flow"], "--shift", 0], "--shift")):  # fmt: skip
        refused = run_cli(*words, "--out", tmp_path)
        assert refused.code == 2
        assert said in refused.stderr


def test_time_is_said_in_both_conventions(
    folders: dict[str, Path], tmp_path: Path, run_cli: Callable[..., Any]
) -> None:
    said = run_cli("sample", folders["flow"], "--steps", 4, "--dry-run").stdout
    assert "timesteps   20, 15, 10, 5" in said
    assert "sigma       1, 0.75, 0.5, 0.25 (" in said
    assert "time        0, 0.25, 0.5, 0.75 (1 - sigma" in said
    assert "sigma" not in run_cli("sample", folders["classes"], "--steps", 4, "--dry-run").stdout
    assert (
        "t=10 (sigma 0.5, time 0.5): signal 0.500"
        in run_cli("noise", "-m", folders["flow"], "-t", "10", "--out", tmp_path).stdout
    )
