"""The scorer that is a diffusion model: denoisers with known answers, the noise it uses, and what it refuses."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffkit.engine.levels import network_level, out_of
from diffkit.engine.schedules import make_noise_scheduler
from diffkit.errors import UsageError
from diffkit.evaluation.scorers import DiffusionScorer, check_judge, parse_scorer
from diffkit.evaluation.scorers.diffusion import ANGLES, SCALE, alternatives, denoising_errors
from diffkit.illusions.scoring import alignment, concealment, score_matrix
from diffkit.models import info, load, open_repo
from diffkit.models.ddpm import PixelCodec
from diffkit.recipes.schema import NoiseSpec
from diffkit.types import Cond, Prediction
from tests.models.conftest import make_if, make_sd
from tests.support.families import make_run
from tests.support.illusions import Known, anagram, info_of

KINDS = ("epsilon", "sample", "v_prediction", "flow")
SIDE = 8


class Gaussian(Known):
    """A model whose prompts are Gaussians around pictures of their own; the last one stands for no prompt.

    It takes words, or with `classes` says that these are all there are.
    """

    def __init__(
        self, kind: str = "epsilon", spread: float = 0.0, *, classes: int | None = None, null: bool = True,
        learned: bool = False, noise: str = "normal",
    ) -> None:  # fmt: skip
        shape = (1, SIDE, SIDE)
        self.info = info_of(
            shape, make_noise_scheduler(NoiseSpec(prediction=kind)), null=null,
            classes=tuple(str(k) for k in range(classes or 0)), conditioning="class" if classes else "text",
            noise=noise,
        )  # fmt: skip
        self.codec = PixelCodec(SIDE, SIDE)
        self.means = torch.randn(4, *shape, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)
        self.spread, self.learned, self.calls = spread, learned, []  # type: ignore[var-annotated]

    def encode(self, prompts: list[str | None]) -> Cond:
        return Cond({"class_labels": torch.tensor([3 if p is None else int(p) for p in prompts])})

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        assert len(x) == len(t) == len(cond.tensors["class_labels"])
        self.calls.append((x, t, cond.tensors["class_labels"]))
        signal, noise = network_level(self.scheduler, t)
        mean = self.means[cond.tensors["class_labels"]]
        gain = signal * self.spread / (signal**2 * self.spread + noise**2)
        out = out_of(mean + gain * (x - signal * mean), x, t, self.scheduler)
        return Prediction(out, torch.full_like(out, torch.nan) if self.learned else None)


def pictures(count: int, channels: int = 1, side: int = SIDE) -> Tensor:
    return 1.6 * torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(2)) - 0.8


def distance(one: Tensor, other: Tensor) -> Tensor:
    return (one[:, None] - other[None]).square().flatten(2).sum(2)


# --- denoisers with known answers


@pytest.mark.parametrize("kind", KINDS)
def test_a_denoiser_that_knows_one_picture_per_prompt_is_a_softmax_of_distances(kind: str) -> None:
    """E[x0 | x] is then the prompt's picture, whatever the noise: the score has no randomness left."""
    model = Gaussian(kind)
    images = (model.means[:3] + 0.02 * pictures(3)).clamp(-1, 1)
    model.means[1:] = model.means[:1] + 0.1 * model.means[1:]
    far = (images[:, None] - model.means[None]).square().flatten(2).mean(2).double()
    for asked, all_of_them in ((["2", "0"], [2, 0, 3]), (["1", "1"], [1, 3])):
        expected = (-SCALE * far[:, all_of_them]).log_softmax(1)
        expected = expected[:, [0, 0]] if asked[0] == asked[1] else expected[:, :2]
        got = DiffusionScorer(model=model).score(images, asked)
        torch.testing.assert_close(got, expected.float(), rtol=1e-3, atol=1e-2)
    assert float(got.min()) < -0.5 < float(got.max())


@pytest.mark.parametrize("kind", KINDS)
def test_errors_of_a_gaussian_follow_from_its_formula(kind: str) -> None:
    """x0 - E[x0 | x] = (1 - g a)(x0 - m) - g b eps with g = a s / (a^2 s + b^2), x = a x0 + b eps."""
    model, images = Gaussian(kind, spread=0.3), pictures(2)
    got = denoising_errors(model, images, model.encode(["0", "1"]), [50.0, 70.0], seed=5)
    noise = torch.randn(2, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(5))
    asked = torch.cat([t for _, t, _ in model.calls]).unique()
    for k, (a, b) in enumerate(network_level(model.scheduler, t) for t in asked):
        g = a * 0.3 / (a**2 * 0.3 + b**2)
        left = (1 - g * a) * (images[:, None] - model.means[None, :2]) - g * b * noise[k]
        torch.testing.assert_close(got[..., k], left.square().flatten(2).mean(2), rtol=1e-4, atol=1e-5)


def test_it_ranks_as_the_gaussians_own_likelihoods_do() -> None:
    model = Gaussian(spread=0.05)
    drawn = model.means[:3] + 0.05**0.5 * torch.randn(3, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    assert DiffusionScorer(model=model).score(drawn, ["0", "1", "2"]).argmax(1).tolist() == [0, 1, 2]


def test_an_illusion_is_rated_by_it() -> None:
    model, pair = Gaussian(), anagram("identity", "flip")
    model.means[1] = pair.views[1].apply(model.means[:1])[0]
    scorer = DiffusionScorer(model=model)
    matrix = score_matrix(scorer, pair.shown(torch.stack([model.means[0], model.means[2]])), ["0", "1"])
    aligned, concealed = alignment(matrix), concealment(matrix, scorer.tau)
    assert float(aligned[0]) > float(aligned[1])
    assert float(concealed[0]) == pytest.approx(1.0)


def test_pictures_that_are_told_at_a_glance_are_no_equals() -> None:
    model = Gaussian()
    near = torch.stack([model.means[0] + shift * (model.means[1] - model.means[0]) for shift in (0.44, 0.46, 0.48)])
    found = DiffusionScorer(model=model).score(near, ["0", "1"])[:, 0]
    assert 0.0 > float(found[0]) > float(found[1]) > float(found[2]) > -1e-6


@pytest.mark.parametrize("learned", [False, True])
def test_of_a_learned_variance_only_the_mean_counts(learned: bool) -> None:
    model, images = Gaussian(spread=0.3, learned=learned), pictures(2)
    plain = DiffusionScorer(model=Gaussian(spread=0.3)).score(images, ["0", "1"])
    torch.testing.assert_close(DiffusionScorer(model=model).score(images, ["0", "1"]), plain, rtol=0, atol=0)


# --- what pictures are compared with


def test_other_classes_are_rivals_whether_asked_for_or_not() -> None:
    images = pictures(3)
    three = DiffusionScorer(model=Gaussian(spread=0.1, classes=3, null=False))
    every = three.score(images, ["0", "1", "2"])
    torch.testing.assert_close(every.exp().sum(1), torch.ones(3))
    torch.testing.assert_close(three.score(images, ["2", "0"]), every[:, [2, 0]], rtol=1e-4, atol=1e-4)
    # The null class is one more, and all there is where nothing is known of others.
    with_null = DiffusionScorer(model=Gaussian(spread=0.1, classes=3)).score(images, ["2", "0", "1"])
    of_words = DiffusionScorer(model=Gaussian(spread=0.1)).score(images, ["2", "0", "1"])
    torch.testing.assert_close(with_null, of_words, rtol=0, atol=0)


def test_of_many_classes_those_are_rivals_that_fit_each_picture_best(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = Gaussian(classes=3, null=False), pictures(4)
    model.means[1] = images[0]
    model.means[2] = images[1]
    far = (images[:, None] - model.means[None, :3]).square().flatten(2).mean(2)
    monkeypatch.setattr("diffkit.evaluation.scorers.diffusion.RIVALS", 1)
    got = DiffusionScorer(model=model).score(images, ["0"])[:, 0]
    expected = -torch.nn.functional.softplus(SCALE * (far[:, 0] - far[:, 1:].amin(1)))
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-2)
    assert far[:, 1:].argmin(1)[:2].tolist() == [0, 1]


class Worded(Known):
    """What `alternatives` asks of a model: that it takes prompts, and which words it knows."""

    def __init__(self, vocabulary: tuple[str, ...] | None) -> None:
        self.info = info_of(
            (1, SIDE, SIDE), make_noise_scheduler(NoiseSpec()), conditioning="text", vocabulary=vocabulary
        )


WORDED = Worded(("a", "red", "disc", "heart"))


def test_of_captions_one_word_is_changed_that_not_all_share(monkeypatch: pytest.MonkeyPatch) -> None:
    assert alternatives(WORDED, ["a red disc", "a red Heart"]) == ["a red a", "a red red"]
    assert alternatives(WORDED, ["a disc"]) == [
        "a a", "a heart", "a red", "disc disc", "heart disc", "red disc",
    ]  # fmt: skip
    assert alternatives(Worded(None), ["a disc"]) == []
    assert "a disc" not in alternatives(WORDED, ["A disc."])
    monkeypatch.setattr("diffkit.evaluation.scorers.diffusion.MOST", 3)
    some = alternatives(WORDED, ["a disc"])
    assert len(set(some)) == 3
    assert some == alternatives(WORDED, ["a disc"])


# --- noise and levels


def test_every_prompt_and_every_picture_meets_the_same_noise() -> None:
    model, images = Gaussian(), pictures(3)
    before = torch.random.get_rng_state()
    scorer = DiffusionScorer(model=model)
    scorer.score(images, ["0", "1"])
    assert torch.equal(torch.random.get_rng_state(), before)
    x, t = (torch.cat([call[part] for call in model.calls]) for part in (0, 1))
    assert len(x) == 3 * 3 * len(ANGLES)
    signal, share = network_level(model.scheduler, t)
    noise: dict[int, list[Tensor]] = {}
    for row in range(len(x)):
        clean = images[row // (3 * len(ANGLES))]
        noise.setdefault(int(t[row]), []).append((x[row] - signal[row] * clean) / share[row])
    assert sum(len(same) for same in noise.values()) == len(x)
    for same in noise.values():
        for other in same[len(same) // 9 :]:
            assert min(float((other - one).abs().max()) for one in same[: len(same) // 9]) < 1e-4
    first = model.calls.copy()
    model.calls.clear()
    scorer.score(images, ["1", "0"])
    assert torch.equal(model.calls[0][0][: len(ANGLES)], first[0][0][: len(ANGLES)])


@pytest.mark.parametrize("kind", KINDS)
def test_levels_are_the_first_that_are_noisy_enough(kind: str) -> None:
    model = Gaussian(kind)
    denoising_errors(model, pictures(1), model.encode(["0"]), [40.0, 80.0], seed=0)

    def angle(t: int) -> float:
        signal, noise = network_level(model.scheduler, torch.tensor(t))
        return math.degrees(math.atan2(float(noise), float(signal)))

    for asked, t in zip((40.0, 80.0), model.calls[0][1].tolist(), strict=True):
        assert angle(t - 1) < asked <= angle(t)


def test_a_picture_s_score_does_not_depend_on_its_company(tmp_path: Path) -> None:
    scorer, images = parse_scorer(f"model:{make_run(tmp_path / 'm', size=SIDE)}"), pictures(5)
    together = scorer.score(images, ["zero", "one"])
    alone = torch.cat([scorer.score(one[None], ["zero", "one"]) for one in images])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-4)
    swapped = scorer.score(images, ["one", "zero"])
    torch.testing.assert_close(swapped.flip(1), together, rtol=1e-4, atol=1e-4)
    assert float(together.std()) > 0


def test_large_samples_come_in_small_batches() -> None:
    model, images = Gaussian(), pictures(4)
    whole = DiffusionScorer(model=model).score(images, ["0", "1"])
    assert max(len(x) for x, _, _ in model.calls) == 64
    model.row_limit = 3
    model.calls.clear()
    torch.testing.assert_close(DiffusionScorer(model=model).score(images, ["0", "1"]), whole)
    assert {len(x) for x, _, _ in model.calls} == {3}
    model.calls.clear()
    torch.testing.assert_close(parse_scorer("model", model=model, max_batch=2).score(images, ["0", "1"]), whole)
    assert max(len(x) for x, _, _ in model.calls) == 2


class Inside(Gaussian):
    """A model of one picture per prompt that was trained on noise in [0, 1] alone, and answers other noise by it.

    Whatever the noise in a sample lies outside of that range, no training has shown: there the answer is off by it.
    """

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        signal, share = network_level(self.scheduler, t)
        mean = self.means[cond.tensors["class_labels"]]
        noise = (x - signal * mean) / share
        self.calls.append((noise, t, cond.tensors["class_labels"]))
        return Prediction(out_of(mean + noise - noise.clamp(0, 1), x, t, self.scheduler))


def test_a_model_of_uniform_noise_is_shown_no_other() -> None:
    """Each picture is the one that its prompt stands for, so the noise in every call is known, and the error is 0."""
    angles = [50.0, 70.0, 80.0]
    errors = {}
    for kind in ("uniform", "normal"):
        model = Inside("flow", noise=kind)
        rows = torch.arange(3)[:, None]
        errors[kind] = denoising_errors(
            model, model.means[:3], model.encode(["0", "1", "2"]), angles, seed=0, rows=rows
        )
        noise = torch.cat([x.flatten() for x, _, _ in model.calls])
        assert (float(noise.min()) > -1e-4 and float(noise.max()) < 1 + 1e-4) is (kind == "uniform")
        assert float(noise.mean()) == pytest.approx(0.5 if kind == "uniform" else 0.0, abs=0.08)
    assert float(errors["uniform"].max()) < 1e-6
    assert float(errors["normal"].min()) > 0.1
    model = Inside("flow", noise="uniform")
    found = DiffusionScorer(model=model).score(model.means[:3], ["0", "1", "2"])
    assert found.argmax(1).tolist() == [0, 1, 2]


# --- families


@pytest.mark.parametrize("kind", [*KINDS, "linear_mix"])
def test_models_of_classes_take_pictures_of_any_size_and_colour(tmp_path: Path, kind: str) -> None:
    scorer = parse_scorer(f"model:{make_run(tmp_path / 'm', kind, 'concat', 9)}")  # padded to 10
    grey = pictures(2, side=9)
    found = scorer.score(grey, ["one", "2"])
    assert tuple(found.shape) == (2, 2)
    assert bool(found.isfinite().all())
    torch.testing.assert_close(scorer.score(grey.expand(-1, 3, -1, -1), ["one", "2"]), found, rtol=1e-4, atol=1e-4)
    large = torch.full((1, 1, 20, 20), 0.25)
    torch.testing.assert_close(
        scorer.score(large, ["one"]), scorer.score(large[..., :9, :9], ["one"]), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("make", [make_sd, make_if], ids=["sd", "if"])
def test_models_of_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any) -> None:
    monkeypatch.setenv("DIFFKIT_CACHE", str(tmp_path / "kit"))
    make(tmp_path / "m")
    model = load(str(tmp_path / "m"), device="cpu")
    images = pictures(2, 3, model.info.size[0])
    found = DiffusionScorer(model=model).score(images, ["a cat", "a dog"])
    # By hand: latents, one noise per level, what the network says of x0.
    cond = model.encode(["a cat", "a dog", ""])
    errors = denoising_errors(model, model.codec.encode(images), cond, ANGLES, seed=0)
    expected = (-SCALE * errors.mean(-1)).log_softmax(1)[:, :2]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert tuple(errors.shape) == (2, 3, len(ANGLES))
    assert float((found[:, 0] - found[:, 1]).abs().max()) > 0
    named = parse_scorer(f"model:{tmp_path / 'm'}").score(images, ["a cat", "a dog"])
    torch.testing.assert_close(named, found, rtol=0, atol=0)


# --- what is refused before any weights


def test_what_cannot_judge_is_refused_from_its_files(tmp_path: Path) -> None:
    plain = make_run(tmp_path / "plain", kind="none", size=SIDE)
    make_sd(tmp_path / "inpaint", in_channels=9)
    make_if(tmp_path / "second", stage=2)
    once = make_run(tmp_path / "once", size=SIDE)
    meta = json.loads((once / "diffkit.json").read_text())
    (once / "diffkit.json").write_text(json.dumps(meta | {"prediction": "one_step", "sigma": 0.5}))
    scheduler = once / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"prediction_type": "sample"}))
    for folder, said in ((plain, "neither prompts nor classes"), (tmp_path / "inpaint", "needs a picture"),
                         (tmp_path / "second", "needs a picture"), (once, "one noise level")):  # fmt: skip
        with pytest.raises(UsageError, match=said):
            parse_scorer(f"model:{folder}")
    with pytest.raises(UsageError, match="neither prompts nor classes"):
        DiffusionScorer(model=load(str(plain), device="cpu")).score(pictures(1), ["one"])
    with pytest.raises(UsageError, match="no model is drawing"):
        DiffusionScorer().score(pictures(1), ["one"])


def test_prompts_that_a_model_does_not_know_are_refused(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "m", size=SIDE)
    empty = tmp_path / "empty"
    shutil.copytree(folder, empty, ignore=shutil.ignore_patterns("*.safetensors"))
    check_judge(info(open_repo(empty)), ["one", "2", "two, three"])
    for wrong in ("ten", "3"):
        with pytest.raises(UsageError, match=f"'{wrong}' is not one of the model's 3"):
            parse_scorer(f"model:{empty}", prompts=["one", wrong])
    known = replace(info(open_repo(empty)), synonyms={"uno": 1})
    check_judge(known, ["uno", "one"])
    with pytest.raises(UsageError, match="an empty class"):
        check_judge(known, ["one", ""])
    with pytest.raises(UsageError, match="never told what 'cat' means") as caught:
        parse_scorer("model:tiny", prompts=["a red heart", "a cat"])
    assert "diffkit inspect tiny" in caught.value.hint
