"""What becomes of the options that guide where nothing is guided: it is said, before any model is looked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from diffkit.jobs import job_class, summaries

SAID = "--guidance 1 uses the prompt alone: --negative-prompt has no effect; give another --guidance"
TWO = ["--p1", "a cat", "--p2", "a tree"]
WORDS = {"anagram": TWO, "hybrid": TWO, "invert": ["--edit-prompt", "a tree"]}
BOTH = [k for k in summaries() if {"guidance", "negative_prompt"} <= job_class(k).model_fields.keys()]


def model_of(command: str) -> list[str]:
    return ["nowhere/at-all"] if command == "sample" else ["-m", "nowhere/at-all"]


@pytest.mark.parametrize("command", BOTH)
@pytest.mark.parametrize(("scale", "said"), [("1", True), ("1.5", False), ("0", False)])
def test_at_guidance_one_it_has_no_effect(run_cli, command: str, scale: str, said: bool) -> None:
    common = (command, *model_of(command), *WORDS.get(command, []), "--offline")
    ran = run_cli(*common, "--guidance", scale, "--negative-prompt", "a dog")
    assert ran.code == 4
    assert (SAID in ran.stderr) == said
    assert "no effect" not in run_cli(*common, "--guidance", scale).stderr


def test_of_a_sweep_it_is_said_once(run_cli) -> None:
    sweeps = ("--sweep", "guidance=1,3", "--sweep", "steps=2,3")
    ran = run_cli(
        "anagram", *model_of("anagram"), *WORDS["anagram"], "--negative-prompt", "a dog", *sweeps, "--offline"
    )
    assert ran.stderr.count("--negative-prompt has no effect") == 1


def test_an_interval_of_guidance_one_is_said_too(run_cli) -> None:
    common = ("sample", *model_of("sample"), "--offline", "--guidance", "1", "--guidance-interval", "0:0.5")
    assert "--guidance-interval has no effect" in run_cli(*common).stderr
    both = "--negative-prompt and --guidance-interval have no effect"
    assert both in run_cli(*common, "--negative-prompt", "a dog").stderr


@pytest.mark.parametrize(
    "flags",
    [
        ("--guidance", 3),
        ("--guidance-interval", "0:0.5"),
        ("--negative-prompt", "a dog"),
        ("--sweep", "guidance=1,3"),
        ("--sweep", "negative-prompt=a dog,a cow"),
    ],
)
def test_an_inversion_without_an_edit_guides_nothing(run_cli, tmp_path: Path, flags: tuple[str, object]) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    one = ("invert", tmp_path / "a.png", *model_of("invert"), "--offline")
    flag = flags[0] if flags[0] != "--sweep" else f"--{flags[1].partition('=')[0]}"
    said = run_cli(*one, *flags).stderr
    assert said.count(f"without --edit-prompt or --edit-class nothing is guided: no effect of {flag}\n") == 1
    assert "no effect" not in run_cli(*one, *flags, "--edit-prompt", "a tree").stderr
    two = ("interpolate", *model_of("interpolate"), "--offline", *flags)
    said = run_cli(*two, tmp_path / "a.png", tmp_path / "a.png").stderr
    assert said.count(f"between two images nothing is guided: no effect of {flag}\n") == 1
    assert "nothing is guided" not in run_cli(*two).stderr


def test_where_nothing_is_guided_more_guidance_is_no_advice(run_cli, tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    flags = ("--offline", "--guidance", 1, "--guidance-interval", "0:0.5")
    said = run_cli("invert", tmp_path / "a.png", *model_of("invert"), *flags).stderr
    assert "no effect of --guidance, --guidance-interval" in said
    assert "give more guidance" not in said
