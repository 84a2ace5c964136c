"""Pictures that version 0.1.0 made are drawn again: identical where they were made, within rounding elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from golden import LEVELS, PICTURES, apart, pixels, recorded_here, told


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.stem)
def test_a_picture_is_drawn_again(run_cli, tmp_path: Path, path: Path) -> None:
    again = tmp_path / "again.png"
    ran = run_cli("replay", path.relative_to(Path.cwd()), "--json", "--out", again)
    assert ran.code == 0, ran.stdout + ran.stderr
    said = json.loads(ran.stdout)
    recipe = told(path)
    assert said["images"] == [str(again)]
    assert said["command"] == recipe["command"]
    # Every option is still known; that of the number of pictures, which `interpolate` never took, always was silent.
    assert not [line for line in ran.stderr.splitlines() if "ignored" in line and "'num'" not in line]
    assert "has changed" not in ran.stderr  # nor has a model or an image
    if recorded_here():
        assert said["identical"], ran.stderr
    elif path.stem.endswith(("grid", "candidates")):
        assert pixels(again).shape == pixels(path).shape  # captions depend on the font's renderer, too
    else:
        assert apart(again, path) <= LEVELS
    missing = lost(recipe, told(again))
    assert not missing


def lost(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What the old metadata say and the new do not: keys, once written, stay.

    The arguments may be written in another form, as long as the old one is read. What a search said of its winner is
    not found out again by a replay.
    """
    inner = [
        f"{key}.{name}"
        for key in ("model", "versions", "illusion", "inputs")
        for name in old.get(key, {})
        if name not in new.get(key, {})
    ]
    return inner + [key for key in old if key not in new and key not in ("company", "score")]


def test_there_is_a_picture_of_every_command() -> None:
    made = {told(path)["command"] for path in PICTURES}
    assert made == {
        "sample", "sdedit", "inpaint", "anagram", "hybrid", "interpolate", "invert", "denoise", "upscale", "noise",
    }  # fmt: skip
