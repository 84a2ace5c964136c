from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffkit.engine.predictions import KINDS, clean_from, noise_from, noised, output_from, target
from diffkit.errors import UsageError

X0, EPS = (torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("signal", "noise"), [(0.8, 0.6), (0.6, 0.8), (0.28, 0.96)])
@pytest.mark.parametrize("as_tensors", [False, True])
def test_every_form_says_the_same(kind: str, signal: float, noise: float, as_tensors: bool) -> None:
    if kind == "flow":
        signal = 1 - noise
    a: float | Tensor = torch.full((3, 1, 1, 1), signal) if as_tensors else signal
    s: float | Tensor = torch.full((3, 1, 1, 1), noise) if as_tensors else noise
    x = noised(X0, EPS, a, s)
    out = target(kind, X0, EPS, a, s)
    torch.testing.assert_close(clean_from(kind, out, x, a, s), X0, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(noise_from(kind, out, x, a, s), EPS, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output_from(kind, X0, x, a, s), out, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("as_tensors", [False, True])
def test_without_noise_an_output_is_a_number(kind: str, as_tensors: bool) -> None:
    a, s = (torch.ones(3, 1, 1, 1), torch.zeros(3, 1, 1, 1)) if as_tensors else (1.0, 0.0)
    assert output_from(kind, X0, X0, a, s).isfinite().all()


def test_an_unknown_kind_is_refused() -> None:
    for call in (target, clean_from, noise_from, output_from):
        with pytest.raises(UsageError, match="unknown prediction_type 'score'"):
            call("score", X0, EPS, 0.6, 0.8)
