from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from diffkit.errors import UsageError
from diffkit.registry import Registry


@pytest.fixture
def views() -> Registry[Any]:
    registry: Registry[Any] = Registry("view")

    @registry.register("flip")
    @dataclass(frozen=True)
    class Flip:
        pass

    @registry.register("skew")
    @dataclass(frozen=True)
    class Skew:
        amount: float = 1.5
        rows: int = 1
        cache: int = field(default=0, init=False)

    return registry


def test_rows_are_listed_in_the_order_of_registration(views: Registry[Any]) -> None:
    assert list(views) == ["flip", "skew"]
    assert views["flip"].name == "flip"


def test_arguments_follow_the_fields(views: Registry[Any]) -> None:
    assert views.parse("skew") == views["skew"](1.5, 1)
    assert views.parse("skew:2") == views["skew"](2.0, 1)
    assert views.parse(" skew : 2.5, 3") == views["skew"](2.5, 3)
    assert type(views.parse("skew:2").amount) is float


@pytest.mark.parametrize(
    ("spec", "message", "hint"),
    [
        ("flop", "unknown view 'flop'", "Did you mean 'flip'?"),
        ("skew:a", "view 'skew:a': amount is 'a', not a float", ""),
        ("skew:1,2.5", "view 'skew:1,2.5': rows is '2.5', not a int", ""),
        ("flip:1", "view 'flip:1' has 1 arguments; 'flip' takes 0", ""),
        ("skew:1,2,3", "view 'skew:1,2,3' has 3 arguments; 'skew' takes 2", ""),
    ],
)
def test_wrong_specs_are_usage_errors(views: Registry[Any], spec: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        views.parse(spec)
    assert (caught.value.message, caught.value.hint) == (message, hint)


def test_a_name_is_given_once(views: Registry[Any]) -> None:
    with pytest.raises(ValueError, match="two rows named 'flip'"):
        views.register("flip")(type("Other", (), {}))
