"""The learning rate is a function of the update count; a bad gradient changes nothing."""

import math

import pytest
import torch

from diffkit.recipes.schema import TrainingSpec
from diffkit.training.ema import EMA
from diffkit.training.optim import Plateau, gradient_norm, learning_rate, make_optimizer, step_unless


def rates(shape, total=100, per_epoch=10.0, warmup=10, **more):
    spec = TrainingSpec(lr=1.0, lr_schedule=shape, warmup_steps=warmup, **more)
    return [learning_rate(spec, step, total, per_epoch) for step in range(total)]


@pytest.mark.parametrize("shape", ["constant", "linear", "cosine", "plateau"])
def test_warm_up_is_linear_and_reaches_the_peak(shape):
    lr = rates(shape)
    assert lr[:10] == pytest.approx([(k + 1) / 10 for k in range(10)])
    assert max(lr) == pytest.approx(1.0)


def test_shapes_end_where_they_should():
    assert rates("constant")[-1] == 1.0
    assert rates("linear")[-1] == pytest.approx(1 / 90)
    assert rates("cosine")[-1] == pytest.approx(0.5 * (1 + math.cos(math.pi * 89 / 90)))


def test_exponential_falls_to_a_tenth_over_the_run_in_whole_epochs():
    lr = rates("exponential", warmup=0)
    assert lr[0] == 1.0
    assert lr[9] == 1.0
    assert lr[10] == pytest.approx(0.1 ** (1 / 10))
    assert lr[99] == pytest.approx(0.1 ** (9 / 10))
    assert rates("exponential", warmup=0, lr_gamma=0.5)[25] == pytest.approx(0.25)


def test_plateau_waits_and_reduces():
    plateau = Plateau(gamma=0.5, patience=2)
    assert [plateau.observe(v) for v in (1.0, 0.9, 0.9, 0.9, 0.9)] == [False, False, False, False, True]
    assert plateau.factor == 0.5
    assert not plateau.observe(0.1)
    again = Plateau(**plateau.state_dict())
    assert again == plateau


@pytest.mark.parametrize("fused", [True, False])
def test_a_bad_gradient_is_skipped_and_a_good_one_taken(fused):
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=fused or None)
    for value, bad, moves in ((1.0, 0.0, True), (math.nan, 1.0, False), (1.0, 0.0, True)):
        for param in layer.parameters():
            param.grad = torch.full_like(param, value)
        before = layer.weight.detach().clone()
        step_unless(optimizer, torch.tensor(bad))
        assert bool((layer.weight != before).any()) == moves
        assert bool(torch.isfinite(layer.weight).all())
    assert {float(s["step"]) for s in optimizer.state.values()} == {2.0}


def test_gradient_norm_measures_and_clips():
    layer = torch.nn.Linear(2, 1, bias=False)
    layer.weight.grad = torch.tensor([[3.0, 4.0]])
    params = list(layer.parameters())
    assert float(gradient_norm(params, 0)) == pytest.approx(5.0)
    assert layer.weight.grad.tolist() == [[3.0, 4.0]]
    assert float(gradient_norm(params, 1.0)) == pytest.approx(5.0)
    assert float(layer.weight.grad.norm()) == pytest.approx(1.0, rel=1e-5)


def test_optimizer_leaves_frozen_parameters_out():
    layer = torch.nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    optimizer = make_optimizer(layer, TrainingSpec(), torch.device("cpu"))
    assert [p.shape for g in optimizer.param_groups for p in g["params"]] == [layer.weight.shape]


def test_ema_follows_its_formula_in_fp32_and_gives_the_weights_back():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    ema = EMA(net, decay=0.5)
    expected = net[0].weight.detach().clone()
    for step in range(6):
        with torch.no_grad():
            net[0].weight.add_(1.0)
        ema.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * net[0].weight.detach()
    torch.testing.assert_close(ema.state_dict()["0.weight"], expected)
    assert all(v.dtype == torch.float32 for v in ema.shadow)
    assert "1.running_mean" not in ema.state_dict()
    raw = net[0].weight.detach().clone()
    with ema.applied():
        torch.testing.assert_close(net[0].weight.detach(), expected)
    torch.testing.assert_close(net[0].weight.detach(), raw, atol=0, rtol=0)
