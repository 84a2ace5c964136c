from __future__ import annotations

import pytest

from diffkit.errors import UsageError
from diffkit.illusions.cascade import STAGE_2, STAGE_3, stages_for


@pytest.mark.parametrize(
    ("source", "given", "expected"),
    [
        ("runs/x", (None, None, None), (None, None)),
        ("DeepFloyd/IF-I-M-v1.0", (None, None, None), (STAGE_2, STAGE_3)),
        ("DeepFloyd/IF-I-M-v1.0", (64, None, None), (None, None)),
        ("DeepFloyd/IF-I-M-v1.0", (256, None, None), (STAGE_2, None)),
        ("DeepFloyd/IF-I-M-v1.0", (1024, None, None), (STAGE_2, STAGE_3)),
        ("DeepFloyd/IF-I-M-v1.0", (None, "none", None), (None, None)),
        ("DeepFloyd/IF-I-M-v1.0", (None, None, "none"), (STAGE_2, None)),
        ("DeepFloyd/IF-I-M-v1.0", (None, "my/two", "my/three"), ("my/two", "my/three")),
        ("runs/x", (None, None, "my/three"), (None, "my/three")),
        ("runs/x", (256, "my/two", None), ("my/two", None)),
    ],
)
def test_stages(source: str, given: tuple, expected: tuple) -> None:
    assert stages_for(source, *given) == expected


@pytest.mark.parametrize("given", [(256, None, None), (1024, "two", None), (64, "two", None), (256, "two", "three")])
def test_sizes_that_the_stages_do_not_give(given: tuple) -> None:
    with pytest.raises(UsageError, match=f"`size` {given[0]}"):
        stages_for("runs/x", *given)
