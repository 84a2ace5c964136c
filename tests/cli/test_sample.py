from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffkit.errors import ModelError
from diffkit.jobs.run import batches_of
from diffkit.models import hub
from diffkit.pictures.metadata import read_recipe
from tests.support.families import make_run


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("plain"), kind="none")


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def test_files_json_and_recipe(run_cli, run_folder: Path, tmp_path: Path) -> None:
    ran = run_cli(
        "sample", run_folder, "--class", "one", "-n", 3, "--seed", 5, "--steps", 4, "-o", tmp_path, "--json", "--gif"
    )
    assert ran.code == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert [Path(p).name for p in told["images"]] == ["sample-5.png", "sample-6.png", "sample-7.png"]
    assert Path(told["grid"]).name == "sample-grid.png"
    assert told["seeds"] == [5, 6, 7]
    assert (told["steps"], told["timesteps"], told["unet_calls"]) == (4, [19, 14, 9, 4], 4)
    assert told["model"] == {"id": str(run_folder), "revision": None, "family": "ddpm"}
    assert set(told["seconds"]) == {"load", "denoise", "total"}
    assert pixels(told["images"][0]).shape == (9, 9)  # cropped back from the 10 px of the network
    with Image.open(told["gif"]) as film:
        assert film.n_frames == 4
    recipe = read_recipe(told["images"][1])
    assert (recipe["command"], recipe["seed"], recipe["index"], recipe["class"]) == ("sample", 6, 1, "one")
    assert recipe["arguments"]["steps"] == 4
    assert len(recipe["model"]["weights"]) == 64
    assert {"diffkit", "torch", "diffusers", "python"} <= set(recipe["versions"])
    assert read_recipe(told["grid"])["command"] == "sample"


def test_picture_k_is_the_one_its_own_seed_draws(run_cli, run_folder: Path, tmp_path: Path) -> None:
    common = ("sample", run_folder, "--class", "one", "--steps", 6, "--scheduler", "ddpm", "--json")
    many = json.loads(run_cli(*common, "-n", 4, "--batch-size", 3, "-o", tmp_path / "many").stdout)["images"]
    for k in range(4):
        alone = json.loads(run_cli(*common, "--seed", k, "-o", tmp_path / f"{k}.png").stdout)["images"]
        assert alone == [str(tmp_path / f"{k}.png")]
        assert np.abs(pixels(alone[0]) - pixels(many[k])).max() <= 1


def test_all_classes_in_turn(run_cli, run_folder: Path, tmp_path: Path) -> None:
    for given, expected in (
        (["all"], ["zero", "one", "two, three"]),
        (["two, three"], ["two, three"]),
        (["1,zero"], ["one", "zero"]),
        (["2", "0"], ["two, three", "zero"]),
    ):
        flags = [part for name in given for part in ("--class", name)]
        told = json.loads(run_cli("sample", run_folder, *flags, "--steps", 2, "-o", tmp_path, "--json").stdout)
        assert [read_recipe(p)["class"] for p in told["images"]] == expected
    told = json.loads(
        run_cli("sample", run_folder, "-c", "all", "-n", 5, "--steps", 2, "-o", tmp_path, "--json").stdout
    )
    assert [read_recipe(p)["class"] for p in told["images"]] == ["zero", "one", "two, three", "zero", "one"]


def test_guidance_and_weights_make_a_difference(run_cli, run_folder: Path, tmp_path: Path) -> None:
    shown = []
    for k, flags in enumerate((["-g", "1"], [], ["-g", "2"], ["-g", "8"], ["-g", "1", "--raw"])):
        file = tmp_path / f"{k}.png"
        assert run_cli("sample", run_folder, "-c", "one", "--steps", 5, *flags, "-o", file).code == 0
        shown.append(pixels(file))
    assert (shown[1] == shown[2]).all()  # 2 is the default
    assert not (shown[0] == shown[3]).all()
    assert not (shown[0] == shown[4]).all()


@pytest.mark.parametrize("prediction", ["flow", "linear_mix", "v_prediction"])
def test_every_objective_draws(run_cli, tmp_path: Path, prediction: str) -> None:
    folder = make_run(tmp_path / "run", prediction, "concat", 8)
    told = json.loads(run_cli("sample", folder, "-c", "all", "--steps", 3, "-o", tmp_path, "--json").stdout)
    assert told["steps"] == 3
    if prediction != "v_prediction":
        assert told["timesteps"] == pytest.approx([20, 40 / 3, 20 / 3])


def test_a_one_step_denoiser_is_asked_once_and_says_so(run_cli, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", "one_step", "none")
    ran = run_cli("sample", folder, "-n", 2, "-o", tmp_path, "--json")
    assert json.loads(ran.stdout)["unet_calls"] == 1
    assert "mean of the data" in ran.stderr
    assert run_cli("sample", folder, "--steps", 5, "-o", tmp_path).code == 2


def test_custom_grid_and_stopped_noise(run_cli, plain_folder: Path, tmp_path: Path) -> None:
    flags = ("--timesteps", "19,7,2", "--scheduler", "ddpm", "--stop-noise-after", 1)
    told = json.loads(run_cli("sample", plain_folder, *flags, "-o", tmp_path, "--json").stdout)
    assert told["timesteps"] == [19, 7, 2]
    assert told["steps"] == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--scheduler", "eulr"], "eulr"),
        (["--spacing", "log"], "--spacing"),
        (["--timesteps", "5,9"], "--timesteps"),
        (["--timesteps", "a,b"], "--timesteps"),
        (["--timesteps", "9,5", "--steps", "3"], "whole grid"),
        (["--eta", "0.5", "--scheduler", "ddpm"], "--eta"),
        (["--stop-noise-after", "3"], "--stop-noise-after"),
        (["--guidance-interval", "0.5"], "give START:STOP"),
        (["--guidance-interval", "0:1:1"], "give START:STOP"),
        (["--guidance-interval", "0.6:0.4"], "start <= stop"),
        (["--guidance-interval", "0:nan"], "start <= stop"),
        (["--out", "pictures.png", "-n", "2"], "one file"),
        (["--out", "blocked/here"], "cannot be written"),
        (["--out", "a.jpg"], "written as PNG files"),
        (["--device", "tpu!"], "--device"),
    ],
)
def test_usage_errors_come_before_the_model(
    run_cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "blocked").write_text("")
    ran = run_cli("sample", "no/such-model", *flags)
    assert ran.code == 2, ran.stderr
    assert message in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--class", "four"], "four"),
        (["--guidance", "3"], "without a class"),
        (["--steps", "21"], "20 timesteps"),
        (["--scheduler", "flow_euler"], "does not fit"),
    ],
)
def test_what_does_not_fit_the_model(run_cli, run_folder: Path, tmp_path: Path, flags: list[str], message: str) -> None:
    ran = run_cli("sample", run_folder, *flags, "-o", tmp_path)
    assert ran.code == 2
    assert message in ran.stderr
    assert not list(tmp_path.glob("*.png"))


def test_an_unconditional_model_has_no_classes_and_no_guidance(run_cli, plain_folder: Path, tmp_path: Path) -> None:
    for flags in (["--class", "all"], ["--class", "1"], ["--guidance", "2"]):
        assert run_cli("sample", plain_folder, *flags, "-o", tmp_path).code == 2
    assert run_cli("sample", plain_folder, "--steps", 2, "-o", tmp_path).code == 0


def test_dry_run_loads_no_weights_and_writes_nothing(run_cli, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    for weights in folder.glob("*/*.safetensors"):
        weights.unlink()
    ran = run_cli("sample", folder, "-n", 100, "--dry-run", "--json", "-o", tmp_path / "out")
    told = json.loads(ran.stdout)
    assert (told["steps"], told["unet_calls"]) == (20, 40)
    assert told["parameters"] > 10_000
    assert not (tmp_path / "out").exists()


def test_the_model_left_out(run_cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run_cli("sample", "--class", "3")
    assert ran.code == 2
    assert "diffkit train" in ran.stderr
    make_run(tmp_path / "runs" / "digits")
    ran = run_cli("sample", "--steps", 2, "-c", "all")
    assert ran.code == 0
    assert "runs/digits is used" in ran.stderr
    assert sorted(p.name for p in (tmp_path / "outputs").iterdir()) == [
        "sample-0.png", "sample-1.png", "sample-2.png", "sample-grid.png",
    ]  # fmt: skip


def test_without_model_and_run_the_bundled_one_draws(run_cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFKIT_CACHE", str(tmp_path / "cache"))
    ran = run_cli("sample", "--steps", 2, "--json")
    told = json.loads(ran.stdout)
    assert (ran.code, told["model"]["id"]) == (0, "tiny")
    assert "a red heart" in ran.stderr  # it says what it draws where nothing was asked for
    shown = [read_recipe(Path(path))["prompt"] for path in told["images"]]
    assert len(set(shown)) == len(shown) > 1
    assert shown[0] == "a red heart"
    ran = run_cli("sample", "--prompt", "a red heart", "--steps", 2, "--json")
    assert json.loads(ran.stdout)["model"]["id"] == "tiny"
    assert len(json.loads(ran.stdout)["images"]) == 1


@pytest.mark.parametrize(
    "asked",
    [
        ("--prompt", "a red heart", "--prompt", "a fat cat"),
        ("--prompt", "a red heart", "--negative-prompt", "a cat"),
        ("--sweep", "prompt=a red heart|a fat cat"),
    ],
)
def test_every_word_asked_for_decides_about_the_model(run_cli, tmp_path: Path, monkeypatch, asked) -> None:
    def unreachable(name: str) -> None:
        raise ModelError(f"{name} is out of reach")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("diffkit.jobs.choose.open_repo", unreachable)
    ran = run_cli("sample", *asked, "--steps", 2)
    assert ran.code == 4
    assert "stable-diffusion" in ran.stderr


def test_a_word_that_the_named_model_does_not_know_is_said(run_cli, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DIFFKIT_CACHE", str(tmp_path / "cache"))
    for _ in range(2):  # the second time the prompt comes from the cache
        ran = run_cli("sample", "tiny", "--prompt", "a fat heart", "--steps", 2, "-o", tmp_path)
        assert "'fat'" in ran.stderr
        assert "'heart'" not in ran.stderr


def test_a_folder_called_tiny_is_pointed_out(run_cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    hub._say_shadowed.cache_clear()
    make_run(tmp_path / "tiny")
    ran = run_cli("inspect", "tiny", "--json")
    assert json.loads(ran.stdout)["model"]["family"] == "deepfloyd"
    assert "./tiny" in ran.stderr
    assert json.loads(run_cli("inspect", "./tiny", "--json").stdout)["model"]["family"] == "ddpm"


def test_missing_model_is_exit_code_4(run_cli, tmp_path: Path) -> None:
    assert run_cli("sample", tmp_path / "nothing", "-o", tmp_path).code == 4


def test_batches_are_dealt_whole() -> None:
    assert [list(b) for b in batches_of(7, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [k for batch in batches_of(50, 6) for k in batch] == list(range(50))


@pytest.mark.slow
def test_two_processes_write_the_same_files(run_folder: Path, tmp_path: Path) -> None:
    told = {}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    # Without a configuration `--num_processes 2` starts a single process where there is no GPU.
    cpu = str(Path(__file__).parents[2] / "recipes" / "accelerate" / "cpu.yaml")
    launch = ["accelerate.commands.launch", "--config_file", cpu, "--main_process_port", port, "-m"]
    for world, launcher in ((1, []), (2, launch)):
        out = tmp_path / str(world)
        command = [sys.executable, "-m", *launcher, "diffkit", "sample", str(run_folder), "--class", "all", "-n", "7",
                   "--batch-size", "2", "--steps", "5", "--out", str(out), "--json"]  # fmt: skip
        done = subprocess.run(
            command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        told[world] = json.loads(done.stdout)
    names = sorted(p.name for p in (tmp_path / "1").iterdir())
    assert names == sorted(p.name for p in (tmp_path / "2").iterdir())
    assert len(names) == 8
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    assert told[1]["seeds"] == told[2]["seeds"]
    assert told[1]["unet_calls"] == told[2]["unet_calls"]
