"""A safety checker sees every picture that is written, the turned and the enlarged ones of illusions among them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from golden import DRAWING, MASK, MODELS, pixels

from tests.models.conftest import TINY_VISION, write_checker


def with_checker(name: str, folder: Path) -> Path:
    """A model with a checker that flags whatever it sees."""
    from transformers import CLIPConfig

    shutil.copytree(MODELS / name, folder)
    config = CLIPConfig(vision_config=TINY_VISION, projection_dim=4)
    torch.manual_seed(5)
    if name == "if":
        from diffusers.pipelines.deepfloyd_if.safety_checker import IFSafetyChecker

        floyd = IFSafetyChecker(config)
        with torch.no_grad():
            for head, bias in ((floyd.p_head, 9.0), (floyd.w_head, -9.0)):
                head.weight.zero_()
                head.bias.fill_(bias)
        write_checker(folder, "deepfloyd_if", floyd)
    else:
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker

        stable = StableDiffusionSafetyChecker(config)
        with torch.no_grad():
            for part in (stable.concept_embeds, stable.special_care_embeds):
                part.copy_(torch.randn_like(part))
            stable.concept_embeds_weights.fill_(-2.0)
            stable.special_care_embeds_weights.fill_(2.0)
        write_checker(folder, "stable_diffusion", stable)
    return folder


@pytest.fixture(scope="module")
def flagged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("flagged")
    return {name: with_checker(name, folder / name) for name in ("sd", "if")}


TWO = ("--p1", "a cat", "--p2", "a dog", "--steps", 2)
COMMANDS: dict[str, tuple[str, tuple[object, ...]]] = {
    "sample": ("sd", ("sample", "MODEL", "-p", "a cat", "--steps", 2)),
    "sdedit": ("sd", ("sdedit", DRAWING, "-m", "MODEL", "-p", "a cat", "--steps", 2)),
    "inpaint": ("sd", ("inpaint", DRAWING, MASK, "-m", "MODEL", "-p", "a cat", "--steps", 2)),
    "interpolate": ("sd", ("interpolate", "-m", "MODEL", "-p", "a cat", "--frames", 2, "--steps", 2)),
    "anagram": ("sd", ("anagram", "-m", "MODEL", *TWO)),
    "hybrid": ("sd", ("hybrid", "-m", "MODEL", *TWO, "--split", "grey_colour")),
    "anagram-pixels": ("if", ("anagram", "-m", "MODEL", *TWO)),
    "anagram-cascade": ("if", ("anagram", "-m", "MODEL", "--model-2", MODELS / "if-2", *TWO)),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_flagged_is_black(run_cli, tmp_path: Path, flagged: dict[str, Path], name: str) -> None:
    model, command = COMMANDS[name]
    line = [flagged[model] if word == "MODEL" else word for word in command]
    ran = run_cli(*line, "-o", tmp_path / "one.png")
    assert ran.code == 0, ran.stderr
    assert "are black" in ran.stderr
    made = pixels(tmp_path / "one.png")
    if name == "interpolate":  # frames on a white ground
        assert set(made.ravel()) == {0, 255}
    elif name == "inpaint":  # what is kept is the user's own
        assert not made[pixels(MASK) == 255].any()
    else:
        assert not made.any()
    ran = run_cli(*line, "--no-safety-checker", "-o", tmp_path / "two.png")
    assert "is off, as asked" in ran.stderr
    assert len(set(pixels(tmp_path / "two.png").ravel())) > 2


def test_a_sheet_shows_no_more_than_its_pictures(run_cli, tmp_path: Path, flagged: dict[str, Path]) -> None:
    ran = run_cli("sample", flagged["sd"], "-p", "a cat", "-n", 2, "--steps", 2, "-o", tmp_path)
    assert ran.code == 0
    assert "2 of 2 pictures were flagged" in ran.stderr
    assert set(pixels(tmp_path / "sample-grid.png").ravel()) == {0, 255}


def test_replay_judges_too(run_cli, tmp_path: Path, flagged: dict[str, Path]) -> None:
    """Whoever has no checker's verdict in the recipe does not get round it."""
    line = ("sample", flagged["sd"], "-p", "a cat", "--steps", 2)
    assert run_cli(*line, "-o", tmp_path / "one.png").code == 0
    assert run_cli("replay", tmp_path / "one.png", "--out", tmp_path / "again.png").code == 0
    assert not pixels(tmp_path / "again.png").any()
