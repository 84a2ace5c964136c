"""Losses as rows, their sum, and guidance by them against a Gaussian whose posterior is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from diffkit.engine.gradients import WEIGHTS, gradient, weight
from diffkit.engine.guidance import place_of
from diffkit.engine.levels import network_level, out_of, x0_of
from diffkit.engine.losses import LOSSES, Loss, parse_guide, total
from diffkit.engine.samplers import make_sampler
from diffkit.engine.sampling import denoise
from diffkit.errors import DataError, UsageError
from diffkit.evaluation import losses as losses  # registers the rows that need a model
from diffkit.types import Cond, Prediction
from tests.engine.test_levels import base_of

MEAN, SPREAD, SCALE = 0.3, 0.5, 1.5


def posterior(loss: Callable[[Tensor, Tensor], Tensor], kind: str, damped: bool) -> Tensor:
    """Samples of an ideal denoiser of N(MEAN, SPREAD), guided by a loss with the weight of the score."""
    base = base_of(kind)
    scheduler = make_sampler(None, base) if kind == "flow" else make_sampler("ddim", base, clip_sample=False)

    def net(x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        signal, noise = network_level(scheduler, t)
        slope = signal * SPREAD / (signal**2 * SPREAD + noise**2)
        return Prediction(out_of(MEAN + slope * (x - signal * MEAN), x, t, scheduler))

    def weigh(t: Tensor) -> float:
        # A loss of the mean x0 is not the mean loss. Of the quadratic one the difference is known: x0 given x has the
        # variance `left`, and exp(-scale (x0 - y)^2 / 2) averages to the same with scale / (1 + scale * left).
        signal, noise = network_level(scheduler, t)
        left = SPREAD * noise**2 / (signal**2 * SPREAD + noise**2)
        return float(noise**2 / (1 + SCALE * left))

    guided = gradient(net, loss, SCALE, scheduler, weight=weigh if damped else None)
    x = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    for step in denoise(guided, (x - x.mean()) / x.std(), scheduler, steps=400):
        last = step.x
    return last


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow"])
def test_a_linear_loss_shifts_the_gaussian_and_a_quadratic_one_narrows_it(kind: str) -> None:
    shifted = posterior(lambda x0, t: 0.4 * x0.flatten(1).sum(1), kind, damped=False)
    assert float(shifted.mean()) == pytest.approx(MEAN - SCALE * 0.4 * SPREAD, abs=0.02)
    assert float(shifted.var()) == pytest.approx(SPREAD, rel=0.04)
    pulled = posterior(lambda x0, t: (x0 - 1.2).square().flatten(1).sum(1) / 2, kind, damped=True)
    exact = 1 / (1 / SPREAD + SCALE)
    assert float(pulled.mean()) == pytest.approx(exact * (MEAN / SPREAD + SCALE * 1.2), abs=0.02)
    assert float(pulled.var()) == pytest.approx(exact, rel=0.04)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction", "flow"])
def test_without_the_network_the_estimate_moves_alike_whatever_is_predicted(kind: str) -> None:
    base, t = base_of(kind), torch.tensor(400)
    signal, _ = network_level(base, t)
    x, clean = torch.randn(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    net = lambda x, t, c: Prediction(out_of(clean, x, t, base), 0 * x + 7)  # noqa: E731
    slope = torch.linspace(-1, 1, 16).reshape(4, 4)

    def loss(x0: Tensor, t: Tensor) -> Tensor:
        return (slope * x0).flatten(1).sum(1)

    for kind_of_weight in ("signal", "index"):
        weigh = weight(kind_of_weight, base, lambda t: 3)
        assert weigh is not None
        got = gradient(net, loss, 0.5, base, through=False, weight=weigh)(x, t, Cond())
        expected = clean - 0.5 * weigh(t) / signal**2 * slope
        torch.testing.assert_close(x0_of(got.out, x, t, base), expected, rtol=1e-3, atol=1e-3)
        assert (got.var == 7).all()
    bounded = gradient(net, loss, 500.0, base, through=False, limit=1.0, weight=weigh)(x, t, Cond())
    moved = x0_of(bounded.out, x, t, base) - clean
    room = torch.where(slope > 0, clean.clamp(-1, 1) + 1, 1 - clean.clamp(-1, 1))
    torch.testing.assert_close(moved.abs(), room.expand_as(clean), rtol=1e-3, atol=1e-2)


def test_weights_over_time() -> None:
    base = base_of("epsilon")
    signal, index = weight("signal", base, lambda t: 5), weight("index", base, lambda t: 5)
    assert signal is not None
    assert index is not None
    assert signal(torch.tensor(600)) == pytest.approx(float(base.alphas_cumprod[600]) ** 0.5)
    assert index(torch.tensor(600)) == pytest.approx(float(base.alphas_cumprod[5]) ** 0.5)
    assert weight("score", base, lambda t: 5) is None
    flow = weight("index", base_of("flow"), lambda t: 5)
    assert flow is not None
    assert flow(torch.tensor(600.0)) == pytest.approx(1 - 5 / base_of("flow").config.num_train_timesteps)
    with pytest.raises(UsageError, match="unknown weight 'sigma'"):
        weight("sigma", base, lambda t: 5)
    assert len(WEIGHTS) == 3


def test_scale_nought_is_the_network_itself() -> None:
    net = lambda x, t, c: Prediction(x)  # noqa: E731
    assert gradient(net, lambda x0, t: x0.flatten(1).sum(1), 0.0, base_of("epsilon")) is net


def test_a_sample_without_signal_is_left_alone() -> None:
    base = base_of("flow")
    x = torch.randn(2, 1, 4, 4)
    guided = gradient(lambda x, t, c: Prediction(x), lambda x0, t: x0.flatten(1).sum(1), 5.0, base)
    assert torch.equal(guided(x, torch.tensor(1000.0), Cond()).out, x)


# --- rows


SPECS = {
    "color": ("color:red", "color:#3070ff,side=1", "color:rgb(10, 20, 30),soft=0@-2.5"),
    "image": ("image:a,b.png", "image:photo.png,side=8@3"),
    "clip": ('clip:a rose, in @ snow: "x"', "clip:me@home", "clip:a,model=some/clip,cuts=2@100"),
    "classifier": ("classifier:a=b/c.safetensors=two, three", "classifier:me/vit=3@1e-2"),
}


def test_every_row_is_tried() -> None:
    assert SPECS.keys() == set(LOSSES)


@pytest.mark.parametrize("spec", [spec for specs in SPECS.values() for spec in specs])
def test_what_is_spelled_is_read_again(spec: str) -> None:
    guide = parse_guide(spec)
    assert isinstance(guide.loss, Loss)
    assert parse_guide(guide.spec) == guide
    assert parse_guide(guide.spec).spec == guide.spec


def test_values_hold_commas_and_scales_are_optional() -> None:
    guide = parse_guide("clip:a rose, in @ snow,cuts=2@-7")
    assert guide.spec == "clip:a rose, in @ snow,model=openai/clip-vit-large-patch14,cuts=2@-7"
    assert parse_guide("color:red").spec == "color:red,side=0,soft=0.4@40"
    assert parse_guide("clip:me@home").loss.value == "me@home"


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("colour:red", "unknown guide 'colour'"),
        ("color", "has no value"),
        ("color:", "no colour"),
        ("color:#30gg00@4", "'#30gg00' is no colour"),
        ("color:red,side=-1", "side -1"),
        ("color:red,side=x", "side is 'x'"),
        ("color:red@nan", "finite"),
        ("color:red@inf", "finite"),
        ("color:red,soft=-1", "soft -1"),
        ("image:", "no picture"),
        ("clip:@4", "no text"),
        ("clip:a,cuts=0", "cuts 0"),
        ("classifier:file", "no class"),
    ],
)
def test_what_is_refused(spec: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_guide(spec)


def test_a_colour_is_a_mean_absolute_error() -> None:
    images = torch.rand(3, 3, 4, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    wanted = torch.tensor([0x30, 0x70, 0xFF]).reshape(1, 3, 1, 1) / 127.5 - 1
    plain = parse_guide("color:#3070ff,soft=0").loss.of(images, [])
    torch.testing.assert_close(plain, (images - wanted).abs().mean((1, 2, 3)))
    mean = parse_guide("color:#3070ff,side=1,soft=0").loss.of(images, [])
    torch.testing.assert_close(mean, (images.mean((2, 3), keepdim=True) - wanted).abs().mean((1, 2, 3)))
    far, near = torch.full((1, 3, 4, 4), -0.5), torch.full((1, 3, 4, 4), 0.9)
    soft = parse_guide("color:white,soft=0.4").loss
    assert float(soft.of(far, [])) == pytest.approx(1.5)
    assert float(soft.of(near, [])) == pytest.approx(0.1**2 / 0.8 + 0.2)
    grey = images[:, :1]
    torch.testing.assert_close(soft.of(grey, []), soft.of(grey.expand(-1, 3, -1, -1), []))


def test_a_picture_is_nearest_to_itself(tmp_path: Path) -> None:
    Image.linear_gradient("L").resize((20, 12)).save(tmp_path / "one.png")
    loss = parse_guide(f"image:{tmp_path / 'one.png'}").loss
    loss.check()
    assert loss.files() == [tmp_path / "one.png"]
    from diffkit.pictures.images import cut, open_image
    from diffkit.pictures.tensors import to_tensor

    same = to_tensor(cut(open_image(tmp_path / "one.png"), 8, 8))
    assert float(loss.of(same, [])) == 0
    torch.testing.assert_close(loss.of(same + 0.5, []), torch.tensor([0.125]))
    pattern = same + torch.tensor([[0.2, -0.2]]).repeat(8, 4)
    assert float(loss.of(pattern, [])) > 0.01
    assert float(parse_guide(f"image:{tmp_path / 'one.png'},side=4").loss.of(pattern, [])) < 1e-9
    with pytest.raises(DataError):
        parse_guide(f"image:{tmp_path / 'none.png'}").loss.check()


def test_losses_add_up_and_draw_by_seed_and_step_alone() -> None:
    seen: list[list[float]] = []

    class Drawn(Loss):
        def of(self, images: Tensor, random: list[torch.Generator]) -> Tensor:
            seen.append([float(torch.rand((), generator=g)) for g in random])
            return images.new_tensor(seen[-1])

    from diffkit.engine.losses import Guide

    grid = torch.tensor([90, 60, 30])
    images, place = torch.zeros(2, 1, 4, 4), lambda t: place_of(grid, t)
    both = total([Guide(Drawn(), 2.0), Guide(Drawn(), -0.5)], [7, 8], place)(images, torch.tensor(60))
    torch.testing.assert_close(both, 1.5 * torch.tensor(seen[0]))
    assert seen[0] == seen[1]
    total([Guide(Drawn(), 1.0)], [8], place)(images[:1], torch.tensor(60))
    assert seen[2] == seen[0][1:]
    total([Guide(Drawn(), 1.0)], [7, 8], place)(images, torch.tensor(30))
    assert not set(seen[3]) & set(seen[0])
    assert len(set(seen[0])) == 2
