from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffkit.engine.gradients import gradient
from diffkit.engine.guidance import cfg, chunked, mix, multiview, smallest_limit
from diffkit.engine.levels import network_level, out_of, x0_of
from diffkit.engine.samplers import make_sampler
from diffkit.engine.sampling import denoise
from diffkit.errors import UsageError
from diffkit.types import Cond, Prediction
from tests.engine.test_levels import base_of

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


@pytest.mark.parametrize("tenth", range(11))
def test_both_ends_of_the_interval_count(tenth: int) -> None:
    """At the decimals that people write, whatever their binary fractions are."""
    net, t = Net(), torch.tensor(1000 - 100 * tenth)
    end = float(f"0.{tenth}") if tenth < 10 else 1.0
    cfg(net, UNCOND, 3.0, start=end, levels=1000)(X, t, COND)
    cfg(net, UNCOND, 3.0, stop=end, levels=1000)(X, t, COND)
    assert net.batches == [4, 4]


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
    with pytest.raises(UsageError, match="of the way"):
        cfg(Net(), UNCOND, 2.0, start=start, stop=stop)


def test_what_the_null_condition_does_not_hold_is_shared() -> None:
    seen: list[Cond] = []

    def net(x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        seen.append(cond)
        return Prediction(x)

    image = torch.randn(2, 3, 4, 4)
    cfg(net, UNCOND, 2.0)(X, torch.tensor(1), COND.join(Cond({"channels": image})))
    assert seen[0].tensors["c"].flatten().tolist() == [1, 1, 10, 20]
    torch.testing.assert_close(seen[0].tensors["channels"], torch.cat([image, image]))


# --- views


class Same:
    def apply(self, x: Tensor) -> Tensor:
        return x

    invert = invert_var = apply


class Flip(Same):
    def apply(self, x: Tensor) -> Tensor:
        return x.flip(-2)

    invert = invert_var = apply


class Negate(Same):
    def apply(self, x: Tensor) -> Tensor:
        return -x

    invert = apply

    def invert_var(self, v: Tensor) -> Tensor:
        return v


def spatial(x: Tensor, t: Tensor, cond: Cond) -> Prediction:
    """A network that is not symmetric: what it says depends on the place, the condition and the rows' own t."""
    ramp = torch.arange(16.0).reshape(4, 4)
    c = cond.tensors["c"][:, :, None, None]
    return Prediction(x * ramp + c + t.reshape(-1, 1, 1, 1) * ramp, x.tanh() * ramp / 16)


@pytest.mark.parametrize("t", [torch.tensor(5), torch.tensor([5, 9])])
def test_identity_views_are_plain_sampling(t: Tensor) -> None:
    plain = spatial(X, t, COND)
    for views in ([Same()], [Same()] * 4):
        got = multiview(spatial, [COND] * len(views), views)(X, t, Cond())
        torch.testing.assert_close(got.out, plain.out)
        torch.testing.assert_close(got.var, plain.var)


def test_views_are_turned_back_and_averaged_each_with_its_own_condition() -> None:
    t, conds = torch.tensor([1, 2]), [Cond({"c": torch.tensor([[float(k)]])}) for k in range(3)]
    views = [Same(), Flip(), Negate()]
    got = multiview(spatial, conds, views)(X, t, Cond())
    outs = [v.invert(spatial(v.apply(X), t, c.expand(2)).out) for v, c in zip(views, conds, strict=True)]
    torch.testing.assert_close(got.out, sum(outs) / 3)
    spread = [v.invert_var(spatial(v.apply(X), t, c.expand(2)).var) for v, c in zip(views, conds, strict=True)]
    torch.testing.assert_close(got.var, sum(spread) / 3)


def test_alternating_takes_one_view_a_step() -> None:
    net, conds = Net(), [Cond({"c": torch.tensor([[float(k)]])}) for k in range(2)]
    views = [Same(), Flip()]
    grid = torch.tensor([90.0, 60.5, 30.0])
    guided = multiview(net, conds, views, "alternate", timesteps=grid)
    for k, t in enumerate(grid):
        expected = views[k % 2].invert(Net()(views[k % 2].apply(X), t, conds[k % 2].expand(2)).out)
        torch.testing.assert_close(guided(X, t, Cond()).out, expected)
    assert net.batches == [2, 2, 2]


def test_an_image_in_the_condition_turns_with_the_view() -> None:
    seen: list[Cond] = []

    def net(x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        seen.append(cond)
        return Prediction(x)

    image = Cond({"channels": X})
    own = [Cond({"c": torch.tensor([[1.0]])})] * 2
    multiview(cfg(net, UNCOND, 2.0), own, [Same(), Flip()])(X, torch.tensor(1), image)
    once = torch.cat([X, X.flip(-2)])
    torch.testing.assert_close(seen[0].tensors["channels"], torch.cat([once, once]))


def test_views_times_guidance_times_samples_is_one_call_and_chunks_split_it() -> None:
    views, conds = [Same(), Flip(), Negate()], [COND] * 3
    t = torch.tensor(3)
    net = Net()
    whole = multiview(cfg(net, UNCOND, 3.0), conds, views)(X, t, Cond())
    assert net.batches == [3 * 2 * 2]
    for limit, calls in ((5, [5, 5, 2]), (12, [12]), (1, [1] * 12)):
        small = Net()
        got = multiview(cfg(chunked(small, limit), UNCOND, 3.0), conds, views)(X, t, Cond())
        assert small.batches == calls
        torch.testing.assert_close(got.out, whole.out, rtol=0, atol=0)
        torch.testing.assert_close(got.var, whole.var, rtol=0, atol=0)
    rows = torch.tensor([5, 9])
    torch.testing.assert_close(chunked(spatial, 1)(X, rows, COND).out, spatial(X, rows, COND).out, rtol=0, atol=0)
    assert chunked(net, None) is net


def test_the_smallest_of_several_limits_counts() -> None:
    assert smallest_limit() is smallest_limit(None, None) is None
    assert smallest_limit(None, 3, 2, None) == 2
    with pytest.raises(UsageError, match="`max_batch` 0 is below 1"):
        smallest_limit(4, 0)
    net = Net()
    chunked(net, None, 3, 1)(X, torch.tensor(3), COND)
    assert net.batches == [1, 1]
    assert chunked(net, None, None) is net


def test_impossible_views() -> None:
    with pytest.raises(UsageError, match="2 prompts for 1 views"):
        multiview(Net(), [COND, COND], [Same()])
    with pytest.raises(UsageError, match="`reduce`"):
        multiview(Net(), [COND], [Same()], "median")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="`max_batch`"):
        chunked(Net(), 0)


# --- mixtures


class Halves:
    """Left and right."""

    parts = 2

    def part(self, x: Tensor, k: int) -> Tensor:
        mask = torch.arange(x.shape[-1]) < x.shape[-1] // 2
        return x * (mask if k == 0 else ~mask)


def test_each_part_comes_from_its_own_condition() -> None:
    conds, t = [Cond({"c": torch.tensor([[1.0]])}), Cond({"c": torch.tensor([[5.0]])})], torch.tensor([1, 2])
    net = Net()
    got = mix(net, conds, Halves())(X, t, Cond())
    assert net.batches == [4]
    first, second = (Net()(X, t, c.expand(2)) for c in conds)
    torch.testing.assert_close(got.out, torch.cat([first.out[..., :2], second.out[..., 2:]], dim=-1))
    torch.testing.assert_close(got.var, (first.var + second.var) / 2)
    same = mix(spatial, [COND, COND], Halves())(X, t, Cond())
    torch.testing.assert_close(same.out, spatial(X, t, COND).out)
    with pytest.raises(UsageError, match="2 parts"):
        mix(Net(), [COND], Halves())


# --- gradients, against a Gaussian whose answer is known


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction", "flow"])
@pytest.mark.parametrize("t", [torch.tensor(300), torch.tensor([800, 20])])
def test_the_gradient_of_a_gaussian_is_the_formula_s(kind: str, t: Tensor) -> None:
    base = base_of(kind)
    signal, noise = network_level(base, t)
    spread, mean, wanted, scale = 0.3, 0.2, torch.full_like(X, 0.7), 2.5
    slope = signal * spread / (signal**2 * spread + noise**2)

    def clean(x: Tensor) -> Tensor:
        return mean + slope * (x - signal * mean)

    def net(x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        return Prediction(out_of(clean(x), x, t, base))

    guided = gradient(net, lambda x0, t: (x0 - wanted).square().flatten(1).sum(1) / 2, scale, base)
    expected = clean(X) - scale * noise**2 / signal * slope * (clean(X) - wanted)
    got = guided(X, t, Cond()).out
    assert not got.requires_grad
    torch.testing.assert_close(x0_of(got, X, t, base), expected, rtol=1e-3, atol=1e-3)


def test_a_gradient_pulls_the_sample_to_the_wish() -> None:
    """Prior N(0, 1), wish 2: the more weight, the nearer, and never beyond."""
    base = base_of("epsilon")
    means = []
    for scale in (0.0, 0.3, 1.0):
        scheduler = make_sampler("ddim", base, clip_sample=False)

        def net(x: Tensor, t: Tensor, cond: Cond, scheduler=scheduler) -> Prediction:
            return Prediction(network_level(scheduler, t)[1] * x)

        guided = gradient(net, lambda x0, t: (x0 - 2).square().flatten(1).sum(1) / 2, scale, scheduler)
        x = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
        for step in denoise(guided, x, scheduler, steps=50):
            x = step.x
        means.append(float(x.mean()))
    assert abs(means[0]) < 0.05
    assert 0.5 < means[1] < means[2] - 0.2 < 1.8


def test_without_the_network_s_derivative_only_the_formula_s_counts() -> None:
    base = base_of("epsilon")
    t = torch.tensor(300)
    signal, noise = network_level(base, t)
    net = lambda x, t, c: Prediction(0.5 * x)  # noqa: E731
    got = gradient(net, lambda x0, t: x0.flatten(1).sum(1), 1.0, base, through=False)(X, t, Cond())
    torch.testing.assert_close(got.out, 0.5 * X + noise / signal)
    whole = gradient(net, lambda x0, t: x0.flatten(1).sum(1), 1.0, base)(X, t, Cond())
    torch.testing.assert_close(whole.out, 0.5 * X + noise * (1 - 0.5 * noise) / signal)


# --- weights, views of parts, a part that is given


def test_weights_are_shares_of_the_views() -> None:
    t, conds = torch.tensor([1, 2]), [Cond({"c": torch.tensor([[float(k)]])}) for k in range(3)]
    views = [Same(), Flip(), Negate()]
    alone = [multiview(spatial, [c], [v])(X, t, Cond()) for v, c in zip(views, conds, strict=True)]
    for weights in ((1.0, 2.0, 5.0), (10.0, 20.0, 50.0)):
        got = multiview(spatial, conds, views, weights=weights)(X, t, Cond())
        torch.testing.assert_close(got.out, sum(w / 8 * one.out for w, one in zip((1, 2, 5), alone, strict=True)))
        torch.testing.assert_close(got.var, sum(w / 8 * one.var for w, one in zip((1, 2, 5), alone, strict=True)))
    plain = multiview(spatial, conds, views)(X, t, Cond())
    equal = multiview(spatial, conds, views, weights=[3.0] * 3)(X, t, Cond())
    torch.testing.assert_close(equal.out, plain.out, rtol=0, atol=0)
    one = multiview(spatial, conds, views, weights=[0.0, 1.0, 0.0])(X, t, Cond())
    torch.testing.assert_close(one.out, alone[1].out)


@pytest.mark.parametrize(
    ("weights", "reduce", "said"),
    [
        ([1.0], "mean", "got 1 "),
        ([1.0, -1.0], "mean", "none is negative"),
        ([0.0, 0.0], "mean", "one is above 0"),
        ([float("nan"), 1.0], "mean", "finite"),
        ([float("inf"), 1.0], "mean", "finite"),
        ([1.0, 2.0], "alternate", "take turns"),
    ],
)
def test_impossible_weights(weights: list[float], reduce: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        multiview(Net(), [COND] * 2, [Same()] * 2, reduce, timesteps=[1], weights=weights)  # type: ignore[arg-type]


def test_parts_are_seen_in_views_and_split_when_they_are_turned_back() -> None:
    conds, t = [Cond({"c": torch.tensor([[1.0]])}), Cond({"c": torch.tensor([[5.0]])})], torch.tensor([1, 2])
    views = [Flip(), Negate()]
    got = mix(spatial, conds, Halves(), views=views)(X, t, Cond())
    each = [spatial(v.apply(X), t, c.expand(2)) for v, c in zip(views, conds, strict=True)]
    outs = [v.invert(p.out) for v, p in zip(views, each, strict=True)]
    torch.testing.assert_close(got.out, torch.cat([outs[0][..., :2], outs[1][..., 2:]], dim=-1))
    torch.testing.assert_close(got.var, (each[0].var.flip(-2) + each[1].var) / 2)
    plain = mix(spatial, conds, Halves())(X, t, Cond())
    torch.testing.assert_close(mix(spatial, conds, Halves(), views=[Same()] * 2)(X, t, Cond()).out, plain.out)
    net, image = Net(), Cond({"channels": X})
    mix(net, conds, Halves(), views=views)(X, t, image)
    assert net.batches == [4]
    with pytest.raises(UsageError, match="1 views for 2 parts"):
        mix(Net(), conds, Halves(), views=[Same()])


@pytest.mark.parametrize("fixed", [0, 1])
def test_a_part_that_is_given_has_no_condition_and_no_row(fixed: int) -> None:
    net, t, given = Net(), torch.tensor([1, 2]), torch.full_like(X, 0.25)
    got = mix(net, [COND], Halves(), known=lambda x, t: given, fixed=fixed)(X, t, Cond())
    assert net.batches == [2]
    free = Net()(X, t, COND).out
    halves = [given, free] if fixed == 0 else [free, given]
    torch.testing.assert_close(got.out, torch.cat([halves[0][..., :2], halves[1][..., 2:]], dim=-1))
    with pytest.raises(UsageError, match="2 prompts for 1 parts"):
        mix(Net(), [COND] * 2, Halves(), known=lambda x, t: given)
    with pytest.raises(UsageError, match="`fixed` 2"):
        mix(Net(), [COND], Halves(), known=lambda x, t: given, fixed=2)
