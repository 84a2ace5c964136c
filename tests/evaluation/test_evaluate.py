"""`diffkit evaluate` by its public doors: models and folders, the cache, refusals, warnings, and metrics that order."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from safetensors.torch import load_file
from scipy import linalg
from torch import Tensor

import diffkit
from diffkit.errors import UsageError
from diffkit.evaluation import statistics
from diffkit.evaluation.features import FEATURES, Features, Network, parse_features
from diffkit.evaluation.fitting import Settings, classifier_for
from diffkit.evaluation.metrics import METRICS, measure
from diffkit.evaluation.pictures import Pictures, holds_pictures
from diffkit.pictures.tensors import from_tensor, to_tensor
from diffkit.recipes.schema import DatasetSpec
from tests.evaluation.test_features import make_classifier

ROOT = Path(__file__).resolve().parent.parent.parent
MODEL = str(ROOT / "tests" / "fixtures" / "models" / "digits")
DIGITS = DatasetSpec(name="digits", resolution=8)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFKIT_CACHE", str(tmp_path / "kit"))


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_classifier(tmp_path_factory.mktemp("judge") / "m")


def write(folder: Path, images: Tensor) -> Path:
    folder.mkdir(parents=True)
    for k, image in enumerate(from_tensor(images)):
        image.save(folder / f"{k:04d}.png")
    return folder


# --- what metrics have to do with pictures


def changed(images: Tensor, kind: str, strength: float) -> Tensor:
    """Blurred by a Gaussian of so many 28ths of the width, or noised by so many of the range's halves."""
    if kind == "noise":
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
        return (images + strength * noise).clamp(-1, 1)
    sigma = strength * images.shape[-1] / 28
    return to_tensor([image.filter(ImageFilter.GaussianBlur(sigma)) for image in from_tensor(images)])


STRENGTHS = {"blur": (0.5, 1.0, 1.5, 2.0), "noise": (0.1, 0.2, 0.4, 0.8)}


def ordered(features: Features, pictures: Pictures, count: int) -> dict[str, dict[str, list[float]]]:
    """Numbers of one half against the other: as it is, then changed at four strengths; all must be in order."""
    images = torch.cat(list(pictures.batches(pictures.chosen(count))))
    real, other = features.embed(images[::2]), images[1::2]
    found = {}
    for kind, strengths in STRENGTHS.items():
        sets = [other, *(changed(other, kind, s) for s in strengths)]
        numbers = [measure(real, features.embed(one)) for one in sets]
        found[kind] = {key: [one[key] for one in numbers] for key in numbers[0]}
        for key in ("fid", "kid", "cmmd", "mind"):
            assert found[kind][key] == sorted(found[kind][key]), (kind, key, found[kind][key])
            assert found[kind][key][-1] > 20 * abs(found[kind][key][0])
        for key in ("precision", "recall"):
            assert found[kind][key][0] > 0.8
            assert all(b < a + 0.03 for a, b in itertools.pairwise(found[kind][key]))  # shares of some hundreds
            assert found[kind][key][-1] < 0.1
    return found


def scipys(x: Tensor, y: Tensor) -> float:
    a, b = x.double().numpy(), y.double().numpy()
    root = linalg.sqrtm(np.cov(a, rowvar=False) @ np.cov(b, rowvar=False))
    traces = np.trace(np.cov(a, rowvar=False)) + np.trace(np.cov(b, rowvar=False)) - 2 * np.trace(np.real(root))
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + traces)


def test_every_metric_orders_blurred_and_noised_digits() -> None:
    pictures = Pictures(DatasetSpec(name="digits", resolution=16))
    file = classifier_for(pictures, Settings(updates=80, width=8))
    features = parse_features(f"classifier:{file}")
    ordered(features, pictures, 1200)
    images = torch.cat(list(pictures.batches(pictures.chosen(1200))))
    x, y = features.embed(images[::2]), features.embed(changed(images[1::2], "noise", 0.2))
    assert measure(x, y, ["fid"])["fid"] == pytest.approx(scipys(x, y), rel=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("DIFFKIT_TEST_DATA"), reason="DIFFKIT_TEST_DATA is not set")
def test_every_metric_orders_blurred_and_noised_mnist() -> None:
    name = str(Path(os.environ["DIFFKIT_TEST_DATA"]) / "mnist")
    pictures = Pictures(DatasetSpec(name=name, resolution=28))
    features = parse_features("classifier").fitted(pictures)
    ordered(features, pictures, 4000)


# --- models


def test_a_model_against_its_dataset(run_cli, judge: str, tmp_path: Path) -> None:
    asked = ("evaluate", MODEL, "--dataset", "digits", "--features", judge, "-n", "21", "--steps", "2", "--json")
    ran = run_cli(*asked, "--batch-size", "8", "--out", tmp_path / "told.json")
    assert ran.code == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert {"fid", "kid", "kid_std", "cmmd", "mind", "precision", "recall", "num_images"} < set(told)
    assert (told["num_images"], told["num_real"]) == (21, 1797)
    assert told["features"]["name"] == "classifier"
    assert len(told["features"]["hash"]) == 32
    assert told["resize"] == {"pictures": 8, "features": 8, "filter": "bicubic, antialiased"}
    assert told["source"]["sampling"]["steps"] == 2
    assert "21 pictures are fewer than the 24 dimensions" in ran.stderr
    assert "fid below 25" in ran.stderr
    assert json.loads((tmp_path / "told.json").read_text()) == told

    again = run_cli(*asked, "--batch-size", "8", "--compare", tmp_path / "told.json")
    assert set(json.loads(again.stdout)["change"].values()) == {0.0}


def test_its_pictures_are_those_of_sample(judge: str, tmp_path: Path) -> None:
    """The ten classes in turn, seeds counted on from the first: written by `sample`, they give the same numbers."""
    drawn = diffkit.sample(MODEL, classes="all", num=12, steps=3, seed=5, batch_size=12)
    write(tmp_path / "drawn", to_tensor(drawn))
    by_model = diffkit.evaluate(MODEL, "digits", features=judge, num=12, steps=3, seed=5, batch_size=12)
    by_folder = diffkit.evaluate(str(tmp_path / "drawn"), "digits", features=judge)
    for key, value in (
        (k, v) for k, v in by_model.scores.items() if not k.startswith("kid")
    ):  # its subsets go by order
        assert by_folder.scores[key] == pytest.approx(value, rel=1e-5, abs=1e-7)
    other = diffkit.evaluate(MODEL, "digits", features=judge, num=12, steps=3, seed=6, batch_size=12)
    assert other.scores["fid"] != by_model.scores["fid"]


def test_a_model_of_prompts_draws_the_captions_of_the_dataset(folders, judge: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    data = write(tmp_path / "data", torch.rand(6, 3, 16, 16, generator=generator) * 2 - 1)
    with pytest.raises(UsageError, match="draws from prompts, and dataset"):
        diffkit.evaluate(str(folders["if"]), str(data), features=judge, num=3, steps=2)
    for k in range(6):
        (data / f"{k:04d}.txt").write_text("a cat" if k % 2 else "a dog")
    found = diffkit.evaluate(str(folders["if"]), str(data), features=judge, num=3, steps=2, guidance=1.0)
    assert found.num_images == 3
    told = diffkit.evaluate(str(folders["if"]), str(data), features=judge, num=3, steps=2, prompt=("a cat",))
    assert told.scores["fid"] != found.scores["fid"]


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


@pytest.mark.slow  # three processes that import everything
def test_two_processes_measure_what_one_measures(judge: str, tmp_path: Path) -> None:
    told = []
    cpu = ROOT / "recipes" / "accelerate" / "cpu.yaml"  # `--cpu --num_processes 2` alone would start one process
    launch = ("accelerate.commands.launch", "--config_file", str(cpu), "--main_process_port", free_port(), "-m")
    for launcher in ((), launch):
        words = ("evaluate", MODEL, "--dataset", "digits", "--features", judge, "-n", "13", "--steps", "2")
        done = subprocess.run(
            [sys.executable, "-m", *launcher, "diffkit", *words, "--batch-size", "4", "--json"],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            cwd=tmp_path, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        told.append(json.loads(done.stdout))
    assert (told[0]["source"].pop("processes"), told[1]["source"].pop("processes")) == (1, 2)
    assert told[0] == told[1]


# --- folders


def test_two_folders(judge: str, tmp_path: Path) -> None:
    images = torch.cat(list(Pictures(DIGITS).batches(np.arange(200))))
    one, two = write(tmp_path / "one", images[:100]), write(tmp_path / "two", images[100:])
    found = diffkit.evaluate(str(one), str(two), features=judge)
    assert (found.num_images, found.num_real) == (100, 100)
    assert found.resize["pictures"] == 8
    same = diffkit.evaluate(str(one), str(one), features=judge)
    assert same.scores["fid"] == pytest.approx(0, abs=1e-9)
    assert found.scores["fid"] > 0
    with pytest.raises(UsageError, match="`steps`"):
        diffkit.evaluate(str(one), str(two), features=judge, steps=3)
    with pytest.raises(UsageError, match="100 and 1 pictures"):
        diffkit.evaluate(str(write(tmp_path / "single", images[:1])), str(two), features=judge)


def test_colour_on_one_side_is_seen(tmp_path: Path) -> None:
    from tests.evaluation.test_features import make_clip

    clip = make_clip(tmp_path / "clip")
    images = torch.cat(list(Pictures(DIGITS).batches(np.arange(20)))) / 2
    tint = 0.8 * torch.tensor([0.587, -0.299, 0.0]).reshape(1, 3, 1, 1)  # which leaves the brightness as it is
    grey, tinted = write(tmp_path / "grey", images), write(tmp_path / "tinted", images + tint)
    seen = diffkit.evaluate(str(grey), str(tinted), features=clip)
    blind = diffkit.evaluate(str(grey), str(tinted), features=clip, channels=1)
    assert seen.scores["fid"] > 20 * blind.scores["fid"]


def test_what_holds_pictures(tmp_path: Path) -> None:
    assert holds_pictures("digits")
    assert not holds_pictures(MODEL)
    assert not holds_pictures("google/ddpm-cat-256")
    write(tmp_path / "run" / "samples", torch.zeros(1, 1, 8, 8))
    assert holds_pictures(str(tmp_path / "run"))
    (tmp_path / "run" / "model_index.json").write_text("{}")
    assert not holds_pictures(str(tmp_path / "run"))


# --- rows


def test_a_metric_or_features_need_their_row_alone(run_cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are registered here and nowhere else, and the command knows them."""
    monkeypatch.setattr(FEATURES, "_rows", dict(FEATURES._rows))
    monkeypatch.setattr(METRICS, "_rows", dict(METRICS._rows))

    @FEATURES.register("tones")
    @dataclass(frozen=True)
    class Tones(Features):
        def load(self) -> Network:
            return Network(torch.nn.Identity(), lambda x: x.flatten(1), size=2, channels=1)

    @METRICS.register("shift")
    @dataclass(frozen=True)
    class Shift:
        better = "lower"
        power: int = 1

        def least(self, dimensions: int) -> int:
            return 5

        def measure(self, real: Tensor, other: Tensor) -> dict[str, float]:
            return {"shift": float((real.mean() - other.mean()).abs() ** self.power)}

    dark, light = (write(tmp_path / name, torch.full((4, 1, 8, 8), v)) for name, v in (("dark", -0.6), ("light", 0.2)))
    asked = ("evaluate", dark, "--dataset", light, "--features", "tones", "--json")
    told = json.loads(run_cli(*asked).stdout)
    assert told["shift"] == pytest.approx(0.8, abs=0.01)
    assert (told["features"]["name"], told["features"]["dimensions"]) == ("tones", 4)
    ran = run_cli(*asked, "--metric", "shift:2")
    assert json.loads(ran.stdout)["shift"] == pytest.approx(0.64, abs=0.01)
    assert "fid" not in json.loads(ran.stdout)
    assert "shift below 5" in ran.stderr


# --- the cache, and what is refused


def test_real_features_are_kept_and_told_apart(judge: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features, pictures = parse_features(judge), Pictures(DIGITS)
    first = statistics.real_features(features, pictures, 50)
    calls: list[int] = []
    embed = Features.embed

    def counted(self: Features, images: Tensor) -> Tensor:
        calls.append(len(images))
        return embed(self, images)

    monkeypatch.setattr(Features, "embed", counted)
    assert torch.equal(statistics.real_features(parse_features(judge), Pictures(DIGITS), 50), first)
    assert not calls
    larger = Pictures(DatasetSpec(name="digits", resolution=12))
    statistics.real_features(features, larger, 50)
    statistics.real_features(features, pictures, 40)
    assert sum(calls) == 90  # another size and another number are other statistics
    write(tmp_path / "mine", torch.cat(list(pictures.batches(np.arange(5)))))
    mine = DatasetSpec(name=str(tmp_path / "mine"), resolution=8)
    statistics.real_features(features, Pictures(mine), 5)
    Image.new("L", (8, 8), 7).save(tmp_path / "mine" / "0001.png")
    statistics.real_features(features, Pictures(mine), 5)
    assert sum(calls) == 100  # another picture, too


def test_statistics_of_other_features_are_refused_and_broken_ones_made_again(judge: str, tmp_path: Path) -> None:
    features, pictures = parse_features(judge), Pictures(DIGITS)
    first = statistics.real_features(features, pictures, 30)
    [file] = (tmp_path / "kit" / "statistics").iterdir()
    other = statistics.real_features(parse_features(make_classifier(tmp_path / "other")), pictures, 20)
    [theirs] = set((tmp_path / "kit" / "statistics").iterdir()) - {file}
    assert len(other) == 20
    file.write_bytes(theirs.read_bytes())
    with pytest.raises(UsageError, match="statistics of something else: count '20', not '30'"):
        statistics.real_features(features, pictures, 30)
    file.write_bytes(b"broken")
    assert torch.equal(statistics.real_features(features, pictures, 30), first)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": {"name": "clip", "hash": "0"}}, "features name 'clip', now 'classifier'"),
        ({"resize": {"pictures": 16, "features": 8, "filter": "bilinear"}}, "filter 'bilinear'"),
        ({"dataset": {"identity": "0"}}, "dataset identity"),
    ],
)
def test_numbers_of_other_features_are_not_compared(run_cli, judge, tmp_path: Path, change, message: str) -> None:
    images = torch.cat(list(Pictures(DIGITS).batches(np.arange(20))))
    mine = write(tmp_path / "mine", images)
    ran = run_cli("evaluate", mine, "--dataset", "digits", "--features", judge, "--json")
    earlier = {**json.loads(ran.stdout), **change}
    (tmp_path / "earlier.json").write_text(json.dumps(earlier))
    ran = run_cli("evaluate", mine, "--dataset", "digits", "--features", judge, "--compare", tmp_path / "earlier.json")
    assert ran.code == 2
    assert message in ran.stderr
    assert not ran.stdout


def test_other_numbers_of_pictures_are_said(run_cli, judge: str, tmp_path: Path) -> None:
    mine = write(tmp_path / "mine", torch.cat(list(Pictures(DIGITS).batches(np.arange(20)))))
    asked = ("evaluate", mine, "--dataset", "digits", "--features", judge)
    (tmp_path / "earlier.json").write_text(run_cli(*asked, "-n", "10", "--json").stdout)
    ran = run_cli(*asked, "--compare", tmp_path / "earlier.json")
    assert ran.code == 0
    assert "10 pictures earlier, 20 now" in ran.stderr
    assert "(+" in ran.stdout or "(-" in ran.stdout


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ((MODEL,), 2, "--dataset"),
        ((MODEL, "--dataset", "digits", "--features", "clap"), 2, "unknown features 'clap'"),
        ((MODEL, "--dataset", "digits", "--features", "inception"), 2, "no file named"),
        ((MODEL, "--dataset", "digits", "--features", "clip:no/such"), 4, "not in the local cache"),
        ((MODEL, "--dataset", "digits", "--metric", "isc"), 2, "unknown metric 'isc'"),
        ((MODEL, "--dataset", "nowhere"), 3, "unknown dataset"),
        (("./nothing", "--dataset", "digits"), 4, "nothing"),
        ((MODEL, "--dataset", "digits", "--compare", "none.json"), 2, "No such file"),
        ((MODEL, "--dataset", "digits", "--channels", "2"), 2, "channel"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(run_cli, words: tuple[str, ...], code: int, message: str) -> None:
    ran = run_cli("evaluate", *words)
    assert (ran.code, message in ran.stderr) == (code, True), ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_dataset_without_classes_has_no_classifier(tmp_path: Path) -> None:
    mine = write(tmp_path / "mine", torch.cat(list(Pictures(DIGITS).batches(np.arange(20)))))
    with pytest.raises(UsageError, match="has no classes to learn") as caught:
        diffkit.evaluate(str(mine), str(mine))
    assert "clip:ID" in caught.value.hint


def test_the_classifier_is_learned_once_and_alike(tmp_path: Path) -> None:
    pictures, short = Pictures(DIGITS), Settings(updates=5, width=4, pictures=200)
    state = torch.get_rng_state()
    first = classifier_for(pictures, short)
    assert torch.equal(torch.get_rng_state(), state)
    kept, written = load_file(first), first.stat().st_mtime_ns
    assert classifier_for(Pictures(DIGITS), short) == first
    assert first.stat().st_mtime_ns == written
    first.unlink()
    again = load_file(classifier_for(pictures, short))
    assert all(torch.equal(value, again[key]) for key, value in kept.items())
    assert classifier_for(pictures, Settings(updates=6, width=4, pictures=200)) != first
