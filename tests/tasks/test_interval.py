"""Guidance on a part of the way only: which calls it saves, and that all of what draws hears of it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from diffkit.errors import UsageError
from diffkit.tasks.generate import Settings, generate, timesteps_of
from diffkit.tasks.illusion import Illusion, draw
from diffkit.tasks.search import search
from diffkit.tasks.settings import check_settings, interval
from diffkit.views import parse_view
from tests.tasks.conftest import Counting, label_of

FAMILIES = ("classes", "flow", "sd", "if")
FIRST_HALF = (0.0, 0.5)


def how(**changes: Any) -> Settings:
    return Settings(steps=6, guidance=3.0, **changes)


def guided_calls(model: Any) -> list[bool]:
    """Which steps stand in the first half of the way, by their timesteps alone."""
    levels = model.scheduler.config.num_train_timesteps
    return [t >= levels / 2 for t in timesteps_of(model, how())]


def anagram(family: str) -> Illusion:
    return Illusion((str(label_of(family)),) * 2, (parse_view("identity"), parse_view("flip")))


def drawn(model: Any, settings: Settings, family: str) -> torch.Tensor:
    return torch.stack([p.image for some in generate(model, [3, 4], [label_of(family)] * 2, settings) for p in some])


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_outside_take_one_row_a_picture(models, family: str) -> None:
    model = Counting(models(family))
    guided = guided_calls(model)
    assert any(guided)
    assert not all(guided)
    drawn(model, how(interval=FIRST_HALF), family)
    assert model.rows == [4 if here else 2 for here in guided]
    model.rows.clear()
    draw(model, anagram(family), [3, 4], how(interval=FIRST_HALF))
    assert model.rows == [8 if here else 4 for here in guided]


@pytest.mark.parametrize("family", FAMILIES)
def test_outside_it_is_as_with_guidance_one_and_inside_as_always(models, family: str) -> None:
    model = models(family)
    plain = drawn(model, how(), family)
    assert torch.equal(drawn(model, how(interval=(0.0, 1.0)), family), plain)
    assert not torch.equal(drawn(model, how(interval=FIRST_HALF), family), plain)
    # Of 6 steps none stands so near the picture; prompts that are encoded in other company differ in the last bits.
    nothing = drawn(model, how(interval=(0.999, 0.999)), family)
    torch.testing.assert_close(nothing, drawn(model, Settings(steps=6, guidance=1.0), family), rtol=0, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_stretch_is_what_its_ends_leave(models, family: str) -> None:
    """The samples of the first half are those of full guidance; from there on they part."""
    model = models(family)
    paths: list[list[torch.Tensor]] = [[], []]
    for path, part in zip(paths, ((0.0, 1.0), FIRST_HALF), strict=True):
        for _ in generate(
            model, [3], [label_of(family)], how(interval=part), on_step=lambda step, _, path=path: path.append(step.x)
        ):
            pass
    same = [torch.equal(a, b) for a, b in zip(*paths, strict=True)]
    assert same == guided_calls(model)
    assert all(before or not after for before, after in pairwise(same))


def test_a_search_counts_what_it_saves(models) -> None:
    model, family = Counting(models("classes")), "classes"

    class Even:
        tau = 1.0

        def score(self, images: torch.Tensor, prompts: Any) -> torch.Tensor:
            return torch.zeros(len(images), len(prompts))

    found = search(model, anagram(family), [0], how(interval=FIRST_HALF), Even(), best_of=4, cuts=())
    assert found.rows == sum(model.rows) == sum(4 * 2 * (2 if here else 1) for here in guided_calls(model))


def test_nothing_to_guide_is_refused(models) -> None:
    for family in ("plain", "classes"):
        with pytest.raises(UsageError, match="--guidance-interval"):
            list(generate(models(family), [1], [None], Settings(steps=2, interval=FIRST_HALF)))


def test_how_it_is_written() -> None:
    assert interval(None) == Settings.interval == (0.0, 1.0)
    assert interval("0:0.5") == FIRST_HALF
    assert interval(" .25 : 1 ") == (0.25, 1.0)
    with pytest.raises(UsageError, match="START:STOP"):
        interval("half")
    for bad in ((-0.1, 1.0), (0.0, 1.1), (0.6, 0.5), (float("nan"), 1.0)):
        with pytest.raises(UsageError, match="of the way"):
            check_settings(Settings(interval=bad))
