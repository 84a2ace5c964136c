"""`diffkit convert`: what it prints, its exit codes, and the options that its hints name."""

from __future__ import annotations

import argparse
import errno
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.models.conftest import make_pipeline, make_sd
from tests.models.test_opening import checkpoint
from tests.models.test_pickled import pickled
from tests.support.single_file import single_file

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIFFKIT_CACHE", str(tmp_path / ".cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_file_becomes_a_folder_that_draws_the_same_picture(run_cli: Run, here: Path) -> None:
    torch.save({"state_dict": single_file(make_sd(here / "sd"))}, "model.ckpt")
    ran = run_cli("convert", "model.ckpt", "out", "--config", "sd", "--allow-pickle", "--json")
    assert ran.code == 0, ran.stdout
    told = json.loads(ran.stdout)
    assert {key: told[key] for key in ("source", "output", "kind", "pipeline", "family", "dtype", "dry_run")} == {
        "source": "model.ckpt", "output": "out", "kind": "single file", "pipeline": "StableDiffusionPipeline",
        "family": "stable_diffusion", "dtype": "fp32", "dry_run": False,
    }  # fmt: skip
    assert told["bytes"] == sum(path.stat().st_size for path in Path("out").rglob("*") if path.is_file())
    assert told["seconds"]["total"] > 0
    assert len([line for line in ran.stderr.splitlines() if "restricted unpickler" in line]) == 1
    drawn = []
    for model in ("sd", "out"):
        made = run_cli("sample", model, "--prompt", "a cat", "--steps", 2, "-o", f"{model}.png", "--json")
        assert made.code == 0, made.stdout
        drawn.append(Path(f"{model}.png"))
    from PIL import Image

    one, other = (Image.open(path).tobytes() for path in drawn)
    assert one == other


def test_what_is_printed_and_what_a_dry_run_says(run_cli: Run, here: Path) -> None:
    checkpoint(here / "run", "unet", "unet_ema", scheduler=True)
    planned = run_cli("convert", "run/checkpoint-500", "out", "--dry-run")
    assert planned.code == 0
    assert "unet" in planned.stdout
    assert "run/checkpoint-500/unet_ema" in planned.stdout
    assert "would be written to out" in planned.stdout
    assert not Path("out").exists()
    made = run_cli("convert", "run/checkpoint-500", "out", "--no-ema", "--dtype", "bf16")
    assert made.code == 0
    assert "from run/checkpoint-500/unet\n" in made.stdout
    assert "bf16, family ddpm" in made.stdout
    assert "next       diffkit sample out" in made.stdout
    assert run_cli("inspect", "out", "--json").code == 0


def test_errors_name_the_options(run_cli: Run, here: Path) -> None:
    save_file(single_file(make_sd(here / "sd")), "one.safetensors")
    make_pipeline(here / "m")
    pickled(here / "m")
    (here / "there").mkdir()
    (here / "there" / "x").write_text("x")
    (here / "loop").symlink_to("loop")
    rows: list[tuple[tuple[str, ...], int, str]] = [
        (("one.safetensors", "out"), 2, "--config"),
        (("m", "out"), 4, "--allow-pickle"),
        (("m", "out"), 4, "m: unet/ has only pickled weights"),
        (("sd", "loop", "--dtype", "fp16"), 2, "loop"),
        (("~nobody-of-this-name/m", "out"), 2, "a path cannot be used"),
        (("sd", "out"), 2, "--dtype"),
        (("sd", "there", "--dtype", "fp16"), 2, "--overwrite"),
        (("sd", "there", "--dtype", "fp16", "--overwrite"), 2, "OUT there holds something else"),
        (("sd", "sd", "--dtype", "fp16"), 2, "OUT sd holds the source"),
        (("sd", "out", "--dtype", "fp8"), 2, "--dtype"),
        (("one.safetensors", "out", "--config", "m"), 4, "does not fit the configuration in m"),
        (("nowhere.ckpt", "out", "--offline"), 4, "no such file"),
        (("sd",), 2, "OUT"),
    ]
    for words, code, said in rows:
        ran = run_cli("convert", *words, "--json")
        error = json.loads(ran.stdout)["error"]
        assert (ran.code, error["code"]) == (code, code), words
        assert said in f"{error['message']} {error['hint']}", words
        assert "`" not in error["message"], words
    assert not Path("out").exists()


def test_a_refused_global_is_named_and_the_exit_code_is_the_model_s(run_cli: Run, here: Path) -> None:
    torch.save({"state_dict": {}, "hyper_parameters": argparse.Namespace(a=1)}, "model.ckpt")
    ran = run_cli("convert", "model.ckpt", "out", "--allow-pickle")
    assert ran.code == 4
    assert "argparse.Namespace" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("SafetensorError: No space left on device")],
)
def test_a_full_disk_is_the_resources_fault(
    run_cli: Run, here: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors.torch

    def full(*_: object, **__: object) -> None:
        raise error

    make_pipeline(here / "m")
    monkeypatch.setattr(safetensors.torch, "save_file", full)
    ran = run_cli("convert", "m", "out", "--dtype", "fp16")
    assert ran.code == 5
    assert "disk is full" in ran.stderr
    assert {path.name for path in here.iterdir()} == {"m"}


def test_a_target_in_the_way_is_said_before_torch_is_imported(here: Path) -> None:
    (here / "out").write_text("x")
    code = (
        "import sys\nfrom diffkit.cli import main\n"
        "try: main(['convert', 'm', 'out'])\n"
        "except SystemExit as left: print(left.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["2", "False"], done.stderr
