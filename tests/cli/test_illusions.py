"""`anagram` and `hybrid`: files, JSON, sheets, search, stages, replay, and what they refuse before any weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from PIL import Image

from diffkit.pictures.metadata import read_recipe, write_png
from tests.cli.test_sample import pixels
from tests.models.conftest import make_if, make_sd, sd_parts, text_unet, write_index
from tests.support.families import make_run


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("classes") / "m", size=8)


@pytest.fixture(scope="module")
def floyd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("if") / "m"
    make_if(folder)
    return folder


@pytest.fixture(autouse=True)
def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFKIT_CACHE", str(tmp_path / "kit"))
    monkeypatch.chdir(tmp_path)


def told(ran: Any) -> dict[str, Any]:
    assert ran.code == 0, ran.stderr
    return json.loads(ran.stdout)


def identical(run_cli, path: str) -> bool:
    return bool(told(run_cli("replay", path, "--json"))["identical"])


def test_an_anagram_of_classes(run_cli, classes: Path) -> None:
    common = ("anagram", "-m", classes, "--c1", "one", "--c2", "zero", "--view", "jigsaw:2", "--steps", 4, "--json")
    done = told(run_cli(*common, "-n", 3, "--seed", 5, "--gif", "--animate", "gif", "-o", "out"))
    assert [Path(p).name for p in done["images"]] == ["anagram-5.png", "anagram-6.png", "anagram-7.png"]
    assert (done["seeds"], done["steps"], done["unet_calls"]) == ([5, 6, 7], 4, 4)
    assert done["timesteps"] == [19, 14, 9, 4]
    assert [Path(p).name for p in done["animations"]] == [f"anagram-{k}-views.gif" for k in (5, 6, 7)]
    for path in (done["grid"], done["gif"], *done["animations"]):
        assert Path(path).is_file()
    assert {"load", "denoise", "total"} <= set(done["seconds"])
    recipe = read_recipe(done["images"][1])
    assert recipe["illusion"] == {"prompts": ["one", "zero"], "views": ["identity", "jigsaw:2,0"], "reduce": "mean"}
    assert (recipe["command"], recipe["seed"], recipe["index"]) == ("anagram", 6, 1)
    for path in (done["images"][2], done["grid"]):
        assert identical(run_cli, path)
    alone = told(run_cli(*common, "--seed", 6, "-o", "one.png"))
    assert np.abs(pixels(alone["images"][0]) - pixels(done["images"][1])).max() <= 1
    assert Path(alone["grid"]).is_file()  # all views of the one picture
    planned = told(run_cli(*common, "-n", 3, "--dry-run"))
    assert (planned["unet_calls"], planned["timesteps"]) == (4, [19, 14, 9, 4])


def test_steps_default_to_all_of_a_short_schedule(run_cli, classes: Path) -> None:
    assert told(run_cli("anagram", "-m", classes, "--c1", "0", "--c2", "1", "--json", "--dry-run"))["steps"] == 20


def test_any_number_of_pairs_weights_and_turns(run_cli, classes: Path) -> None:
    pairs = ["--class", "one", "--view", "identity", "--class", "zero", "--view", "rotate_cw", "--class", "two, three",
             "--view", "negate"]  # fmt: skip
    common = ("anagram", "-m", classes, *pairs, "--steps", 2, "--json", "-o", "out")
    plain = told(run_cli(*common))
    weighed = told(run_cli(*common, "--weight", 1, "--weight", 2.5, "--weight", 0))
    weights = read_recipe(weighed["images"][0])["arguments"]["weights"]
    assert weights == [1.0, 2.5, 0.0]
    assert identical(run_cli, weighed["images"][0])
    assert identical(run_cli, told(run_cli(*common, "--reduce", "alternate"))["images"][0])
    assert read_recipe(plain["images"][0])["illusion"]["views"] == ["identity", "rotate_cw", "negate"]


def test_hybrids_of_prompts(run_cli, floyd: Path) -> None:
    common = ("hybrid", "-m", floyd, "--steps", 3, "--json", "-o", "out")
    words = ("--p1", "a cat", "--p2", "a dog")
    done = told(run_cli(*common, *words, "--style", "an oil painting of", "--negative-prompt", "two ducks", "-n", 2))
    recipe = read_recipe(done["images"][1])
    assert recipe["illusion"]["prompts"] == ["an oil painting of a cat", "an oil painting of a dog"]
    assert recipe["illusion"]["split"].startswith("low_high:2")
    assert identical(run_cli, done["images"][1])
    assert done["model"]["family"] == "deepfloyd"
    three = told(run_cli(*common, *words, "-p", "two ducks", "--split", "triple:8,24"))
    assert identical(run_cli, three["grid"])
    empty = run_cli(*common, *words, "-p", "two ducks", "--split", "triple:1,3")
    assert (empty.code, "part 2 (high) is empty at 8 px" in empty.stdout) == (2, True)
    viewed = told(run_cli(*common, *words, "--view", "identity", "--view", "flip", "--animate", "mp4"))
    assert [Path(path).name for path in viewed["animations"]] == ["hybrid-0-views.mp4"]
    assert Path(viewed["animations"][0]).read_bytes()[4:8] == b"ftyp"


@pytest.mark.parametrize("fixed", [0, 1])
def test_a_hybrid_out_of_a_photo(run_cli, floyd: Path, tmp_path: Path, fixed: int) -> None:
    noise = np.random.default_rng(0).integers(60, 190, (20, 30, 3), dtype=np.uint8)
    photo = tmp_path / "photo.png"
    Image.fromarray(noise).save(photo)
    free = "--p2" if fixed == 0 else "--p1"
    common = ("hybrid", "-m", floyd, "--split", "grey_colour", "--reference", photo, "--fixed", fixed, "--json")
    done = told(run_cli(*common, free, "a dog", "--steps", 3, "-n", 2, "-o", "out"))
    recipe = read_recipe(done["images"][0])
    assert (recipe["illusion"]["prompts"], recipe["illusion"]["fixed"]) == (["a dog"], fixed)
    assert set(recipe["inputs"]) == {"reference"}
    assert identical(run_cli, done["images"][0])
    if fixed == 0:
        grey = [pixels(path).mean(-1) for path in done["images"]]
        inside = (pixels(done["images"][0]) % 255 != 0).all(-1) & (pixels(done["images"][1]) % 255 != 0).all(-1)
        assert inside.sum() > 5
        assert np.abs(grey[0] - grey[1])[inside].max() <= 1  # rounded to bytes
    ran = run_cli(*common, "--p1", "a cat", "--p2", "a dog")
    assert (ran.code, "--reference" in ran.stdout) == (2, True)
    photo.unlink()
    assert run_cli("replay", done["images"][0]).code == 3


def test_a_photo_s_part_is_shown_with_the_others(run_cli, floyd: Path, tmp_path: Path) -> None:
    """A single prompt in a view of its own still has something to turn from, and a sheet of two parts."""
    Image.new("RGB", (16, 16), (90, 140, 200)).save(tmp_path / "photo.png")
    common = ("hybrid", "-m", floyd, "--reference", "photo.png", "--p2", "a dog", "--steps", 2, "--json", "-o", "out")
    done = told(run_cli(*common, "--view", "flip", "--animate", "gif"))
    assert Path(done["animations"][0]).is_file()
    with Image.open(done["grid"]) as sheet:
        assert sheet.width > 1.5 * sheet.height


def test_without_clip_the_search_says_what_else_there_is(run_cli, floyd: Path) -> None:
    ran = run_cli("anagram", "-m", floyd, "--p1", "a cat", "--p2", "a dog", "--best-of", 8, "--offline")
    assert ran.code == 4
    for said in ("--best-of 8 has nothing to score with", "hf download", "clip:FOLDER", "classifier:FILE", "--num 8"):
        assert said in ran.stderr


def test_prompts_and_negative_prompts_of_many_pictures_share_a_batch(run_cli, floyd: Path) -> None:
    common = ("anagram", "-m", floyd, "--p1", "a cat", "--p2", "a dog", "--steps", 2, "--json", "-n", 2)
    both = ("--sweep", "guidance=3,5", "--sweep", "negative-prompt=two ducks|a dog")
    done = told(run_cli(*common, *both, "-o", "out"))
    assert (len(done["images"]), done["unet_calls"]) == (8, 2)
    alone = told(run_cli(*common, "--guidance", 5, "--negative-prompt", "a dog", "-o", "alone"))
    for k in range(2):
        assert np.abs(pixels(alone["images"][k]) - pixels(done["images"][6 + k])).max() <= 1
    assert np.abs(pixels(done["images"][4]) - pixels(done["images"][6])).max() > 1
    assert identical(run_cli, done["images"][7])


def test_sweeps_of_views_and_splits(run_cli, classes: Path) -> None:
    words = ("-m", classes, "--c1", "one", "--c2", "zero", "--steps", 2, "--json", "-o", "out")
    done = told(run_cli("anagram", *words, "--sweep", "view=flip,negate,jigsaw:2", "--sweep", "guidance=2,4"))
    assert [cell["values"] for cell in done["sweep"]][:2] == ["view=flip guidance=2", "view=flip guidance=4"]
    assert len(done["images"]) == 6
    assert done["unet_calls"] == 3 * 2  # scales share a batch
    four = told(run_cli("anagram", *words, "--view", "flip", "--guidance", 4, "-o", "four"))
    assert np.abs(pixels(four["images"][0]) - pixels(done["images"][1])).max() <= 1
    assert np.abs(pixels(done["images"][0]) - pixels(done["images"][1])).max() > 1
    assert read_recipe(done["images"][4])["illusion"]["views"] == ["identity", "jigsaw:2,0"]
    for path in (done["images"][3], done["grid"]):
        assert identical(run_cli, path)
    done = told(run_cli("hybrid", *words, "--sweep", "split=low_high:2|low_high:4|motion:7,0"))
    assert identical(run_cli, done["images"][2])


def test_a_view_of_one_s_own(run_cli, classes: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "mine.npy", np.arange(64).reshape(8, 8)[::-1])
    common = ("anagram", "-m", classes, "--c1", "one", "--c2", "zero", "--steps", 3, "--json", "-o", "out")
    mine = told(run_cli(*common, "--view", "permutation:mine.npy"))
    assert identical(run_cli, mine["images"][0])
    drawn = pixels(mine["images"][0])
    assert (drawn == pixels(told(run_cli(*common, "--view", "flip"))["images"][0])).all()
    told(run_cli(*common, "--view", "permutation:mine.npy"))
    np.save(tmp_path / "mine.npy", np.arange(64).reshape(8, 8)[:, ::-1])
    ran = run_cli("replay", mine["images"][0])
    assert (ran.code, "has changed since" in ran.stderr) == (3, True)


@pytest.fixture
def judge(tmp_path: Path) -> Path:
    from diffkit.evaluation.classifier import SmallCNN, save_classifier

    torch.manual_seed(0)
    save_classifier(tmp_path / "judge.safetensors", SmallCNN(8, 3).eval(), ["zero", "one", "two, three"])
    return tmp_path / "judge.safetensors"


def test_the_best_of_many(run_cli, classes: Path, judge: Path) -> None:
    common = ("anagram", "-m", classes, "--c1", "one", "--c2", "zero", "--steps", 4, "--json", "-o", "out")
    search = ("--best-of", 6, "--scorer", f"classifier:{judge}", "-n", 2)
    done = told(run_cli(*common, *search))
    tried = {one["seed"]: one for one in done["scores"]["tried"]}
    assert sorted(tried) == list(range(6))
    assert done["seeds"] == done["scores"]["best"]
    best = max(one["A"] for one in tried.values() if not one["dropped"])
    assert tried[done["seeds"][0]]["A"] == best
    assert [Path(path).name for path in done["candidates"]] == ["anagram-candidates.png"]
    recipe = read_recipe(done["images"][0])
    assert (recipe["arguments"]["seed"], recipe["score"]["A"]) == (done["seeds"][0], best)
    assert not {"best_of", "scorer"} & set(recipe["arguments"])
    for path in (done["images"][0], done["images"][1], done["grid"], done["candidates"][0]):
        assert identical(run_cli, path)
    for seed, path in zip(done["seeds"], done["images"], strict=True):
        plain = told(run_cli(*common, "--seed", seed))
        assert np.abs(pixels(plain["images"][0]) - pixels(path)).max() <= 1  # rounded to bytes
    planned = told(run_cli(*common, *search, "--dry-run"))
    assert planned["unet_calls"] == done["unet_calls"] == 2 + 2 + 4
    each = [told(run_cli(*common, *search, "--steps", n, "--dry-run"))["unet_calls"] for n in (4, 8)]
    swept = told(run_cli(*common, *search, "--sweep", "steps=4,8", "--dry-run"))
    assert swept["unet_calls"] == sum(each) > 2 * each[0]


def counted(monkeypatch: pytest.MonkeyPatch, kind: type) -> list[tuple[int, int]]:
    """Rows and side of every network call of a family from here on."""
    calls, call = [], kind.__call__

    def counting(self: Any, x: Any, t: Any, cond: Any) -> Any:
        calls.append((len(x), x.shape[-1]))
        return call(self, x, t, cond)

    monkeypatch.setattr(kind, "__call__", counting)
    return calls


def test_the_winners_are_finished_together(
    run_cli, floyd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawn again and through stage II in batches: one call per step for all; each replays with those beside it."""
    from diffkit.evaluation.classifier import SmallCNN, save_classifier
    from diffkit.models.deepfloyd import DeepFloyd

    torch.manual_seed(0)
    save_classifier(tmp_path / "judge.safetensors", SmallCNN(8, 2, channels=3).eval(), ["a cat", "a dog"])
    make_if(tmp_path / "two", stage=2)
    common = ("anagram", "-m", floyd, "--p1", "a cat", "--p2", "a dog", "--steps", 3, "--json", "-o", "out",
              "--model-2", tmp_path / "two")  # fmt: skip
    search = ("--best-of", 5, "--scorer", f"classifier:{tmp_path / 'judge.safetensors'}", "-n", 3)
    calls = counted(monkeypatch, DeepFloyd)
    done = told(run_cli(*common, *search))
    views, guidance = 2, 2
    drawn = [(3 * views * guidance, 8)] * 3 + [(3 * views * guidance, 16)] * 3
    assert calls[-6:] == drawn
    assert [side for _, side in calls[:-6]] == [8] * 3  # the search itself
    assert done["unet_calls"] == len(calls) == told(run_cli(*common, *search, "--dry-run"))["unet_calls"]
    for k, (seed, path) in enumerate(zip(done["seeds"], done["images"], strict=True)):
        recipe = read_recipe(path)
        assert (recipe["company"], recipe["index"], recipe["seed"]) == (done["seeds"], k, seed)
        assert identical(run_cli, path)
        alone = told(run_cli(*common, "--seed", seed, "-o", "alone.png"))
        assert np.abs(pixels(alone["images"][0]) - pixels(path)).max() <= 1
    calls.clear()
    pairs = told(run_cli(*common, *search, "--batch-size", 2))
    assert calls[-12:] == [(2 * 4, 8)] * 3 + [(2 * 4, 16)] * 3 + [(4, 8)] * 3 + [(4, 16)] * 3
    calls.clear()
    assert identical(run_cli, pairs["images"][2])
    assert calls == [(4, 8)] * 3 + [(4, 16)] * 3  # of its batch alone


def test_a_company_that_cannot_be_is_refused(run_cli, classes: Path) -> None:
    done = told(run_cli("anagram", "-m", classes, "--c1", "one", "--c2", "zero", "--steps", 2, "--json", "-o", "out"))
    path = Path(done["images"][0])
    recipe = read_recipe(path)
    for company, code in (([0, "1"], 3), ([], 3), ("01", 3), ([True], 3), ([0], 0), ([-1], 3)):
        with Image.open(path) as image:
            write_png(Path("other.png"), image.copy(), {**recipe, "company": company})
        assert run_cli("replay", "other.png").code == code


def test_the_model_that_draws_chooses_where_nothing_else_is_named(run_cli, classes: Path, floyd: Path) -> None:
    common = ("anagram", "--steps", 4, "--guidance", 3, "--json", "-o", "out", "--best-of", 3)
    by_class = (*common, "-m", classes, "--c1", "one", "--c2", "zero")
    done = told(run_cli(*by_class))
    assert done["scores"]["best"] == done["seeds"]
    # 4 and 2 steps of three and two candidates, the winner's 4 more, and what the model was asked as a judge
    assert done["unet_calls"] == 4 + 4 + done["scores"]["judge_calls"]
    assert done["scores"]["judge_rows"] > done["scores"]["rows"]
    assert done["scores"]["saved"] == round(1 - (3 * 2 + 2 * 2 + 4) / 12, 4)
    assert all(score < 0 for one in done["scores"]["tried"] for row in one["matrix"] for score in row)
    assert identical(run_cli, done["images"][0])
    for scorer in ("model", f"model:{classes}"):
        again = told(run_cli(*by_class, "--scorer", scorer))["scores"]
        rest = {k: v for k, v in done["scores"].items() if scorer == "model" or not k.startswith("judge_")}
        assert again == {**rest, "scorer": scorer}
    by_words = (*common, "-m", floyd, "--p1", "a cat", "--p2", "a dog")
    assert run_cli(*by_words, "--offline").code == 4  # of a model from elsewhere it is CLIP
    judged = told(run_cli(*by_words, "--scorer", "model"))["scores"]
    shutil.copytree(floyd, "own")
    Path("own/diffkit.json").write_text(json.dumps({"conditioning": "none", "prediction": "epsilon"}))
    assert told(run_cli(*common, "-m", "own", "--p1", "a cat", "--p2", "a dog"))["scores"] == judged


def test_a_model_does_not_judge_words_that_it_was_never_told(run_cli) -> None:
    ran = run_cli("anagram", "-m", "tiny", "--p1", "a heart", "--p2", "a cat", "--best-of", 2)
    assert (ran.code, "never told what 'cat' means" in ran.stderr) == (2, True)
    assert "--scorer clip" in ran.stderr


def test_latents_are_said_to_be_approximate(run_cli, tmp_path: Path) -> None:
    make_sd(tmp_path / "sd")
    common = ("-m", tmp_path / "sd", "--p1", "a cat", "--p2", "a dog", "--steps", 2, "--json", "-o", "out")
    for flags, said in (
        (["--view", "flip"], "act on latents"),
        (["--view", "negate", "--gif"], "brought together through the VAE"),
        (["--view", "flip", "--latent", "decode"], "brought together through the VAE"),
    ):
        ran = run_cli("anagram", *common, *flags)
        done = told(ran)
        assert f"approximate: {'views' if 'act' in said else 'every'}" in ran.stderr
        assert said in ran.stderr
        assert pixels(done["images"][0]).shape == (16, 16, 3)
        assert identical(run_cli, done["images"][0])
    ran = run_cli("anagram", *common, "--view", "negate", "--latent", "direct")
    assert (ran.code, "no negative" in ran.stdout) == (2, True)


def test_stage_two(run_cli, floyd: Path, tmp_path: Path) -> None:
    make_if(tmp_path / "two", stage=2)
    common = ("anagram", "-m", floyd, "--p1", "a cat", "--p2", "a dog", "--steps", 3, "--json", "-o", "out")
    done = told(run_cli(*common, "--model-2", tmp_path / "two", "-n", 2))
    assert (done["steps"], done["unet_calls"]) == (3, 6)
    assert pixels(done["images"][0]).shape == (16, 16, 3)
    assert identical(run_cli, done["images"][1])
    planned = told(run_cli(*common, "--stage2", tmp_path / "two", "-n", 2, "--dry-run"))
    assert (planned["unet_calls"], planned["stages"][0]["steps"]) == (6, 3)
    small = told(run_cli(*common, "--model-2", "none"))
    assert pixels(small["images"][0]).shape == (8, 8, 3)
    for flags, said in (
        (["--model-2", floyd], "not stage II"),
        (["--model-3", tmp_path / "two"], "x4 upscaler"),
        (["--size", "256"], "--size 256"),
        (["--size", "100"], "choose 64"),
        (["--model-2", "no/such"], "no/such"),
        (["--model-2", tmp_path / "two", "--view", "patch_permute:3"], "is another one at 16 px than at 8 px"),
    ):
        ran = run_cli(*common, *flags)
        assert ran.code in (2, 4)
        assert said in ran.stdout


def test_all_three_stages(run_cli, floyd: Path, classes: Path, tmp_path: Path) -> None:
    make_if(tmp_path / "two", stage=2)
    parts = sd_parts(tmp_path / "x4")
    parts["unet"] = text_unet(in_channels=7, num_class_embeds=50)
    parts["scheduler"] = DDIMScheduler(prediction_type="v_prediction", clip_sample=False)
    parts["low_res_scheduler"] = DDPMScheduler(beta_schedule="scaled_linear")
    write_index(tmp_path / "x4", "StableDiffusionUpscalePipeline", parts)
    common = ("anagram", "-m", floyd, "--p1", "a cat", "--p2", "a dog", "--steps", 2, "--json", "-o", "out")
    for view in ("flip", "negate"):
        stages = ("--model-2", tmp_path / "two", "--model-3", tmp_path / "x4", "--view", view)
        ran = run_cli(*common, *stages)
        done = told(ran)
        assert (done["steps"], done["unet_calls"]) == (2, 2 + 2 + 30)
        assert pixels(done["images"][0]).shape == (32, 32, 3)  # the tiny VAE doubles where the real one has a factor 4
        assert "approximate" in ran.stderr
    planned = told(run_cli(*common, *stages, "--dry-run"))
    assert (planned["unet_calls"], [stage["steps"] for stage in planned["stages"]]) == (34, [2, 30])
    lines = run_cli(*(word for word in common if word != "--json"), *stages, "--dry-run").stdout.splitlines()
    assert [line.rpartition(": ")[2].split()[0] for line in lines if line.startswith("stage ")] == ["2", "30"]
    own = ("--steps-3", 2, "--noise-2", 10, "--noise-3", 5, "--mode-3", "first")
    before = pixels(done["images"][0])
    other = told(run_cli(*common, *stages, *own))
    assert other["unet_calls"] == 2 + 2 + 2
    assert not np.array_equal(pixels(other["images"][0]), before)
    assert identical(run_cli, other["images"][0])
    for k in range(0, len(own), 2):  # each of them does something
        ran = run_cli(*common, "--model-2", "none", *own[k : k + 2])
        assert (ran.code, f"{own[k]}: there is no such stage" in ran.stdout) == (2, True)
    wrong = run_cli(*common, *stages, "--size", 1024)
    assert (wrong.code, "draws 32 px" in wrong.stdout) == (2, True)
    assert identical(run_cli, done["images"][0])
    nine = make_run(tmp_path / "nine", size=9)
    ran = run_cli("anagram", "-m", nine, "--c1", "one", "--c2", "zero", "--model-3", tmp_path / "x4")
    assert (ran.code, "multiples of 8 px, not of 9" in ran.stderr) == (2, True)


@pytest.mark.parametrize(
    ("command", "flags", "said"),
    [
        ("anagram", ["--p1", "a cat", "--p2", "a dog"], "takes classes"),
        ("anagram", ["--c1", "one", "--c2", "zero", "--view", "patch_permute:9"], "patch_permute"),
        ("anagram", ["--c1", "one", "--c2", "zero", "--view", "flop"], "Did you mean 'flip'"),
        ("anagram", ["--c1", "one", "--p2", "a dog"], "prompts and classes"),
        ("anagram", ["--c1", "one", "-p", "a dog"], "prompts and classes"),
        ("anagram", ["-c", "one", "-c", "zero", "-p", "a cat", "-p", "a dog"], "prompts and classes"),
        ("hybrid", ["-c", "one", "--p1", ""], "prompts and classes"),
        ("anagram", [], "no prompts"),
        ("anagram", ["--c2", "zero"], "--c2 without --c1"),
        ("anagram", ["--c1", "one", "--c2", "zero", "--guidance", "nan"], "no finite number"),
        ("anagram", ["--c1", "one", "--c2", "zero", "--sweep", "reduce=mean,foo"], "it must be 'mean' or 'alternate'"),
        ("anagram", ["--c1", "one", "--c2", "zero", "--weight", "1"], "--weight"),
        ("hybrid", ["--c1", "one", "--c2", "zero", "--best-of", "3"], "--scorer classifier"),
        ("anagram", ["--c1", "one", "--c2", "zero", "--best-of", "3", "-n", "4"], "--best-of 3"),
        ("anagram", ["--c1", "one", "--c2", "zero", "--scorer", "clip"], "--best-of"),
        ("anagram", ["--c1", "one", "--c2", "zero", "--style", "oil"], "--style"),
        ("hybrid", ["--c1", "one"], "1 prompts for 2 parts"),
        ("hybrid", ["--c1", "one", "--c2", "zero", "--split", "grey_colour"], "3 channels"),
        ("hybrid", ["--c1", "one", "--c2", "zero", "--fixed", "1"], "--fixed 1"),
        ("hybrid", ["--c2", "zero", "--reference", "none.png"], "none.png"),
    ],
)
def test_what_is_refused_before_any_weights(
    run_cli, classes: Path, tmp_path: Path, command: str, flags: list[str], said: str
) -> None:
    shutil.copytree(classes, tmp_path / "empty", ignore=shutil.ignore_patterns("*.safetensors"))
    ran = run_cli(command, "-m", tmp_path / "empty", *flags)
    assert ran.code in (2, 3), ran.stderr
    assert said in ran.stderr
    assert run_cli("anagram", "-m", tmp_path / "empty", "--c1", "one", "--c2", "zero").code == 4


def test_the_model_left_out_is_the_papers(run_cli) -> None:
    ran = run_cli("anagram", "--p1", "a cat", "--p2", "a dog", "--offline")
    assert ran.code == 4
    assert "does not know 'cat', 'dog', and model 'DeepFloyd/IF-I-M-v1.0'" in ran.stderr


def test_the_small_model_says_which_prompts_make_hybrids(run_cli) -> None:
    common = ("hybrid", "-m", "tiny", "--steps", 2, "--dry-run")
    assert "a sign on a red heart" in run_cli(*common, "--p1", "a red heart", "--p2", "the letter A").stderr
    ran = run_cli(*common, "--p1", "a sign on a red heart", "--p2", "the letter A on a shape")
    assert (ran.code, "draws hybrids best" in ran.stderr) == (0, False)


def test_an_unconditional_model_is_told_what_it_can_do(run_cli, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "plain", kind="none", size=8)
    for asked in (["--p1", "a", "--p2", "b"], ["--c1", "1", "--c2", "2"]):
        ran = run_cli("anagram", "-m", folder, *asked, "--json")
        assert (ran.code, "is unconditional" in ran.stdout, "empty --prompt" in ran.stdout) == (2, True, True)
    views = ("--prompt", "", "--view", "identity", "--prompt", "", "--view", "flip", "--steps", 2)
    assert told(run_cli("anagram", "-m", folder, *views, "--json", "-o", "out"))["steps"] == 2


def test_the_small_model_has_a_split_and_a_guidance_of_its_own(run_cli, tmp_path: Path) -> None:
    common = ("hybrid", "--p1", "a sign on a blue star", "--p2", "the letter E on a shape", "--steps", 2, "--json")
    ran = run_cli(*common, "-o", "free", "--offline")
    free = told(ran)
    assert "no --split: low_high:6 suits the small model, and guidance 8" in ran.stderr
    asked = told(run_cli(*common, "--split", "low_high:6", "--guidance", 8, "-o", "asked", "--offline"))
    usual = told(run_cli(*common, "--split", "low_high:2", "-o", "usual", "--offline"))
    assert np.array_equal(pixels(free["images"][0]), pixels(asked["images"][0]))
    assert not np.array_equal(pixels(free["images"][0]), pixels(usual["images"][0]))
    assert read_recipe(Path(free["images"][0]))["illusion"]["split"] == "low_high:6"
    assert identical(run_cli, free["images"][0])
