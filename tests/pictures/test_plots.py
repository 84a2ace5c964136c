from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from diffkit.pictures.plots import loss_curve, noise_schedules, smooth


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def blue(picture: np.ndarray) -> np.ndarray:
    """Rows, by column, of the thick line of the loss (tab:blue is 31, 119, 180)."""
    return np.argwhere((abs(picture - [31, 119, 180]) < 12).all(axis=2))


def test_a_falling_loss_falls_in_the_picture(tmp_path: Path) -> None:
    rows = [{"step": 10 * i, "loss": 2.0 * 0.95**i, "lr": 1e-4} for i in range(1, 100)]
    assert loss_curve(rows, tmp_path / "loss.png") == tmp_path / "loss.png"
    line = blue(pixels(tmp_path / "loss.png"))
    middle = line[(line[:, 1] > line[:, 1].min() + 20) & (line[:, 1] < line[:, 1].max() - 200)]  # off the legend
    left = middle[middle[:, 1] < np.quantile(middle[:, 1], 0.2), 0].mean()
    right = middle[middle[:, 1] > np.quantile(middle[:, 1], 0.8), 0].mean()
    assert right > left + 20  # rows count downwards
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]


def test_the_same_rows_give_the_same_bytes_and_no_pyplot_is_used(tmp_path: Path) -> None:
    import sys

    rows = [{"step": i, "loss": 1 / i, "validation_loss": 2 / i} for i in range(1, 20)]
    before = "matplotlib.pyplot" in sys.modules
    first, second = loss_curve(rows, tmp_path / "a.png"), loss_curve(rows, tmp_path / "b.png")
    assert first.read_bytes() == second.read_bytes()
    assert ("matplotlib.pyplot" in sys.modules) == before


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"step": 1, "loss": None}],
        [{"step": 1, "loss": 0.0}],
        [{"step": 1, "loss": -1.0}, {"step": 2, "validation_loss": 1.0}],
        [json.loads('{"step": 5, "lr": 0.1}'), {"loss": 1.0}],
    ],
)
def test_gaps_and_odd_values_are_drawn_round(tmp_path: Path, rows: list[dict[str, float]]) -> None:
    assert pixels(loss_curve(rows, tmp_path / "loss.png")).shape[2] == 3


def test_validation_gets_its_own_colour(tmp_path: Path) -> None:
    def orange(rows: list[dict[str, float]]) -> int:
        picture = pixels(loss_curve(rows, tmp_path / "loss.png"))
        return int((abs(picture - [255, 127, 14]) < 12).all(axis=2).sum())

    plain = [{"step": i, "loss": 1.0} for i in range(1, 9)]
    assert orange(plain) == 0
    assert orange([*plain, {"step": 4, "validation_loss": 0.9}, {"step": 8, "validation_loss": 0.8}]) > 50


def test_schedules_are_drawn_side_by_side(tmp_path: Path) -> None:
    def levels(name: str, noise: list[float], beta: list[float]) -> SimpleNamespace:
        ratio = [math.inf if n == 0 else -math.inf if n == 1 else math.log(1 / n - 1) for n in noise]
        return SimpleNamespace(name=name, signal=[1 - n for n in noise], noise=noise, log_snr=ratio, beta=beta)

    line = levels("straight", [k / 99 for k in range(100)], [])  # infinite at both ends, and without betas
    half = levels("constant", [0.5] * 50, [0.1] * 50)
    path = noise_schedules([line, half], tmp_path / "s.png")
    one = noise_schedules([line], tmp_path / "one.png")
    assert pixels(path).shape == pixels(one).shape
    assert (pixels(path) != pixels(one)).any()
    noise_schedules([], tmp_path / "none.png")


def test_smooth_is_the_running_mean() -> None:
    assert smooth([1, 2, 3, 4], 2) == [1, 1.5, 2.5, 3.5]
    assert smooth([3, 1], 1) == [3, 1]
    assert smooth([], 3) == []


def test_kid_is_drawn_below_the_loss(tmp_path: Path) -> None:
    rows = [{"step": i, "loss": 1 / i} for i in range(1, 20)]
    measured = [{"step": 5 * k, "kid": 0.1 / k, "kid_std": 0.01, "fid": 3.0 / k} for k in range(1, 4)]
    alone, both = pixels(loss_curve(rows, tmp_path / "a.png")), pixels(loss_curve(rows + measured, tmp_path / "b.png"))
    assert both.shape[0] == 2 * alone.shape[0]
    red = np.argwhere((abs(both - [214, 39, 40]) < 12).all(axis=2))  # the best, tab:red, stands in the lower half
    assert red[:, 0].min() > alone.shape[0]
    assert (
        loss_curve([*rows, {"step": 3, "kid": None}], tmp_path / "c.png").read_bytes()
        == (tmp_path / "a.png").read_bytes()
    )
