from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diffkit.engine.levels import network_level, out_of
from diffkit.engine.schedules import make_noise_scheduler
from diffkit.errors import NumericalError, UsageError
from diffkit.illusions.contact_sheet import FRAME, KEPT, SIDE, _words, contact_sheet
from diffkit.illusions.drawing import Illusion, draw, seen
from diffkit.illusions.filters import parse_filter
from diffkit.illusions.search import Candidate, Round, candidate_seeds, network_calls, rate, rounds, search
from diffkit.illusions.views import parse_view
from diffkit.jobs.sample import Settings
from diffkit.models.ddpm import PixelCodec, RunMeta
from diffkit.recipes.schema import NoiseSpec
from diffkit.types import Cond, Prediction
from tests.support.families import Counting

IDENTITY, FLIP = parse_view("identity"), parse_view("flip")


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


def anagram(family: str) -> Illusion:
    return Illusion(PROMPTS[family], (IDENTITY, FLIP))


def settings(**changes: Any) -> Settings:
    return Settings(steps=changes.pop("steps", 6), guidance=3.0, **changes)


# --- the plan


def test_half_goes_on_after_each_cut() -> None:
    assert rounds(8, 1, 20, (0.5,)) == [Round(0, 10, 8), Round(10, 20, 4)]
    assert rounds(8, 1, 20, (0.25, 0.5, 0.75)) == [Round(0, 5, 8), Round(5, 10, 4), Round(10, 15, 2), Round(15, 20, 1)]
    assert rounds(7, 1, 20, (0.5,)) == [Round(0, 10, 7), Round(10, 20, 4)]


def test_no_fewer_than_are_kept_and_no_empty_round() -> None:
    assert rounds(8, 6, 20, (0.5,)) == [Round(0, 10, 8), Round(10, 20, 6)]
    assert rounds(4, 4, 20, (0.5,)) == [Round(0, 20, 4)]
    assert rounds(1, 1, 20, (0.5,)) == [Round(0, 20, 1)]
    assert rounds(8, 1, 1, (0.5,)) == [Round(0, 1, 8)]
    assert rounds(8, 1, 2, (0.1, 0.2, 0.5)) == [Round(0, 1, 8), Round(1, 2, 4)]
    assert rounds(8, 1, 20, ()) == [Round(0, 20, 8)]


def test_calls_of_a_plan() -> None:
    assert network_calls(rounds(8, 1, 20, (0.5,)), 64) == 20
    assert network_calls(rounds(8, 1, 20, (0.5,)), 4) == 10 * 2 + 10
    assert network_calls(rounds(9, 1, 20, ()), 4) == 60


def test_impossible_plans() -> None:
    with pytest.raises(UsageError, match="--best-of 4 cannot give 5"):
        rounds(4, 5, 20)
    for cuts in ((0.0,), (1.0,), (0.6, 0.5), (0.5, 0.5)):
        with pytest.raises(UsageError, match="ascending fractions"):
            rounds(4, 1, 20, cuts)


def test_seeds_are_counted_on() -> None:
    assert candidate_seeds([7], 4) == [7, 8, 9, 10]
    assert candidate_seeds([3, 90], 4) == [3, 90, 91, 92]
    assert candidate_seeds(range(4), 4) == [0, 1, 2, 3]
    with pytest.raises(UsageError, match="--best-of 2 with 3 seeds"):
        candidate_seeds([1, 2, 3], 2)


# --- against drawing alone


@pytest.mark.parametrize("family", ["classes", "flow", "sd", "if"])
def test_pictures_are_those_of_their_seeds_drawn_alone(models, family: str) -> None:
    model, illusion = models(family), anagram(family)
    found = search(model, illusion, [5], settings(), Corner(), best_of=5, keep=2, cuts=(0.3, 0.6))
    assert len(found.images) == len(found.best) == 2
    for seed, image in zip(found.seeds, found.images, strict=True):
        torch.testing.assert_close(image[None], draw(model, illusion, [seed], settings()), atol=2e-5, rtol=1e-4)


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
    model, illusion, how = models("classes"), anagram("classes"), settings(**changes)
    found = search(model, illusion, [1], how, Corner(), best_of=4, keep=2)
    assert (found.saved > 0) == (changes["scheduler"] not in ("dpm++", "heun"))
    alone = torch.cat([draw(model, illusion, [seed], how) for seed in found.seeds])
    torch.testing.assert_close(found.images, alone, atol=2e-5, rtol=1e-4)


def test_taking_turns_keeps_its_place_after_a_cut(models) -> None:
    model, how = models("classes"), settings(steps=5)
    illusion = Illusion(PROMPTS["classes"], (IDENTITY, FLIP), reduce="alternate")
    found = search(model, illusion, [1], how, Corner(), best_of=4, cuts=(0.6,))
    torch.testing.assert_close(found.images, draw(model, illusion, found.seeds, how), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["classes", "sd"])
def test_a_reference_is_held(models, family: str) -> None:
    model = models(family)
    reference = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    illusion = Illusion(PROMPTS[family][:1], split=parse_filter("low_high:2"), reference=reference, fixed=0)
    found = search(model, illusion, [1], settings(), _One(), best_of=4)
    torch.testing.assert_close(found.images, draw(model, illusion, found.seeds, settings()), atol=2e-5, rtol=1e-4)


class _One(Corner):
    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return super().score(images, ["t"] * len(prompts))


def test_without_cuts_it_is_the_best_of_all(models) -> None:
    model, illusion, scorer = models("classes"), anagram("classes"), Corner()
    found = search(model, illusion, [0], settings(), scorer, best_of=6, keep=6, cuts=())
    images = draw(model, illusion, range(6), settings())
    matrix, aligned, concealed = rate(illusion, images, scorer)
    assert found.seeds == aligned.argsort(descending=True).tolist()
    assert [one.seed for one in found.tried] == list(range(6))
    torch.testing.assert_close(torch.stack([one.matrix for one in found.tried]), matrix, atol=1e-5, rtol=1e-4)
    assert [one.concealment for one in found.tried] == pytest.approx(concealed.tolist(), abs=1e-4)
    by_other = search(model, illusion, [0], settings(), scorer, best_of=6, cuts=(), by="concealment")
    assert by_other.seeds == [int(concealed.argmax())]
    assert by_other.seeds != found.seeds[:1]


def test_rate_reads_each_view_by_its_own_prompt() -> None:
    image = torch.zeros(1, 1, 4, 4)
    image[..., :2, :2], image[..., 2:, 2:] = 1.0, -0.5  # top left, and bottom right
    matrix, aligned, _ = rate(Illusion(("a cat", "a dog"), (IDENTITY, FLIP)), image, Corner())
    assert matrix.tolist() == [[[1.0, -0.5], [0.0, 0.0]]]
    assert aligned.tolist() == [0.0]


@pytest.mark.parametrize("cuts", [(), (0.5,)])
def test_it_does_not_depend_on_the_batches(models, cuts: tuple[float, ...]) -> None:
    model, illusion = models("if"), anagram("if")
    one, other = (
        search(model, illusion, [3], settings(), Corner(), best_of=7, keep=2, cuts=cuts, batch_size=size)
        for size in (64, 3)
    )
    assert one.seeds == other.seeds
    assert [c.dropped for c in one.tried] == [c.dropped for c in other.tried]
    torch.testing.assert_close(one.images, other.images, atol=2e-5, rtol=1e-4)


# --- what is saved


def test_rows_are_views_times_guidance_times_the_steps_that_were_taken(models) -> None:
    model = Counting(models("classes"))
    steps = []
    found = search(
        model, anagram("classes"), [0], settings(steps=10), Corner(), best_of=8,
        on_step=lambda step, positions: steps.append((step.index, step.total, positions)),
    )  # fmt: skip
    assert model.rows == [2 * 2 * 8] * 5 + [2 * 2 * 4] * 5
    assert found.rows == sum(model.rows)
    assert found.saved == 0.25
    assert [one.steps for one in found.tried].count(5) == 4
    assert steps == [(k, 10, range(8 if k < 5 else 4)) for k in range(10)]
    assert len(steps) == network_calls(rounds(8, 1, 10), 64)


def test_a_sampler_with_memory_is_judged_at_the_end_only(models, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "diffkit"):
        found = search(models("classes"), anagram("classes"), [0], settings(scheduler="dpm++"), Corner(), best_of=4)
    assert "nothing is dropped before the end" in caplog.text
    assert found.saved == 0.0
    assert not any(one.dropped for one in found.tried)


class Coin:
    """A pixel model of two pictures, +m and -m, whose denoiser is known: E[x0 | x] = m tanh(s <m, x> / n^2).

    Source: the posterior of a mixture of two points.
    """

    family, num_classes, id, revision = "ddpm", 0, "coin", None
    device = torch.device("cpu")

    def __init__(self, prediction: str) -> None:
        self.shape = (1, 8, 8)
        self.meta = RunMeta(prediction=prediction, conditioning="none", resolution=8, channels=1)
        self.codec = PixelCodec(8, 8)
        self.scheduler = make_noise_scheduler(NoiseSpec(prediction=prediction))
        self.picture = torch.full((1, 1, 8, 8), 0.5)

    def noise(self, random: Sequence[torch.Generator]) -> Tensor:
        return torch.cat([torch.randn(1, *self.shape, generator=g) for g in random])

    def encode(self, prompts: Sequence[Any]) -> Cond:
        return Cond()

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        t = t if self.meta.prediction == "flow" else t.long()  # Euler's are floats
        signal, share = network_level(self.scheduler, t)
        side = torch.tanh(signal * (self.picture * x).sum((1, 2, 3), keepdim=True) / max(float(share) ** 2, 1e-12))
        return Prediction(out_of(side * self.picture, x, t, self.scheduler))


@pytest.mark.parametrize(("prediction", "sampler"), [("epsilon", "ddim"), ("sample", "euler"), ("flow", "flow_euler")])
def test_the_clean_estimate_says_early_which_ones_will_fail(prediction: str, sampler: str) -> None:
    model, illusion, how = Coin(prediction), Illusion(("", ""), (IDENTITY, FLIP)), Settings(scheduler=sampler, steps=20)
    ends = draw(model, illusion, range(16), how).mean((1, 2, 3))
    torch.testing.assert_close(ends.abs(), torch.full((16,), 0.5), atol=1e-3, rtol=0)
    right = [seed for seed in range(16) if ends[seed] > 0]
    assert 4 <= len(right) <= 12
    found = search(model, illusion, [0], how, _One(), best_of=16, keep=len(right), cuts=(0.8,))
    assert sorted(found.seeds) == right
    wrong = [one for one in found.tried if one.dropped]
    assert wrong
    for one in wrong:
        assert one.seed not in right
        # Clean: the estimate of a network that is right, not the noisy sample.
        torch.testing.assert_close(one.image, torch.full((1, 8, 8), -0.5), atol=1e-2, rtol=0)
        assert one.steps == 16


# --- what comes out


def test_finish_gets_the_kept_pictures_best_first(models) -> None:
    model, illusion, asked = models("if"), anagram("if"), []

    def finish(images: Tensor, seeds: Sequence[int]) -> Tensor:
        asked.append((images, list(seeds)))
        return images.repeat_interleave(2, -1)

    found = search(model, illusion, [0], settings(), Corner(), best_of=4, keep=2, finish=finish)
    assert asked[0][1] == found.seeds
    assert torch.equal(found.images, asked[0][0].repeat_interleave(2, -1))
    assert found.best[0].alignment >= found.best[1].alignment
    assert torch.equal(found.best[0].image, asked[0][0][0])


def test_the_record_is_json(models) -> None:
    found = search(models("classes"), anagram("classes"), [2], settings(), Corner(), best_of=4)
    told = json.loads(json.dumps(found.describe()))
    assert told["best"] == found.seeds
    assert [one["seed"] for one in told["tried"]] == [2, 3, 4, 5]
    assert [one["dropped"] for one in told["tried"]].count(True) == 2
    best = told["tried"][found.seeds[0] - 2]
    assert best["A"] == pytest.approx(min(best["matrix"][0][0], best["matrix"][1][1]), abs=1e-4)


def test_contact_sheet_shows_every_candidate_in_all_views_best_first_and_framed(models) -> None:
    illusion = anagram("classes")
    found = search(models("classes"), illusion, [0], settings(), Corner(), best_of=4, keep=2)
    sheet = contact_sheet(found, illusion, columns=2)
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
        for k, view in enumerate(seen(illusion, one.image[None].clamp(-1, 1))):
            x0, y0 = left + FRAME + 1 + k * (side + 1) + 4, top + FRAME + 1 + 4
            shown = [sheet.getpixel((x0 + x * pixel, y0 + y * pixel))[0] for y in range(9) for x in range(9)]
            assert shown == pytest.approx(((view[0, 0].flatten() + 1) * 127.5).tolist(), abs=1.0)


def test_small_scores_keep_their_digits() -> None:
    one = Candidate(
        3, torch.zeros(1, 8, 8), torch.tensor([[-1.234567e-5, -9.0], [-9.0, -2e-7]]), -1.234567e-5, 0.99994, 9
    )
    assert (one.describe()["A"], one.describe()["matrix"][1][1]) == pytest.approx((-1.2346e-5, -2e-7), rel=1e-6)
    other = Candidate(4, *(getattr(one, name) for name in ("image", "matrix")), -2e-5, 0.5, 4, dropped=True)
    assert _words(one, 0, 9) == "#1: seed 3 A=-1.23e-05 C=1"
    assert _words(other, None, 9) == "seed 4 A=-2e-05 C=0.5 at 4/9"


def test_wrong_arguments(models) -> None:
    model, illusion = models("classes"), anagram("classes")
    with pytest.raises(UsageError, match="rank by 'beauty'"):
        search(model, illusion, [0], settings(), Corner(), best_of=2, by="beauty")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="--best-of 2 cannot give 3"):
        search(model, illusion, [0], settings(), Corner(), best_of=2, keep=3)


def test_broken_numbers_are_an_error() -> None:
    model = Coin("epsilon")
    model.picture = torch.full((1, 1, 8, 8), float("nan"))
    with pytest.raises(NumericalError):
        search(model, Illusion(("", ""), (IDENTITY, FLIP)), [0], Settings(steps=4), _One(), best_of=2)
