"""Which prompt is shown where: views and parts by number and name, what a judge looks at, what a file remembers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from diffkit.errors import UsageError
from diffkit.illusions.composition import Composition
from diffkit.illusions.filters import parse_filter
from tests.support.illusions import IDENTITY, anagram, hybrid, views

GREY = torch.zeros(1, 1, 8, 8)


@pytest.mark.parametrize(
    ("prompts", "given", "expected"),
    [
        (2, [], ["identity", "flip"]),
        (2, ["rotate_180"], ["identity", "rotate_180"]),
        (2, ["negate", "flip"], ["negate", "flip"]),
        (3, ["flip", "negate"], ["identity", "flip", "negate"]),
        (1, [], ["identity", "flip"]),
        (1, ["flip"], ["identity", "flip"]),
        (1, ["flip", "negate", "skew"], ["flip", "negate", "skew:1.5"]),
    ],
)
def test_prompts_and_views_go_together(prompts: int, given: list[str], expected: list[str]) -> None:
    made = Composition.of_views(prompts, given)
    assert [view.spec for view in made.views] == expected
    assert made.parts() == list(range(len(expected)))


def test_the_part_of_a_reference_has_no_prompt() -> None:
    assert Composition.of_parts(1, reference=GREY).parts() == [1]
    assert Composition.of_parts(1, reference=GREY, fixed=1).parts() == [0]
    assert Composition.of_parts(3, "triple").parts() == [0, 1, 2]
    assert [view.spec for view in Composition.of_parts(2, "low_high", ["flip", "skew"]).views] == ["flip", "skew:1.5"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Composition.of_views(0), "no prompts for an anagram"),
        (lambda: Composition.of_views(3, ["flip"]), "3 prompts and 1 views"),
        (lambda: Composition.of_views(3), "3 prompts and 0 views"),
        (lambda: Composition.of_views(2, ["flp"]), "flp"),
        (lambda: Composition.of_views(2, weights=(1.0,)), "`weights` needs one value per view, got 1 .1. for 2"),
        (lambda: Composition.of_views(2, weights=(1.0, -2.0)), "none is negative"),
        (lambda: Composition.of_views(2, weights=(1.0, 2.0), reduce="alternate"), "take turns have no weights"),
        (lambda: Composition.of_views(2, reduce="median"), "`reduce` 'median'"),
        (lambda: Composition.of_parts(1), "1 prompts for 2 parts"),
        (lambda: Composition.of_parts(2, "triple"), "2 prompts for 3 parts"),
        (lambda: Composition.of_parts(2, "low_hihg"), "low_hihg"),
        (lambda: Composition.of_parts(2, views=["flip"]), "1 views for 2 parts"),
        (lambda: Composition.of_parts(2, reference=GREY), r"part 0 \(low\) comes from `reference`"),
        (lambda: Composition.of_parts(1, reference=GREY, fixed=2), "`fixed` 2"),
        (lambda: Composition.of_parts(2, fixed=1), "`fixed` 1: there is no `reference`"),
        (lambda: hybrid("low_high", weights=(1.0, 2.0)), "no `weights`"),
        (lambda: hybrid("low_high", reduce="alternate"), "no `reduce`"),
        (lambda: Composition((IDENTITY,), reference=torch.zeros(1, 3, 8, 8)), "there is no split"),
    ],
)
def test_what_does_not_go_together(make: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make()


def test_what_each_judge_looks_at() -> None:
    x = torch.rand(2, 3, 16, 16)
    first, second = anagram("identity", "rotate_cw").shown(x)
    assert torch.equal(first, x)
    assert torch.equal(second, torch.rot90(x, -1, (-2, -1)))
    triple = parse_filter("triple:2,4")
    low, middle, high = Composition.of_parts(3, "triple:2,4").shown(x)
    torch.testing.assert_close(low, triple.part(x, 0))
    torch.testing.assert_close(middle, triple.part(x, 0) + triple.part(x, 1))
    assert torch.equal(high, x)
    grey, colour = Composition.of_parts(2, "grey_colour").shown(x)
    assert float(grey.var(1).max()) < 1e-10
    assert torch.equal(colour, x)
    assert all(torch.equal(part, x) for part in Composition.of_parts(2, "scale:0.3").shown(x))
    (free,) = Composition.of_parts(1, "low_high:2", reference=x[:1], fixed=1).shown(x)
    torch.testing.assert_close(free, parse_filter("low_high:2").part(x, 0))


def test_descriptions_name_every_seed() -> None:
    anagrams = Composition.of_views(2, ["jigsaw"], weights=(1.0, 2.0))
    assert anagrams.describe() == {"views": ["identity", "jigsaw:4,0"], "weights": [1.0, 2.0], "reduce": "mean"}
    low = parse_filter("low_high").spec
    hybrids = Composition.of_parts(1, "low_high", reference=torch.zeros(1, 3, 8, 8))
    assert hybrids.describe() == {"views": ["identity"], "split": low, "fixed": 0}


def test_whether_every_prompt_is_seen_plainly() -> None:
    assert hybrid("low_high").plain
    assert not anagram("identity", "flip").plain
    assert Composition(views("identity")).plain
