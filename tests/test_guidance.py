from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffkit.errors import UsageError
from diffkit.guidance import cfg
from diffkit.types import Cond, Prediction

UNCOND = Cond({"c": torch.tensor([[1.0]])})
COND = Cond({"c": torch.tensor([[10.0], [20.0]])})
X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


class Net:
    """out = c + x + t, var = -c; counts its calls and remembers the batch sizes."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        self.batches.append(x.shape[0])
        c = cond.tensors["c"][:, :, None, None].expand_as(x)
        time = t.reshape(-1, 1, 1, 1) if t.ndim else t
        return Prediction(c + x + time, -c)


@pytest.mark.parametrize("scale", [-1.0, 0.5, 2.0, 7.5])
@pytest.mark.parametrize("t", [torch.tensor(500), torch.tensor([500, 100])])
def test_formula_in_one_call_and_variance_of_the_conditional_half(scale: float, t: Tensor) -> None:
    net = Net()
    got = cfg(net, UNCOND, scale)(X, t, COND)
    assert net.batches == [4]
    plain = Net()
    u, c = plain(X, t, UNCOND.expand(2)), plain(X, t, COND)
    torch.testing.assert_close(got.out, u.out + scale * (c.out - u.out))
    torch.testing.assert_close(got.var, c.var)


def test_scale_one_and_zero_cost_one_plain_call() -> None:
    t = torch.tensor(10)
    for scale, cond in ((1.0, COND), (0.0, UNCOND.expand(2))):
        net = Net()
        got = cfg(net, UNCOND, scale)(X, t, cond if scale else COND)
        assert net.batches == [2]
        torch.testing.assert_close(got.out, Net()(X, t, cond).out, rtol=0, atol=0)


def test_outside_the_interval_the_prediction_is_conditional() -> None:
    net = Net()
    guided = cfg(net, UNCOND, 3.0, start=0.25, stop=0.75, levels=100)
    for t in (99, 76, 75, 50, 25, 24, 0):
        guided(X, torch.tensor(t), COND)
    assert net.batches == [2, 2, 4, 4, 4, 2, 2]


def test_without_a_variance_there_is_none() -> None:
    got = cfg(lambda x, t, c: Prediction(x), UNCOND, 3.0)(X, torch.tensor(1), COND)
    assert got.var is None


def test_nested_guidance_is_still_one_call() -> None:
    net = Net()
    other = Cond({"c": torch.tensor([[5.0]])})
    got = cfg(cfg(net, UNCOND, 2.0), other, 3.0)(X, torch.tensor(0), COND)
    assert net.batches == [8]
    inner = lambda c: 1.0 + 2.0 * (c - 1.0)  # noqa: E731
    c = COND.tensors["c"][:, :, None, None]
    torch.testing.assert_close(got.out, X + inner(5.0) + 3.0 * (inner(c) - inner(5.0)))


@pytest.mark.parametrize(("start", "stop"), [(-0.1, 1.0), (0.6, 0.5), (0.0, 1.1)])
def test_impossible_interval(start: float, stop: float) -> None:
    with pytest.raises(UsageError, match="start <= stop"):
        cfg(Net(), UNCOND, 2.0, start=start, stop=stop)
