from __future__ import annotations

import pytest

from diffkit.errors import UsageError
from diffkit.illusions.halving import Stretch, candidate_seeds, halving_plan, network_calls


def test_half_goes_on_after_each_cut() -> None:
    assert halving_plan(8, 1, 20, (0.5,)) == [Stretch(0, 10, 8), Stretch(10, 20, 4)]
    assert halving_plan(8, 1, 20, (0.25, 0.5, 0.75)) == [
        Stretch(0, 5, 8),
        Stretch(5, 10, 4),
        Stretch(10, 15, 2),
        Stretch(15, 20, 1),
    ]
    assert halving_plan(7, 1, 20, (0.5,)) == [Stretch(0, 10, 7), Stretch(10, 20, 4)]


def test_no_fewer_than_are_kept_and_no_empty_stretch() -> None:
    assert halving_plan(8, 6, 20, (0.5,)) == [Stretch(0, 10, 8), Stretch(10, 20, 6)]
    assert halving_plan(4, 4, 20, (0.5,)) == [Stretch(0, 20, 4)]
    assert halving_plan(1, 1, 20, (0.5,)) == [Stretch(0, 20, 1)]
    assert halving_plan(8, 1, 1, (0.5,)) == [Stretch(0, 1, 8)]
    assert halving_plan(8, 1, 2, (0.1, 0.2, 0.5)) == [Stretch(0, 1, 8), Stretch(1, 2, 4)]
    assert halving_plan(8, 1, 20, ()) == [Stretch(0, 20, 8)]


def test_calls_of_a_plan() -> None:
    assert network_calls(halving_plan(8, 1, 20, (0.5,)), 64) == 20
    assert network_calls(halving_plan(8, 1, 20, (0.5,)), 4) == 10 * 2 + 10
    assert network_calls(halving_plan(9, 1, 20, ()), 4) == 60


def test_impossible_plans() -> None:
    with pytest.raises(UsageError, match="`best_of` 4 cannot give 5"):
        halving_plan(4, 5, 20)
    for cuts in ((0.0,), (1.0,), (0.6, 0.5), (0.5, 0.5)):
        with pytest.raises(UsageError, match="ascending fractions"):
            halving_plan(4, 1, 20, cuts)


def test_seeds_are_counted_on() -> None:
    assert candidate_seeds([7], 4) == [7, 8, 9, 10]
    assert candidate_seeds([3, 90], 4) == [3, 90, 91, 92]
    assert candidate_seeds(range(4), 4) == [0, 1, 2, 3]
    with pytest.raises(UsageError, match="`best_of` 2 with 3 seeds"):
        candidate_seeds([1, 2, 3], 2)
