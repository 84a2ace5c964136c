"""What every picture command says and writes: keys, file names, order, and the network calls that were foretold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from golden import counted, told

from tests.fixtures.make import words

DRAWING, MASK, OTHER = "inputs/drawing.png", "inputs/mask.png", "inputs/other.png"
DIGITS = "-m|models/digits"
ALL = {"images", "model", "seeds", "steps", "timesteps", "unet_calls", "seconds"}
DRY = {"model", "steps", "timesteps", "unet_calls", "parameters", "weights_mb"}
WRITTEN = {"command", "arguments", "model", "device", "versions"}


class Case(NamedTuple):
    """A command line, its pictures by name, and what it says and writes beyond what all do."""

    line: str
    files: list[str]
    calls: int
    also: frozenset[str] | set[str] = frozenset()
    keys: frozenset[str] | set[str] = frozenset()


CASES = {
    "sample": Case(
        "sample models/digits|-c|3|-n|3|--seed|5|--steps|3|--batch-size|2",
        ["sample-5", "sample-6", "sample-7"], 6, {"grid"}, {"class"},
    ),
    "sample-prompt": Case("sample tiny|-p|a red heart|--steps|2|--gif", ["sample-0"], 2, {"gif"}, {"prompt"}),
    "sample-sweep": Case(
        "sample models/digits|--sweep|class=1,2|--sweep|steps=2,3|--seed|4",
        [f"sample-4-class={c}_steps={s}" for c in (1, 2) for s in (2, 3)], 5, {"grid", "sweep"},
    ),
    "sdedit": Case(
        f"sdedit {DRAWING}|{DIGITS}|-c|3|--strength|0.5|--steps|4|-n|3|--batch-size|2",
        ["sdedit-0", "sdedit-1", "sdedit-2"], 4, {"grid"}, {"inputs"},
    ),
    "sdedit-sweep": Case(
        f"sdedit {DRAWING}|{DIGITS}|--steps|4|-n|2|--sweep|strength=0.5,1",
        [f"sdedit-{k}-strength={s}" for s in ("0.5", "1") for k in (0, 1)], 6, {"grid", "sweep"}, {"inputs"},
    ),
    "sdedit-latent": Case(f"sdedit {DRAWING}|-m|models/sd|-p|a cat|--steps|4", ["sdedit-0"], 3, set(), {"inputs"}),
    "inpaint": Case(
        f"inpaint {DRAWING}|{MASK}|{DIGITS}|-c|8|--steps|4|--jump|2|--resample|2|--gif",
        ["inpaint-0"], 6, {"gif"}, {"inputs"},
    ),
    "inpaint-latent": Case(f"inpaint {DRAWING}|{MASK}|-m|models/sd9|-p|a cat|--steps|2", ["inpaint-0"], 2),
    "anagram": Case(
        f"anagram|{DIGITS}|--c1|6|--c2|9|--steps|3|-n|2|--animate|gif",
        ["anagram-0", "anagram-1"], 3, {"grid", "animations"}, {"illusion"},
    ),
    "anagram-best": Case(
        f"anagram|{DIGITS}|--c1|6|--c2|9|--steps|4|-n|2|--best-of|5", ["anagram-*", "anagram-*"], 8,
        {"grid", "candidates", "scores"}, {"illusion", "company", "score"},
    ),
    "anagram-cascade": Case(
        "anagram|-m|models/if|--model-2|models/if-2|--p1|a cat|--p2|a dog|--steps|3|-n|2|--batch-size|1",
        ["anagram-0", "anagram-1"], 12, {"grid"}, {"illusion"},
    ),
    "anagram-latent": Case(
        "anagram|-m|models/sd|--p1|a cat|--p2|a dog|--latent|decode|--steps|2", ["anagram-0"], 2, {"grid"},
        {"illusion"},
    ),
    "hybrid": Case(
        f"hybrid|{DIGITS}|--c1|0|--c2|1|--split|low_high:8|--steps|3", ["hybrid-0"], 3, {"grid"}, {"illusion"}
    ),
    "hybrid-reference": Case(
        f"hybrid|{DIGITS}|--c1|0|--reference|{DRAWING}|--fixed|1|--split|low_high:8|--steps|3", ["hybrid-0"], 3,
        {"grid"}, {"illusion", "inputs"},
    ),
    "interpolate": Case(
        f"interpolate|{DIGITS}|-c|3|--frames|3|--steps|3|--gif|--seed|2", ["interpolate-2"], 3, {"gif"}
    ),
    "interpolate-images": Case(
        f"interpolate {DRAWING}|{OTHER}|{DIGITS}|--frames|3|--steps|3|--refine|1", ["interpolate-0"], 6, set(),
        {"inputs"},
    ),
    "invert": Case(
        f"invert {DRAWING}|{DIGITS}|-c|3|--steps|3|--refine|1", ["invert-0"], 6, {"grid", "scores"}, {"inputs"}
    ),
    "invert-edit": Case(
        f"invert {DRAWING}|{DIGITS}|-c|3|--edit-class|8|--steps|3|--refine|1", ["invert-0"], 8, {"grid", "scores"},
        {"inputs"},
    ),
    "denoise": Case(
        f"denoise {DRAWING}|{DIGITS}|-c|3|--timesteps|300,700|--stride|250", ["denoise-0"], 7, {"psnr"}, {"inputs"}
    ),
    "upscale": Case(
        f"upscale {DRAWING}|-m|models/if-2|-p|a cat|--steps|3|-n|2", ["upscale-0", "upscale-1"], 3, {"grid"}, {"inputs"}
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("line", "calls"),
    [
        ("sample models/digits|-c|3|-n|3|--steps|4|--max-batch|2", 4 * 3),  # 6 rows, with those of guidance
        ("sample models/digits|-c|3|-n|3|--steps|4|--max-batch|2|--guidance|1", 4 * 2),
        ("sample models/digits|-c|3|-n|3|--steps|4|--max-batch|4|--guidance-interval|0.5:1", 2 * 1 + 2 * 2),
        ("sample models/digits|-c|3|-n|3|--steps|2|--batch-size|2|--max-batch|3", 2 * 2 + 2 * 1),
        (f"sdedit {DRAWING}|{DIGITS}|-c|3|--strength|0.5|--steps|4|-n|3|--max-batch|4", 2 * 2),
        (f"sdedit {DRAWING}|{DIGITS}|-c|3|--steps|4|-n|2|--strength|0.5|--max-batch|3|--sweep|guidance=1,3", 2 * 3),
        (f"anagram|{DIGITS}|--c1|6|--c2|9|--steps|3|-n|2|--max-batch|3", 3 * 3),
        (f"anagram|{DIGITS}|--c1|6|--c2|9|--steps|3|-n|2|--max-batch|3|--reduce|alternate", 3 * 2),
        ("anagram|-m|models/sd|--p1|a cat|--p2|a dog|--latent|decode|--steps|2|--max-batch|3", 2 * 2),
        (f"hybrid|{DIGITS}|--c1|0|--reference|{DRAWING}|--fixed|1|--split|low_high:8|--steps|3|--max-batch|1", 3 * 2),
    ],
)
def test_calls_that_max_batch_cuts_are_counted(drawn: Callable[..., dict[str, Any]], line: str, calls: int) -> None:
    with counted() as rows:
        said = drawn(*words(line))
    assert drawn(*words(line), "--dry-run")["unet_calls"] == said["unet_calls"] == len(rows) == calls


@pytest.mark.parametrize("name", CASES)
def test_a_command_does_what_it_says(drawn: Callable[..., dict[str, Any]], tmp_path: Path, name: str) -> None:
    case = CASES[name]
    foretold = drawn(*words(case.line), "--dry-run")
    assert not (tmp_path / "pictures").exists()
    with counted() as rows:
        said = drawn(*words(case.line))

    assert foretold.keys() >= DRY | ({"stages"} if "cascade" in name else set())
    assert said.keys() >= ALL | case.also
    assert said["model"].keys() >= {"id", "revision", "family"}
    assert said["seconds"].keys() >= {"load", "denoise", "total"}

    judged = said.get("scores", {}).get("judge_calls", 0)
    assert bool(judged) == ("uncounted" in foretold)  # what the scorer asks is not foretold, and is said so
    assert foretold["unet_calls"] == case.calls
    assert said["unet_calls"] == len(rows) == case.calls + judged
    assert foretold["timesteps"] == said["timesteps"]
    assert foretold["steps"] == said["steps"]

    images = [Path(path) for path in said["images"]]
    assert len(images) == len(case.files)
    assert all(path.match(f"{wanted}.png") for path, wanted in zip(images, case.files, strict=True))
    command = words(case.line)[0]
    extra = {f"{command}-{kind}.png" for kind in ("grid", "candidates") if kind in said}
    films = {Path(path).name for path in said.get("animations", [])}
    films |= {Path(said["gif"]).name} if "gif" in said else set()
    there = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert there == {path.name for path in images} | extra | films
    if "gif" in said:
        assert Path(said["gif"]).name == f"{command}.gif"
    assert films >= ({"anagram-0-views.gif"} if "animations" in said else set())

    for k, path in enumerate(images):
        own = told(path)
        assert own.keys() >= WRITTEN | case.keys | {"seed", "index"}
        assert own["command"] == command
        assert own["model"].keys() >= {"id", "revision", "family", "weights"}
        assert own["versions"].keys() >= {"diffkit", "torch", "diffusers", "python"}
        if "sweep" not in said:
            assert (own["seed"], own["index"]) == (said["seeds"][k], k)
    for kind in ("grid", "candidates"):
        if kind in said:
            sheet = told(said[kind] if kind == "grid" else said[kind][0])
            assert sheet.keys() >= WRITTEN
            assert "index" not in sheet  # by which a sheet is told from its pictures


def test_what_a_search_says(drawn: Callable[..., dict[str, Any]]) -> None:
    said = drawn(*words(CASES["anagram-best"].line))
    scores = said["scores"]
    assert scores.keys() >= {"scorer", "best", "rows", "saved", "tried", "judge_calls", "judge_rows"}
    assert [one["seed"] for one in scores["tried"]] == [0, 1, 2, 3, 4]
    assert all(one.keys() >= {"seed", "A", "C", "matrix", "steps", "dropped"} for one in scores["tried"])
    assert said["seeds"] == scores["best"]  # best first, and the pictures in that order
    found = {one["seed"]: one["A"] for one in scores["tried"]}
    assert found[scores["best"][0]] >= found[scores["best"][1]]
    assert max(found[seed] for seed in scores["best"]) == max(found.values())
    for path, seed in zip(said["images"], scores["best"], strict=True):
        own = told(path)
        assert own["company"] == scores["best"]
        assert own["score"]["A"] == found[seed]
        assert "best_of" not in own["arguments"]  # it is replayed as the picture of its seed


def test_what_psnr_and_round_trips_say(drawn: Callable[..., dict[str, Any]]) -> None:
    said = drawn(*words(CASES["denoise"].line))["psnr"]
    assert said.keys() >= {"blur", "one_step", "iterative"}
    assert all(set(by_level) == {"300", "700"} for by_level in said.values())
    assert drawn(*words(CASES["invert"].line))["scores"].keys() >= {"round_trip_psnr", "latent_std"}


def test_noise_has_no_network(drawn: Callable[..., dict[str, Any]]) -> None:
    with counted() as rows:
        said = drawn("noise", DRAWING, "--timesteps", "0,500", "--size", 16, "-n", 2, "--seed", 3)
    assert said.keys() >= {"images", "schedule", "seeds", "timesteps", "unet_calls", "signal", "seconds"}
    assert (len(rows), said["unet_calls"]) == (0, 0)
    assert [Path(path).name for path in said["images"]] == ["noise-3.png", "noise-4.png"]
    own = told(said["images"][1])
    assert own.keys() >= {"command", "arguments", "inputs", "versions", "device", "seed", "index"}
    assert (own["seed"], own["index"]) == (4, 1)


def test_one_picture_may_have_a_name_of_its_own(run_cli, drawn: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    said = drawn("sample", "models/digits", "--steps", 2, "--gif", "-o", tmp_path / "mine.png")
    assert said["images"] == [str(tmp_path / "mine.png")]
    assert said["gif"] == str(tmp_path / "mine.gif")
    said = drawn("sdedit", DRAWING, "-m", "models/digits", "--steps", 2, "-o", tmp_path / "yours.png")
    assert said["images"] == [str(tmp_path / "yours.png")]
    for command in (("sample", "models/digits"), ("sdedit", DRAWING, "-m", "models/digits")):
        ran = run_cli(*command, "-n", 2, "-o", tmp_path / "one.png")
        assert ran.code == 2
        assert "one file" in ran.stderr
