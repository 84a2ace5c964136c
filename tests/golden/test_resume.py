"""A run that version 0.1.0 began and had to stop goes on, and ends where that version's uninterrupted run ended."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from golden import FIXTURES, MODELS, recorded_here
from safetensors.torch import load_file

from tests.fixtures.make import TRAIN, words


def test_a_stopped_run_goes_on(run_cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(FIXTURES / "run", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    [stopped] = (tmp_path / "run" / "checkpoints").iterdir()
    ran = run_cli(*words(TRAIN), "--json")
    assert ran.code == 0, ran.stdout + ran.stderr
    said = json.loads(ran.stdout)
    assert Path(said["resumed_from"]).name == stopped.name
    assert said["step"] == 40
    assert said["skipped_steps"] == 0
    for part in ("unet", "unet_raw"):  # the average, and the last weights
        name = f"{part}/diffusion_pytorch_model.safetensors"
        mine, wanted = load_file(tmp_path / "run" / name), load_file(MODELS / "digits" / name)
        assert mine.keys() == wanted.keys()
        # Another processor rounds otherwise, and Adam's steps are as large where a gradient is nearly nothing.
        near = {"atol": 0.0, "rtol": 0.0} if recorded_here() else {"atol": 2e-3, "rtol": 1e-2}
        for key, value in wanted.items():
            torch.testing.assert_close(mine[key], value, **near, msg=lambda m, at=f"{part} {key}": f"{at}: {m}")
    for name in ("diffkit.json", "unet/config.json", "scheduler/scheduler_config.json"):
        mine, wanted = (json.loads((root / name).read_text()) for root in (tmp_path / "run", MODELS / "digits"))
        for found in (mine, wanted):
            found.pop("_diffusers_version", None)  # which of them wrote it, not what was trained
        assert wanted.items() <= mine.items()


def test_a_changed_recipe_is_refused(run_cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(FIXTURES / "run", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    ran = run_cli(*words(TRAIN), "--set", "training.lr=5e-4", "--json")
    assert ran.code == 2
    assert "lr" in json.loads(ran.stdout)["error"]["message"]
