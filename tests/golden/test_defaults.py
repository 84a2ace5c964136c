"""The model that is taken where none is named, what is said about it, and how early what is missing is said."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from golden import DRAWING, HEART, MASK, MODELS, TREE, told

ROOT = Path(__file__).resolve().parent.parent.parent
STABLE = "stable-diffusion-v1-5/stable-diffusion-v1-5"
INPAINTING = "stable-diffusion-v1-5/stable-diffusion-inpainting"
FLOYD = "DeepFloyd/IF-I-M-v1.0"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without runs, and a Hub that nobody reaches."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


SHORT = ("--steps", 2, "--json")


@pytest.mark.parametrize(
    "command",
    [
        ("sample", "-p", HEART),
        ("sdedit", DRAWING, "-p", HEART),
        ("inpaint", DRAWING, MASK, "-p", HEART),
        ("anagram", "--p1", HEART, "--p2", TREE),
        ("hybrid", "--p1", HEART, "--p2", TREE),
        ("interpolate", "-p", HEART, "--frames", 2),
        ("invert", DRAWING, "-p", HEART, "--refine", 0),
    ],
    ids=lambda command: command[0],
)
def test_the_model_in_the_package_draws_what_it_knows(run_cli, command: tuple[object, ...]) -> None:
    ran = run_cli(*command, *SHORT)
    assert ran.code == 0, ran.stderr
    said = json.loads(ran.stdout)
    assert said["model"]["id"] == "tiny"
    assert ran.stderr.count("no --model: tiny is used (it ships with diffkit") == 1
    assert told(said["images"][0])["arguments"]["model"] == "tiny"  # a later default changes no old picture


@pytest.mark.parametrize(
    ("command", "hub"),
    [
        (("sample", "-p", "a xylophone"), STABLE),
        (("sample", "-p", HEART, "-p", "a xylophone"), STABLE),
        (("sample", "-p", HEART, "--negative-prompt", "a xylophone"), STABLE),
        (("sample", "--sweep", f"prompt={HEART}|a xylophone"), STABLE),
        (("sdedit", DRAWING, "-p", "a xylophone"), STABLE),
        (("inpaint", DRAWING, MASK, "-p", "a xylophone"), INPAINTING),
        (("anagram", "--p1", HEART, "--p2", "a xylophone"), FLOYD),
        (("hybrid", "--p1", "a xylophone", "--p2", HEART), FLOYD),
        (("invert", DRAWING, "-p", HEART, "--edit-prompt", "a xylophone"), STABLE),
    ],
)
def test_what_it_does_not_know_needs_the_hub(run_cli, command: tuple[object, ...], hub: str) -> None:
    ran = run_cli(*command, "--offline", "--json")
    assert ran.code == 4
    error = json.loads(ran.stdout)["error"]
    assert error.keys() >= {"code", "message", "hint"}
    assert error["code"] == 4
    assert "'xylophone'" in error["message"]
    assert "'heart'" not in error["message"]
    assert hub in error["message"]
    assert "hf download" in error["hint"]
    assert "diffkit inspect tiny" in error["hint"]
    assert not Path("outputs").exists() or not list(Path("outputs").iterdir())


def test_a_local_run_comes_first_where_no_prompt_is_given(run_cli) -> None:
    shutil.copytree(MODELS / "digits", "runs/digits")
    for command in (("sample", "-c", "3"), ("sdedit", DRAWING, "-c", "3")):
        ran = run_cli(*command, *SHORT)
        assert ran.code == 0, ran.stderr
        assert json.loads(ran.stdout)["model"]["id"] == "runs/digits"
        assert "no --model: runs/digits is used" in ran.stderr
    ran = run_cli("sample", "-p", HEART, *SHORT)
    assert json.loads(ran.stdout)["model"]["id"] == "tiny"
    assert [Path(path).parent.name for path in json.loads(ran.stdout)["images"]] == ["outputs"]


def test_what_is_drawn_where_nothing_is_asked_for(run_cli) -> None:
    ran = run_cli("sample", *SHORT)
    said = json.loads(ran.stdout)
    prompts = [told(path)["prompt"] for path in said["images"]]
    assert len(prompts) > 1
    assert all(prompt in ran.stderr for prompt in prompts)
    ran = run_cli("sdedit", *SHORT)
    assert "no IMAGE" in ran.stderr
    assert "no --prompt: the example is a red heart" in ran.stderr
    ran = run_cli("inpaint", *SHORT)
    assert "no MASK: the right half is repainted" in ran.stderr
    ran = run_cli("noise", "--size", 8, "--json")
    assert (ran.code, "no IMAGE" in ran.stderr) == (0, True)


def test_a_class_without_a_model_is_refused(run_cli) -> None:
    ran = run_cli("sample", "-c", "3")
    assert ran.code == 2
    assert "diffkit train" in ran.stderr


def test_notices_are_said_once_and_not_at_all_when_quiet(run_cli, drawn: Callable[..., Any]) -> None:
    sweep = ("sdedit", DRAWING, "-p", "a fat heart", "-m", "tiny", "--sweep", "strength=0.5,1", "--steps", 2)
    ran = run_cli(*sweep)
    assert ran.stderr.count("'fat'") == 1
    assert ran.stderr.count("strength 0.5: 1 steps are taken") == 1
    ran = run_cli("sdedit", DRAWING, "-p", HEART, "--steps", 2, "--quiet", "--json")
    assert ran.stderr == ""
    assert json.loads(ran.stdout)["images"]


# Run one after another in one process: once torch is there, it stays.
_WATCH = """
import json, sys
from diffkit.cli import main
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit as left:
        print(json.dumps([left.code, "torch" in sys.modules]))
"""


def watched(*commands: list[str]) -> list[tuple[int, bool]]:
    """Exit codes, and whether torch had been imported by then."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _WATCH, json.dumps(commands)], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("error: ") == len(commands)
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def test_errors_that_need_no_torch_come_before_it() -> None:
    commands = (
        ["sample", "-p", "a xylophone"],  # which model draws it is not known
        ["sample", "--steps", "0"],
        ["anagram", "--reduce", "median"],
        ["sdedit", "--wings", "2"],
        ["replay", "no/such.png"],
    )
    assert watched(*commands) == [(4, False), (2, False), (2, False), (2, False), (3, False)]


def test_an_unknown_model_is_said_before_torch_is_imported() -> None:
    commands = (
        ["sample", "no/such-model"],
        ["sdedit", str(DRAWING), "-m", "no/such-model"],
        ["anagram", "-m", "no/such-model", "--p1", "a", "--p2", "b"],
        ["hybrid", "--p1", "a xylophone", "--p2", "b"],
    )
    assert watched(*commands) == [(4, False)] * len(commands)
