"""What becomes of `--negative-prompt` where nothing is guided: it is said, before any model is looked for."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from PIL import Image

from diffkit.cli.pictures import COMMANDS

SAID = "the prompt alone is heard, and --negative-prompt 'a dog' is not"
WORDS = {"anagram": ["--p1", "a cat", "--p2", "a tree"], "hybrid": ["--p1", "a cat", "--p2", "a tree"]}
BOTH = sorted(
    {
        "sample",
        *(
            k
            for k, call in COMMANDS.items()
            if {"guidance", "negative_prompt"} <= inspect.signature(call).parameters.keys()
        ),
    }
)


def model_of(command: str) -> list[str]:
    return ["nowhere/at-all"] if command == "sample" else ["-m", "nowhere/at-all"]


@pytest.mark.parametrize("command", BOTH)
@pytest.mark.parametrize(("scale", "said"), [("1", True), ("1.5", False), ("0", False)])
def test_guidance_one_does_not_hear_it(run_cli, command: str, scale: str, said: bool) -> None:
    common = (command, *model_of(command), *WORDS.get(command, []), "--offline")
    ran = run_cli(*common, "--guidance", scale, "--negative-prompt", "a dog")
    assert ran.code == 4
    assert (SAID in ran.stderr) == said
    assert "not: give more" not in run_cli(*common, "--guidance", scale).stderr


def test_of_a_sweep_it_is_said_once(run_cli) -> None:
    sweeps = ("--sweep", "guidance=1,3", "--sweep", "steps=2,3")
    ran = run_cli(
        "anagram", *model_of("anagram"), *WORDS["anagram"], "--negative-prompt", "a dog", *sweeps, "--offline"
    )
    assert ran.stderr.count("is not: give more") == 1


@pytest.mark.parametrize("flags", [("--guidance", 3), ("--negative-prompt", "a dog")])
def test_an_inversion_without_an_edit_guides_nothing(run_cli, tmp_path: Path, flags: tuple[str, object]) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    one = ("invert", tmp_path / "a.png", *model_of("invert"), "--offline")
    assert "without --edit-prompt they do nothing" in run_cli(*one, *flags).stderr
    assert "they do nothing" not in run_cli(*one, *flags, "--edit-prompt", "a tree").stderr
    two = ("interpolate", *model_of("interpolate"), "--offline", *flags)
    assert "between two images nothing is guided" in run_cli(*two, tmp_path / "a.png", tmp_path / "a.png").stderr
    assert "nothing is guided" not in run_cli(*two).stderr
