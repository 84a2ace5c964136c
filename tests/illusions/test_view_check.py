"""Views of a user's making: what `check_view` finds out about them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from PIL import Image
from torch import Tensor

from diffkit.illusions.blur import blur
from diffkit.illusions.views import Look, check_view, parse_view


@dataclass(frozen=True)
class Own(Look):
    """A view of a user's making."""

    forth: Callable[[Tensor], Tensor]
    back: Callable[[Tensor], Tensor]
    var: Callable[[Tensor], Tensor] | None = None
    spec: str = "own"

    def apply(self, x: Tensor) -> Tensor:
        return self.forth(x)

    def invert(self, x: Tensor) -> Tensor:
        return self.back(x)

    def invert_var(self, v: Tensor) -> Tensor:
        return (self.var or self.back)(v)

    def frame(self, image: Image.Image, progress: float) -> Image.Image:
        return image


MIRROR = Own(lambda x: x.flip(-1), lambda x: x.flip(-1))
_Q = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
BAD = {
    "cannot be undone": replace(MIRROR, back=lambda x: x.flip(-2)),
    "changes lengths, by up to 50": Own(lambda x: 1.5 * x, lambda x: x / 1.5),
    "not linear": Own(lambda x: x.abs(), lambda x: x),
    "invert_var": Own(lambda x: -x, lambda x: -x),
    "has the mean": Own(lambda x: x + 1, lambda x: x - 1),
    "has the variance 2.2": Own(lambda x: 1.5 * x, lambda x: x / 1.5),
    "correlated": Own(lambda x: blur(x, 4.0), lambda x: x),
    "shape must stay": Own(lambda x: x[..., ::2, ::2], lambda x: x),
}


class TestCheck:
    def test_an_own_view_that_works(self) -> None:
        report = check_view(MIRROR, 16)
        assert report.ok
        assert report.kept == 1.0
        assert not report.hints

    @pytest.mark.parametrize("reason", BAD)
    def test_says_why_not(self, reason: str) -> None:
        report = check_view(BAD[reason], 16)
        assert not report.ok
        assert any(reason in found for found in report.reasons), report.reasons

    def test_interpolation_is_found_out(self) -> None:
        half = Own(lambda x: (x + x.roll(1, -1)) / 2, lambda x: x)
        found = " ".join(check_view(half, 16).reasons)
        assert "undone" in found
        assert "changes lengths" in found
        assert "correlated" in found

    def test_numbers_that_are_none(self) -> None:
        assert not check_view(Own(lambda x: x * float("nan"), lambda x: x), 8).ok

    def test_an_orthogonal_map_that_mixes_pixels(self) -> None:
        report = check_view(Own(lambda x: _Q @ x, lambda x: _Q.T @ x, lambda v: _Q.T**2 @ v), 16)
        assert report.kept is None
        assert report.hints
        assert all("invert_var" in reason for reason in report.reasons)

    def test_warns_of_torn_neighbours(self) -> None:
        assert "only 0% of neighbouring" in check_view(parse_view("pixel_permute"), 64).hints[0]
        report = check_view(parse_view("patch_permute"), 64)
        # inside its patch a pixel keeps 7 of 8 neighbours to each side; across, few patches stay together
        assert 7 * 8 / 63 <= report.kept < 7 * 8 / 63 + 0.01
        assert not report.hints

    @pytest.mark.parametrize("spec", ["identity", "skew:0.01", "inner_circle:0", "patch_permute:2,15"])
    def test_warns_of_a_view_that_shows_the_same_twice(self, spec: str) -> None:
        report = check_view(parse_view(spec), 32)
        assert report.ok
        [hint] = report.hints  # of 24 orders of four patches one changes nothing, and seed 15 draws it
        assert "It changes nothing" in hint

    def test_warns_of_a_view_that_shows_nearly_the_same_twice(self) -> None:
        [hint] = check_view(parse_view("inner_circle:0.05"), 64).hints
        assert "changes only 0.8% of the picture" in hint
        assert not check_view(parse_view("negate"), 32).hints
