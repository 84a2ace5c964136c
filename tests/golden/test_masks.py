"""Masks: white is repainted, black is kept, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden import DRAWING, HEART, MASK, pixels
from PIL import Image

COMMANDS: dict[str, tuple[tuple[object, ...], tuple[object, ...]]] = {
    "inpaint": (("inpaint", DRAWING, MASK), ("--steps", 2)),
    "inpaint-often": (("inpaint", DRAWING, MASK), ("--steps", 3, "--resample", 2, "--jump", 1)),
    "sdedit": (("sdedit", DRAWING, "--mask", MASK), ("--steps", 3, "--strength", 0.9)),
}


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("name", COMMANDS)
def test_black_is_kept_and_white_is_not(drawn: Callable[..., Any], name: str, inverted: bool) -> None:
    first, more = COMMANDS[name]
    flags = ("--invert-mask",) if inverted else ()
    said = drawn(*first, "-m", "tiny", "-p", HEART, *more, *flags, "-n", 2)
    image, repainted = pixels(DRAWING), (pixels(MASK) == 255) != inverted
    for path in said["images"]:
        made = pixels(path)
        assert (made[~repainted] == image[~repainted]).all()
        assert not (made[repainted] == image[repainted]).all()


@pytest.mark.parametrize("model", ["models/sd", "models/sd9"])
def test_latent_models_keep_it_too(drawn: Callable[..., Any], model: str) -> None:
    made = pixels(drawn("inpaint", DRAWING, MASK, "-m", model, "-p", "a cat", "--steps", 2)["images"][0])
    kept = pixels(MASK) == 0
    assert (made[kept] == pixels(DRAWING)[kept]).all()


@pytest.mark.parametrize("command", ["inpaint", "sdedit"])
@pytest.mark.parametrize(("value", "said"), [(0, "black everywhere"), (255, "white everywhere")])
def test_masks_that_ask_for_nothing_or_all_are_pointed_out(
    run_cli, tmp_path: Path, command: str, value: int, said: str
) -> None:
    mask = tmp_path / "mask.png"
    Image.new("L", (32, 32), value).save(mask)
    where = (DRAWING, mask) if command == "inpaint" else (DRAWING, "--mask", mask)
    ran = run_cli(command, *where, "-m", "models/digits", "--steps", 2, "-o", tmp_path)
    assert ran.code == 0
    assert said in ran.stderr
    ran = run_cli(command, *where, "--invert-mask", "-m", "models/digits", "--steps", 2, "-o", tmp_path)
    assert ("white" if value == 0 else "black") + " everywhere" in ran.stderr


@pytest.mark.parametrize("command", ["inpaint", "sdedit"])
def test_a_mask_of_another_size_is_refused_before_any_model(run_cli, tmp_path: Path, command: str) -> None:
    mask = tmp_path / "mask.png"
    Image.new("L", (32, 16), 255).save(mask)
    where = (DRAWING, mask) if command == "inpaint" else (DRAWING, "--mask", mask)
    ran = run_cli(command, *where, "-m", "no/such", "-o", tmp_path / "out")
    assert ran.code == 2
    assert ran.stdout == ""
    assert "32x16" in ran.stderr
    assert "32x32" in ran.stderr


def test_an_image_needs_its_mask(run_cli, tmp_path: Path) -> None:
    ran = run_cli("inpaint", DRAWING, "-m", "no/such", "-o", tmp_path)
    assert ran.code == 2
    assert "no MASK" in ran.stderr


def test_an_all_black_mask_gives_the_image(drawn: Callable[..., Any], tmp_path: Path) -> None:
    mask = tmp_path / "mask.png"
    Image.new("L", (32, 32), 0).save(mask)
    for command in (("inpaint", DRAWING, mask), ("sdedit", DRAWING, "--mask", mask)):
        made = drawn(*command, "-m", "tiny", "-p", HEART, "--steps", 2)["images"][0]
        assert np.array_equal(pixels(made), pixels(DRAWING))
