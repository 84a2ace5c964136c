"""Evaluation in training: it changes no bit of the run, is the same after a resume, and keeps the best."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_run import assert_same_run
from tiny_text import captioned_folder, text_recipe

import diffkit
from diffkit.errors import UsageError
from diffkit.evaluation.classifier import SmallCNN, save_classifier
from diffkit.recipes.reading import load_recipe
from diffkit.training import fit
from diffkit.training import run as run_module

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


class Crash(Exception):
    pass


@pytest.fixture
def evaluated(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`evaluated(out="x")` -> the tiny recipe that measures itself after every fourth update."""
    monkeypatch.setenv("DIFFKIT_CACHE", str(tmp_path / "kit"))
    torch.manual_seed(0)
    file = tmp_path / "judge.safetensors"
    save_classifier(file, SmallCNN(8, 3, width=4).eval(), ["a", "b", "c"])

    def make(*sets: str, out: str = "run"):
        more = ("evaluate_every=4", "evaluate_images=70", "evaluate_steps=2", f"evaluate_features=classifier:{file}")
        return tiny(*(f"training.{one}" for one in more), "training.keep_checkpoints=9", *sets, out=out)

    return make


def rows_of(folder: str | Path) -> list[dict]:
    lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "kid" in row]


@pytest.mark.parametrize("sets", [(), ("model.overrides.dropout=0.3",), ("training.ema=false",)])
def test_it_changes_no_bit_of_the_run(tiny, evaluated, sets: tuple[str, ...]) -> None:
    plain, measured = fit(tiny(*sets, out="plain")), fit(evaluated(*sets, out="measured"))
    assert_same_run(Path(plain["output_dir"]), Path(measured["output_dir"]))
    found = rows_of(measured["output_dir"])
    assert [row["step"] for row in found] == [4, 8, 12]
    assert {"fid", "kid", "kid_std", "mind", "precision", "recall", "evaluated", "features"} < set(found[0])
    assert len({row["kid"] for row in found}) == 3
    assert "best" not in plain
    assert not (Path(plain["output_dir"]) / "best").exists()


def test_a_resumed_run_measures_the_same_and_keeps_the_same_best(evaluated) -> None:
    whole = fit(evaluated(out="whole"))

    def crash(progress) -> None:
        if progress.step.step == 10:
            raise Crash

    with pytest.raises(Crash):
        fit(evaluated(out="resumed"), on_progress=crash)
    resumed = fit(evaluated(out="resumed"))
    assert resumed["resumed_from"].endswith("step-0000008")
    assert_same_run(Path(whole["output_dir"]), Path(resumed["output_dir"]))
    assert rows_of(whole["output_dir"]) == rows_of(resumed["output_dir"])
    assert (whole["best"]["step"], whole["best"]["kid"]) == (resumed["best"]["step"], resumed["best"]["kid"])
    one, two = (load_file(Path(run["best"]["path"]) / WEIGHTS) for run in (whole, resumed))
    assert all(torch.equal(value, two[key]) for key, value in one.items())


@pytest.mark.parametrize("worse", [False, True])
def test_the_best_by_kid_is_kept_and_draws(evaluated, monkeypatch: pytest.MonkeyPatch, worse: bool) -> None:
    """With the numbers as they are, and with ones that rise, where the first weights have to stay."""
    if worse:
        numbers = iter([0.5, 0.7, 0.6])
        original = run_module.Evaluator.measure
        monkeypatch.setattr(
            run_module.Evaluator, "measure", lambda self, *a: {**original(self, *a), "kid": next(numbers)}
        )
    summary = fit(evaluated())
    folder = Path(summary["output_dir"])
    lowest = min(rows_of(folder), key=lambda row: row["kid"])
    assert summary["best"] == {"path": str(folder / "best"), "step": lowest["step"], "kid": lowest["kid"]}
    assert not worse or lowest["step"] == 4
    kept = load_file(folder / "best" / WEIGHTS)
    average = load_file(folder / "checkpoints" / f"step-{lowest['step']:07d}" / "ema.safetensors")
    shared = [key for key in average if key.removeprefix("unet.") in kept]
    assert len(shared) > 10
    assert all(torch.equal(average[key], kept[key.removeprefix("unet.")]) for key in shared)
    [picture] = diffkit.sample(str(folder / "best"), classes="3", steps=2)
    assert picture.size == (8, 8)
    assert json.loads((folder / "best" / "evaluation.json").read_text())["features"] == lowest["features"]
    assert not list(folder.glob(".best-*"))
    with Image.open(folder / "loss.png") as plot:  # the loss, and below it KID
        assert plot.height > plot.width


def test_its_numbers_are_tracked(evaluated, monkeypatch: pytest.MonkeyPatch) -> None:
    tracked: dict[int, dict] = {}
    monkeypatch.setattr(
        run_module.Run, "_track", lambda self, values, step: tracked.setdefault(step, {}).update(values)
    )
    summary = fit(evaluated())
    for row in rows_of(summary["output_dir"]):
        assert tracked[row["step"]]["kid"] == row["kid"]
        assert tracked[row["step"]]["fid"] == row["fid"]
        assert "features" not in tracked[row["step"]]


def test_a_model_of_captions_is_measured_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFKIT_CACHE", str(tmp_path / "kit"))
    torch.manual_seed(0)
    save_classifier(tmp_path / "judge.safetensors", SmallCNN(8, 3, channels=3, width=4).eval(), ["a", "b", "c"])
    more = ("evaluate_every=9", "evaluate_images=6", "evaluate_steps=2")
    features = f"training.evaluate_features=classifier:{tmp_path / 'judge.safetensors'}"
    data = captioned_folder(tmp_path / "data")
    summary = fit(text_recipe(data, tmp_path / "run", *(f"training.{one}" for one in more), features))
    [row] = rows_of(summary["output_dir"])
    assert row["evaluated"] == 6
    [picture] = diffkit.sample(summary["best"]["path"], prompt="a red disc", steps=2)
    assert picture.mode == "RGB"


def test_it_may_be_turned_on_when_a_run_goes_on(tiny, evaluated) -> None:
    fit(tiny("training.keep_checkpoints=9"))
    again = fit(evaluated())
    assert again["step"] == 12
    assert again["resumed_from"].endswith("step-0000012")


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (("training.evaluate_features=clap",), "unknown features 'clap'"),
        (("training.evaluate_features=classifier", "dataset.class_column=none", "model.class_conditioning=none"),
         "no classes to learn"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_said_before_the_first_update(evaluated, sets, message: str) -> None:
    recipe = evaluated(*sets)
    with pytest.raises(UsageError, match=message):
        fit(recipe)
    assert not (Path(recipe.output.dir) / "checkpoints").exists()


@pytest.mark.parametrize(
    "sets",
    [("noise.prediction=one_step",), ("noise.prediction=pure_noise",), ("dataset.streaming=true", "training.steps=3")],
)
def test_recipes_that_cannot_be_evaluated(sets: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="evaluate_every"):
        load_recipe("digits", sets=["training.evaluate_every=5", *sets], environ={})
