"""`diffkit schedule`: the numbers against the formulas, the plot, a model's own, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from PIL import Image

from diffkit.engine.schedules import SCHEDULES
from diffkit.models.bundled import bundled


def shown(ran) -> list[dict]:
    assert ran.code == 0, ran.stderr
    return json.loads(ran.stdout)["schedules"]


def test_all_schedules_side_by_side(run_cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = run_cli("schedule", "--json", "--points", "5")
    rows = shown(ran)
    assert [row["name"].split(":")[0] for row in rows] == [*SCHEDULES, "flow"]
    for row in rows:
        assert row["timesteps"] == [0, 250, 500, 749, 999] or row["name"] == "flow"
        assert row["description"].endswith(".") or "arXiv" in row["description"]
        assert row["signal"] == sorted(row["signal"], reverse=True)
        assert row["noise"] == sorted(row["noise"])
        if row["name"] != "flow":
            assert all(s**2 + n**2 == pytest.approx(1) for s, n in zip(row["signal"], row["noise"], strict=True))
    with Image.open("outputs/schedule.png") as plot:
        assert plot.width > plot.height > 500
    assert run_cli("schedule", "cosine", "-o", "one.png").code == 0
    assert Path("one.png").is_file()


def test_the_numbers_are_the_formulas(run_cli, tmp_path: Path) -> None:
    where = ("-o", tmp_path, "--json", "--points", "300", "-t", "300")
    linear, offset = shown(run_cli("schedule", "linear:0.001,0.004", "offset_cosine", *where))
    assert linear["name"] == "linear:0.001,0.004"
    abar = 1.0
    for t in range(300):
        beta = 0.001 + 0.003 * t / 299
        abar *= 1 - beta
        assert linear["beta"][t] == pytest.approx(beta, rel=1e-5)
        assert linear["signal"][t] == pytest.approx(math.sqrt(abar), rel=1e-5)
        assert linear["log_snr"][t] == pytest.approx(math.log(abar / (1 - abar)), rel=1e-3, abs=1e-4)
    assert (offset["signal"][0], offset["signal"][-1]) == pytest.approx((0.95, 0.02), abs=1e-5)
    (flow,) = shown(run_cli("schedule", "flow", "-o", tmp_path, "--json", "-t", "10", "--points", "10"))
    assert flow["noise"] == pytest.approx([k / 10 for k in range(1, 11)])
    assert flow["signal"] == pytest.approx([1 - k / 10 for k in range(1, 11)])
    assert (flow["beta"], flow["log_snr"][-1]) == (None, None)
    assert flow["log_snr"][4] == pytest.approx(0, abs=1e-6)


def test_a_models_own(run_cli, tmp_path: Path) -> None:
    own, cosine = shown(run_cli("schedule", "cosine", "--model", "tiny", "-o", tmp_path, "--json"))
    assert own["name"] == "tiny"
    assert own["signal"] == pytest.approx(cosine["signal"])  # its recipe's
    assert len(shown(run_cli("schedule", "--model", bundled(), "-o", tmp_path, "--json"))) == 1
    text = run_cli("schedule", "--model", "tiny", "-o", tmp_path, "--points", "3").stdout
    assert "sqrt(abar)" in text
    assert "T = 1000" in text


def test_what_is_not_there_is_refused(run_cli, tmp_path: Path) -> None:
    ran = run_cli("schedule", "cosin", "-o", tmp_path)
    assert ran.code == 2
    assert "cosine" in ran.stderr
    assert run_cli("schedule", "linear:2,3", "-o", tmp_path).code == 2
    assert run_cli("schedule", "--points", "1").code == 2
    assert run_cli("schedule", "-o", tmp_path / "x.jpg").code == 2
    assert run_cli("schedule", "--model", tmp_path / "nothing", "--offline", "-o", tmp_path).code in (2, 4)
