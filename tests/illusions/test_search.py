from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diffkit.engine.levels import network_level, out_of
from diffkit.engine.schedules import make_noise_scheduler
from diffkit.engine.settings import Settings
from diffkit.errors import NumericalError, UsageError
from diffkit.illusions.composition import Composition
from diffkit.illusions.contact_sheet import FRAME, KEPT, SIDE, candidates_sheet, caption
from diffkit.illusions.drawing import model_for
from diffkit.illusions.filters import parse_filter
from diffkit.illusions.halving import halving_plan, network_calls
from diffkit.illusions.scoring import Scorer, score_matrix
from diffkit.illusions.search import Candidate, Counted, Task, search
from diffkit.models.ddpm import PixelCodec
from diffkit.recipes.schema import NoiseSpec
from diffkit.types import Cond, Model, Prediction
from tests.support.families import Counting
from tests.support.illusions import Known, anagram, draw, info_of, plainly, prompting

PAIR = anagram("identity", "flip")


def task(model: Model, labels: Sequence[str], composition: Composition, how: Settings, scorer: Scorer) -> Task:
    """What is searched among: these labels, judged by a scorer."""
    counted = Counted(model)
    return Task(
        counted, model_for(counted, composition), composition,
        lambda seeds: prompting(labels, len(seeds))(counted, how),
        lambda parts: score_matrix(scorer, parts, labels), scorer.tau, how,
    )  # fmt: skip


class Corner:
    """Similarity with a prompt: how bright a quarter of the picture is, which one the prompt's last letter says."""

    tau = 0.05

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        half = images.shape[-1] // 2
        quarters = {"t": (0, 0), "e": (0, 1), "o": (1, 0), "g": (1, 1)}
        found = []
        for prompt in prompts:
            top, left = (half * k for k in quarters[prompt[-1]])
            found.append(images[..., top : top + half, left : left + half].flatten(1).mean(1))
        return torch.stack(found, 1)


PROMPTS = {"classes": ("zero", "one"), "flow": ("zero", "one"), "sd": ("a cat", "a dog"), "if": ("a cat", "a dog")}


def settings(**changes: Any) -> Settings:
    return Settings(steps=changes.pop("steps", 6), guidance=3.0, **changes)


def classes(models: Any, **changes: Any) -> Task:
    """Two classes, judged by `Corner`."""
    return task(models("classes"), PROMPTS["classes"], PAIR, settings(**changes), Corner())


# --- against drawing alone


@pytest.mark.parametrize("family", ["classes", "flow", "sd", "if"])
def test_pictures_are_those_of_their_seeds_drawn_alone(models, family: str) -> None:
    model, labels = models(family), PROMPTS[family]
    asked = task(model, labels, PAIR, settings(), Corner())
    found = search(asked, [5], best_of=5, keep=2, cuts=(0.3, 0.6))
    assert len(found.images) == len(found.best) == 2
    for seed, image in zip(found.seeds, found.images, strict=True):
        torch.testing.assert_close(image[None], draw(model, labels, PAIR, [seed], settings()), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"scheduler": "ddpm"},
        {"scheduler": "ddim", "eta": 0.7},
        {"scheduler": "ddim", "eta": 0.7, "stop_noise_after": 3},
        {"scheduler": "ddpm", "stop_noise_after": 5},
        {"scheduler": "euler"},
        {"scheduler": "euler_a"},
        {"scheduler": "dpm++"},
        {"scheduler": "heun"},
    ],
)
def test_of_every_sampler(models, changes: dict[str, Any]) -> None:
    model, labels, how = models("classes"), PROMPTS["classes"], settings(**changes)
    found = search(task(model, labels, PAIR, how, Corner()), [1], best_of=4, keep=2)
    assert (found.saved > 0) == (changes["scheduler"] not in ("dpm++", "heun"))
    alone = torch.cat([draw(model, labels, PAIR, [seed], how) for seed in found.seeds])
    torch.testing.assert_close(found.images, alone, atol=2e-5, rtol=1e-4)


def test_taking_turns_keeps_its_place_after_a_cut(models) -> None:
    model, how, labels = models("classes"), settings(steps=5), PROMPTS["classes"]
    turns = anagram("identity", "flip", reduce="alternate")
    found = search(task(model, labels, turns, how, Corner()), [1], best_of=4, cuts=(0.6,))
    torch.testing.assert_close(found.images, draw(model, labels, turns, found.seeds, how), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["classes", "sd"])
def test_a_reference_is_kept(models, family: str) -> None:
    model = models(family)
    reference = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    one, labels = plainly(split=parse_filter("low_high:2"), reference=reference), PROMPTS[family][:1]
    found = search(task(model, labels, one, settings(), One()), [1], best_of=4)
    torch.testing.assert_close(found.images, draw(model, labels, one, found.seeds, settings()), atol=2e-5, rtol=1e-4)


class One(Corner):
    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return super().score(images, ["t"] * len(prompts))


def test_without_cuts_it_is_the_best_of_all(models) -> None:
    model, labels = models("classes"), PROMPTS["classes"]
    asked = task(model, labels, PAIR, settings(), Corner())
    found = search(asked, [0], best_of=6, keep=6, cuts=())
    images = draw(model, labels, PAIR, range(6), settings())
    matrix, aligned, concealed = asked.rate(images)
    assert found.seeds == aligned.argsort(descending=True).tolist()
    assert [one.seed for one in found.tried] == list(range(6))
    torch.testing.assert_close(torch.stack([one.matrix for one in found.tried]), matrix, atol=1e-5, rtol=1e-4)
    assert [one.concealment for one in found.tried] == pytest.approx(concealed.tolist(), abs=1e-4)


def test_rate_reads_each_view_by_its_own_prompt(models) -> None:
    image = torch.zeros(1, 1, 4, 4)
    image[..., :2, :2], image[..., 2:, 2:] = 1.0, -0.5  # top left, and bottom right
    matrix, aligned, _ = task(models("if"), ["a cat", "a dog"], PAIR, settings(), Corner()).rate(image)
    assert matrix.tolist() == [[[1.0, -0.5], [0.0, 0.0]]]
    assert aligned.tolist() == [0.0]


@pytest.mark.parametrize("cuts", [(), (0.5,)])
def test_it_does_not_depend_on_the_batches(models, cuts: tuple[float, ...]) -> None:
    asked = task(models("if"), PROMPTS["if"], PAIR, settings(), Corner())
    one, other = (search(asked, [3], best_of=7, keep=2, cuts=cuts, batch_size=size) for size in (64, 3))
    assert one.seeds == other.seeds
    assert [c.dropped for c in one.tried] == [c.dropped for c in other.tried]
    torch.testing.assert_close(one.images, other.images, atol=2e-5, rtol=1e-4)


# --- what is saved


def test_rows_are_views_times_guidance_times_the_steps_that_were_taken(models) -> None:
    model = Counting(models("classes"))
    steps = []
    found = search(
        task(model, PROMPTS["classes"], PAIR, settings(steps=10), Corner()), [0], best_of=8,
        on_step=lambda step, positions: steps.append((step.index, step.total, positions)),
    )  # fmt: skip
    assert model.rows == [2 * 2 * 8] * 5 + [2 * 2 * 4] * 5
    assert found.rows == sum(model.rows)
    assert found.saved == 0.25
    assert [one.steps for one in found.tried].count(5) == 4
    assert steps == [(k, 10, range(8 if k < 5 else 4)) for k in range(10)]
    assert len(steps) == network_calls(halving_plan(8, 1, 10), 64)


def test_a_sampler_with_memory_is_judged_at_the_end_only(models, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "diffkit"):
        found = search(classes(models, scheduler="dpm++"), [0], best_of=4)
    assert "nothing is dropped before the end" in caplog.text
    assert found.saved == 0.0
    assert not any(one.dropped for one in found.tried)


class Coin(Known):
    """A pixel model of two pictures, +m and -m, whose denoiser is known: E[x0 | x] = m tanh(s <m, x> / n^2).

    Source: the posterior of a mixture of two points.
    """

    def __init__(self, prediction: str) -> None:
        self.info = info_of((1, 8, 8), make_noise_scheduler(NoiseSpec(prediction=prediction)))
        self.codec, self.flow = PixelCodec(8, 8), prediction == "flow"
        self.picture = torch.full((1, 1, 8, 8), 0.5)

    def encode(self, prompts: Sequence[Any]) -> Cond:
        return Cond()

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        t = t if self.flow else t.long()  # Euler's are floats
        signal, share = network_level(self.scheduler, t)
        side = torch.tanh(signal * (self.picture * x).sum((1, 2, 3), keepdim=True) / max(float(share) ** 2, 1e-12))
        return Prediction(out_of(side * self.picture, x, t, self.scheduler))


@pytest.mark.parametrize(("prediction", "sampler"), [("epsilon", "ddim"), ("sample", "euler"), ("flow", "flow_euler")])
def test_the_clean_estimate_says_early_which_ones_will_fail(prediction: str, sampler: str) -> None:
    model, how = Coin(prediction), Settings(scheduler=sampler, steps=20)
    ends = draw(model, ["", ""], PAIR, range(16), how).mean((1, 2, 3))
    torch.testing.assert_close(ends.abs(), torch.full((16,), 0.5), atol=1e-3, rtol=0)
    right = [seed for seed in range(16) if ends[seed] > 0]
    assert 4 <= len(right) <= 12
    found = search(task(model, ["", ""], PAIR, how, One()), [0], best_of=16, keep=len(right), cuts=(0.8,))
    assert sorted(found.seeds) == right
    wrong = [one for one in found.tried if one.dropped]
    assert wrong
    for one in wrong:
        assert one.seed not in right
        # Clean: the estimate of a network that is right, not the noisy sample.
        torch.testing.assert_close(one.image, torch.full((1, 8, 8), -0.5), atol=1e-2, rtol=0)
        assert one.steps == 16


# --- what comes out


def test_the_kept_pictures_come_best_first(models) -> None:
    found = search(classes(models), [0], best_of=4, keep=2)
    assert found.best[0].alignment >= found.best[1].alignment
    assert [one.seed for one in found.best] == found.seeds
    for one, image in zip(found.best, found.images, strict=True):
        assert torch.equal(one.image, image)


def test_the_record_is_json(models) -> None:
    found = search(classes(models), [2], best_of=4)
    told = json.loads(json.dumps(found.describe()))
    assert told["best"] == found.seeds
    assert [one["seed"] for one in told["tried"]] == [2, 3, 4, 5]
    assert [one["dropped"] for one in told["tried"]].count(True) == 2
    best = told["tried"][found.seeds[0] - 2]
    assert best["A"] == pytest.approx(min(best["matrix"][0][0], best["matrix"][1][1]), abs=1e-4)


def test_contact_sheet_shows_every_candidate_in_all_views_best_first_and_framed(models) -> None:
    found = search(classes(models), [0], best_of=4, keep=2)
    sheet = candidates_sheet(found, PAIR, PROMPTS["classes"], columns=2)
    side = math.ceil(SIDE / 9) * 9
    width, height = 2 * side + 3 + 2 * FRAME, side + 2 + 2 * FRAME
    assert sheet.width == 2 * (width + 6) + 6
    rows = [6, 6 + (sheet.height - 6) // 2]
    corners = [(left, top) for top in rows for left in (6, 12 + width)]
    framed = [sheet.getpixel(corner) == KEPT and sheet.getpixel((x + FRAME - 1, y + 9)) == KEPT
              for corner in corners for x, y in [corner]]  # fmt: skip
    assert framed == [True, True, False, False]
    inked = np.asarray(sheet.convert("L"))
    for left, top in corners:
        assert inked[top + height : top + height + 60, left : left + width].min() < 150  # its scores
    pixel = side // 9
    for one, (left, top) in zip(found.best, corners, strict=False):
        for k, view in enumerate(PAIR.shown(one.image[None].clamp(-1, 1))):
            x0, y0 = left + FRAME + 1 + k * (side + 1) + 4, top + FRAME + 1 + 4
            shown = [sheet.getpixel((x0 + x * pixel, y0 + y * pixel))[0] for y in range(9) for x in range(9)]
            assert shown == pytest.approx(((view[0, 0].flatten() + 1) * 127.5).tolist(), abs=1.0)


def test_small_scores_keep_their_digits() -> None:
    one = Candidate(
        3, torch.zeros(1, 8, 8), torch.tensor([[-1.234567e-5, -9.0], [-9.0, -2e-7]]), -1.234567e-5, 0.99994, 9
    )
    assert (one.describe()["A"], one.describe()["matrix"][1][1]) == pytest.approx((-1.2346e-5, -2e-7), rel=1e-6)
    other = replace(one, seed=4, alignment=-2e-5, concealment=0.5, steps=4, dropped=True)
    assert caption(one, 0, 9) == "#1: seed 3 A=-1.23e-05 C=1"
    assert caption(other, None, 9) == "seed 4 A=-2e-05 C=0.5 at 4/9"


def test_wrong_arguments(models) -> None:
    with pytest.raises(UsageError, match="`best_of` 2 cannot give 3"):
        search(classes(models), [0], best_of=2, keep=3)


def test_broken_numbers_are_an_error() -> None:
    model = Coin("epsilon")
    model.picture = torch.full((1, 1, 8, 8), float("nan"))
    with pytest.raises(NumericalError):
        search(task(model, ["", ""], PAIR, Settings(steps=4), One()), [0], best_of=2)
