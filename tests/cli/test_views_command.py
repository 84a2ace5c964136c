"""`diffkit views`: the list, the sheet, and what it says of a view of one's own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diffkit.illusions.filters import FILTERS
from diffkit.illusions.views import VIEWS
from diffkit.illusions.views.base import Look


def test_lists_everything_with_a_sheet(run_cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run_cli("views", "--json")
    assert (ran.code, ran.stderr) == (0, "")
    found = json.loads(ran.stdout)
    assert [row["name"] for row in found["views"]] == list(VIEWS)
    assert [row["name"] for row in found["filters"]] == list(FILTERS)
    for row in found["views"] + found["filters"]:
        assert row["description"].endswith(".")
        assert "\n" not in row["description"]
        assert row["spec"].split(":")[0] == row["name"]
    by_name = {row["name"]: row for row in found["views"]}
    assert by_name["patch_permute"]["arguments"] == {"patches": 8, "seed": 0}
    assert by_name["permutation"]["arguments"] == {"path": None}
    assert (by_name["flip"]["latent"], by_name["negate"]["spatial"]) == ("close", False)
    assert found["images"] == ["outputs/views.png"]
    with Image.open("outputs/views.png") as sheet:
        assert sheet.width > 800
        assert sheet.height > 800


def test_for_people(run_cli, tmp_path: Path) -> None:
    ran = run_cli("views", "-o", tmp_path / "sheet.png")
    assert ran.code == 0
    for spec in ("skew:1.5", "jigsaw:4,0", "permutation:FILE", "low_high:2", "motion:7,45"):
        assert spec in ran.stdout
    assert f"picture  {tmp_path / 'sheet.png'}" in ran.stdout
    assert (tmp_path / "sheet.png").stat().st_size > 10_000
    assert "arguments: patches, seed" in ran.stdout


def test_checks_a_file_at_its_own_size_and_at_others(run_cli, tmp_path: Path) -> None:
    path = tmp_path / "mirror.npy"
    np.save(path, np.arange(64).reshape(8, 8)[:, ::-1])
    found = json.loads(run_cli("views", "check", path, "--json").stdout)
    assert (found["ok"], found["size"], found["view"]) == (True, 8, f"permutation:{path}")
    assert (found["reasons"], found["hints"], found["scores"]["kept"]) == ([], [], 1.0)
    assert json.loads(run_cli("views", "check", path, "--size", 64, "--json").stdout)["size"] == 64
    ran = run_cli("views", "check", f"permutation:{path}", "--size", 20)
    assert ran.code == 2
    assert "made for 8 px and its multiples, not for 20 px" in ran.stderr


def test_says_why_a_file_is_no_view(run_cli, tmp_path: Path) -> None:
    path = tmp_path / "double.npy"
    np.save(path, np.zeros((8, 8), dtype=int))
    ran = run_cli("views", "check", path)
    assert ran.code == 3
    assert "63 of 64 pixels are never shown" in ran.stderr
    assert "exactly once" in ran.stderr
    ran = run_cli("views", "check", tmp_path / "missing.png", "--json")
    assert ran.code == 3
    assert "no such file" in json.loads(ran.stdout)["error"]["message"]


def test_warns_of_grain_and_still_allows_it(run_cli) -> None:
    ran = run_cli("views", "check", "pixel_permute:32,4", "--size", 32)
    assert ran.code == 0
    assert "pixel_permute:32,4 can work on pictures of 32 px." in ran.stdout
    assert "but: It tears neighbours apart" in ran.stdout


def test_help_says_what_the_numbers_of_a_file_are(run_cli) -> None:
    said = " ".join(run_cli("views", "--help").stdout.split())
    assert "which pixel of the picture is shown there, counted from 0; or an RGB .png" in said


def test_says_that_a_file_changes_nothing(run_cli, tmp_path: Path) -> None:
    path = tmp_path / "still.npy"
    np.save(path, np.arange(64 * 64))
    ran = run_cli("views", "check", path)
    assert ran.code == 0
    assert "but: It changes nothing" in ran.stdout
    assert "the same picture twice" in ran.stdout


def test_a_file_for_pictures_too_large_to_check(run_cli, tmp_path: Path) -> None:
    path = tmp_path / "large.npy"
    np.save(path, np.arange(1026 * 1026, dtype=np.int32)[::-1])
    ran = run_cli("views", "check", path)
    assert ran.code == 2
    assert "is made for 1026 px, and views are checked at up to 1024 px" in ran.stderr
    assert "--size 1024 or less" in ran.stderr
    assert run_cli("views", "check", path, "--size", 513).code == 0


def test_a_view_that_breaks_the_laws(run_cli, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Brighter(Look):
        """Twice as bright."""

        name = "brighter"

        def apply(self, x: Tensor) -> Tensor:
            return 2 * x

        def invert(self, x: Tensor) -> Tensor:
            return x / 2

        def invert_var(self, v: Tensor) -> Tensor:
            return v / 4

    assert torch.equal(Brighter().invert(Brighter().apply(torch.ones(1))), torch.ones(1))
    monkeypatch.setitem(VIEWS._rows, "brighter", Brighter)
    ran = run_cli("views", "check", "brighter", "--size", 16)
    assert ran.code == 3
    assert "brighter cannot work on pictures of 16 px." in ran.stdout
    assert "why not: It changes lengths, by up to 100.00%" in ran.stdout
    assert "cannot be undone" not in ran.stdout


@pytest.mark.parametrize(
    ("typed", "reason"),
    [
        (["check"], "no view given"),
        (["check", "flop"], "unknown view 'flop'"),
        (["check", "patch_permute:8", "--size", "7"], "7 px cannot be cut into 8"),
        (["check", "jigsaw:4,99999999999999999999"], "seed is 99999999999999999999; needed: 0 to"),
        (["check", "flip", "-o", "x.png"], "--out does not apply"),
        (["list", "flip"], "belong to `diffkit views check`"),
        (["--size", "32"], "belong to `diffkit views check`"),
        (["chekc"], "chekc"),
    ],
)
def test_wrong_words(run_cli, typed: list[str], reason: str) -> None:
    ran = run_cli("views", *typed)
    assert ran.code == 2
    assert reason in ran.stderr
