"""Objectives, against networks that know the answer."""

import pytest
import torch

from diffkit.engine.schedules import make_noise_scheduler
from diffkit.errors import UsageError
from diffkit.recipes.schema import NoiseSpec
from diffkit.training import rng
from diffkit.training.objectives import OBJECTIVES, drop_labels, make_objective

X0 = torch.linspace(-1, 1, 4 * 1 * 4 * 4).reshape(4, 1, 4, 4)


def build(**fields):
    noise = NoiseSpec(**fields)
    return make_objective(noise, make_noise_scheduler(noise), "cpu"), make_noise_scheduler(noise)


def answers(name, scheduler, draw):
    """The exact target of each objective, from its definition and diffusers' own `get_velocity`."""
    if name == "epsilon":
        return draw.noise
    if name == "v_prediction":
        return scheduler.get_velocity(X0, draw.noise, draw.level)
    if name == "flow":
        return draw.noise - X0
    return X0


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_the_right_answer_costs_nothing_and_a_wrong_one_its_mean_square(name):
    objective, scheduler = build(prediction=name)
    draw = objective.draw(X0, rng.generator("cpu", 0, "test"))
    exact = answers(name, scheduler, draw)
    zero = objective.loss(lambda x, t, labels: exact, X0, None, draw)
    torch.testing.assert_close(zero, torch.zeros(4), atol=1e-10, rtol=0)
    off = objective.loss(lambda x, t, labels: exact + 0.5, X0, None, draw)
    torch.testing.assert_close(off, torch.full((4,), 0.25))


@pytest.mark.parametrize("name", ["epsilon", "sample", "v_prediction"])
def test_the_noisy_image_is_diffusers_own(name):
    objective, scheduler = build(prediction=name, schedule="cosine")
    draw = objective.draw(X0, rng.generator("cpu", 1))
    seen = {}
    objective.loss(lambda x, t, labels: seen.update(x=x, t=t) or torch.zeros_like(x), X0, None, draw)
    torch.testing.assert_close(seen["x"], scheduler.add_noise(X0, draw.noise, draw.level))
    assert torch.equal(seen["t"], draw.level)


def test_the_paths_without_a_schedule():
    for name, mixed in (
        ("flow", lambda d: (1 - d.level.view(-1, 1, 1, 1)) * X0 + d.level.view(-1, 1, 1, 1) * d.noise),
        ("linear_mix", lambda d: (1 - d.level.view(-1, 1, 1, 1)) * X0 + d.level.view(-1, 1, 1, 1) * d.noise),
        ("one_step", lambda d: X0 + 0.7 * d.noise),
    ):
        objective, _ = build(prediction=name, sigma=0.7, timesteps=300)
        draw = objective.draw(X0, rng.generator("cpu", 2))
        seen = {}
        objective.loss(lambda x, t, labels, seen=seen: seen.update(x=x, t=t) or torch.zeros_like(x), X0, None, draw)
        torch.testing.assert_close(seen["x"], mixed(draw))
        expected = draw.level * 300 if name == "flow" else torch.zeros(4, dtype=torch.long)
        torch.testing.assert_close(seen["t"], expected)


def test_min_snr_weights_are_the_papers_for_each_prediction_type():
    gamma, levels = 5.0, torch.tensor([0, 100, 500, 999])
    for name in ("epsilon", "sample", "v_prediction"):
        objective, scheduler = build(prediction=name, snr_gamma=gamma)
        abar = scheduler.alphas_cumprod
        snr = abar / (1 - abar)
        expected = {
            "epsilon": torch.minimum(snr, torch.tensor(gamma)) / snr,
            "sample": torch.minimum(snr, torch.tensor(gamma)),
            "v_prediction": torch.minimum(snr, torch.tensor(gamma)) / (snr + 1),
        }[name]
        torch.testing.assert_close(objective.weight[levels], expected[levels], rtol=1e-4, atol=1e-6)
    # One x0 error costs the same whichever way it is predicted.
    v, x, e = (build(prediction=n, snr_gamma=gamma)[0].weight for n in ("v_prediction", "sample", "epsilon"))
    torch.testing.assert_close(v * (1 + snr), x, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(e * snr, x, rtol=1e-4, atol=1e-6)


def test_levels_and_noise_have_their_laws():
    big = torch.zeros(4096, 1, 2, 2)
    flow, _ = build(prediction="flow")
    level = flow.draw(big, rng.generator("cpu", 3)).level
    assert 0 <= float(level.min()) < 0.01
    assert 0.99 < float(level.max()) <= 1
    assert float(level.mean()) == pytest.approx(0.5, abs=0.005)
    ddpm, _ = build(prediction="epsilon", timesteps=300)
    draw = ddpm.draw(big, rng.generator("cpu", 3))
    assert int(draw.level.min()) == 0
    assert int(draw.level.max()) == 299
    assert float(draw.noise.std()) == pytest.approx(1, abs=0.03)


def test_labels_are_dropped_with_the_given_probability():
    labels = torch.arange(10).repeat(1000)
    dropped = drop_labels(labels, 10, 0.1, rng.generator("cpu", 4))
    assert float((dropped == 10).float().mean()) == pytest.approx(0.1, abs=0.01)
    assert torch.equal(dropped[dropped != 10], labels[dropped != 10])
    assert drop_labels(None, 10, 0.1, rng.generator("cpu", 4)) is None


def test_positions_give_their_own_randomness():
    seeds = {
        rng.derive_seed(0, "noise", step, micro, rank) for step in range(20) for micro in range(3) for rank in (0, 1)
    }
    assert len(seeds) == 120
    assert rng.derive_seed(0, "a", 1) == rng.derive_seed(0, "a", 1)
    assert rng.derive_seed(0, 11) != rng.derive_seed(0, 1, 1)


@pytest.mark.parametrize(
    ("name", "variance"),
    [(name, "learned") for name in ("epsilon", "sample", "v_prediction")]
    + [(name, "fixed") for name in ("epsilon", "sample", "v_prediction", "flow", "linear_mix")],
)
def test_the_losses_are_the_formulas_bit_for_bit(name, variance):
    """Training must not change by a rounding: what sampling shares with it is the very same arithmetic."""
    objective, scheduler = build(prediction=name, variance=variance, schedule="cosine")
    x0, out, v = (torch.randn(64, 1, 8, 8, generator=rng.generator("cpu", k)) for k in range(3))
    draw = objective.draw(x0, rng.generator("cpu", 3))
    seen = {}

    def network(x, t, labels):
        seen["x"] = x
        return torch.cat([out, v], dim=1) if variance == "learned" else out

    got = objective.loss(network, x0, None, draw)
    level, noise = draw.level[:, None, None, None], draw.noise
    clean = None
    if name in ("flow", "linear_mix"):
        x = (1 - level) * x0 + level * noise
        goal = noise - x0 if name == "flow" else x0
    else:
        abar = scheduler.alphas_cumprod[draw.level][:, None, None, None]
        x = abar.sqrt() * x0 + (1 - abar).sqrt() * noise
        goal = {"epsilon": noise, "sample": x0, "v_prediction": abar.sqrt() * noise - (1 - abar).sqrt() * x0}[name]
        clean = {
            "epsilon": (x - (1 - abar).sqrt() * out) / abar.sqrt(),
            "sample": out,
            "v_prediction": abar.sqrt() * x - (1 - abar).sqrt() * out,
        }[name]
    expected = (out - goal).float().square().flatten(1).mean(1)
    if variance == "learned":
        expected = expected + objective.vlb_weight * objective.bound(x0, clean, v, draw.level)
    assert torch.equal(seen["x"], x)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("name", list(OBJECTIVES))
@pytest.mark.parametrize("kind", ["mae", "huber"])
def test_other_losses_are_torchs_of_the_same_error(name, kind):
    objective, scheduler = build(prediction=name, loss=kind, huber_delta=0.3)
    draw = objective.draw(X0, rng.generator("cpu", 5))
    exact, error = answers(name, scheduler, draw), torch.randn(X0.shape, generator=rng.generator("cpu", 6))
    got = objective.loss(lambda x, t, labels: exact + error, X0, None, draw)
    per = torch.nn.functional.l1_loss if kind == "mae" else torch.nn.functional.huber_loss
    more = {"delta": 0.3} if kind == "huber" else {}
    expected = [float(per(row, torch.zeros_like(row), **more)) for row in error]
    assert got.tolist() == pytest.approx(expected, rel=1e-4)
    off = objective.loss(lambda x, t, labels: exact + 1.0, X0, None, draw)
    torch.testing.assert_close(off, torch.full((4,), 1.0 if kind == "mae" else 0.3 * (1 - 0.15)))


def test_logit_normal_times_have_their_law():
    big = torch.zeros(20_000, 1, 1, 1)
    for spec, mean, std in (("logit_normal", 0.0, 1.0), ("logit_normal:0.5,0.7", 0.5, 0.7)):
        level = build(prediction="flow", times=spec)[0].draw(big, rng.generator("cpu", 7)).level.double()
        assert 0 <= float(level.min()) < float(level.max()) <= 1
        logit = torch.logit(level.clamp(1e-6, 1 - 1e-6))
        assert float(logit.mean()) == pytest.approx(mean, abs=0.01)
        assert float(logit.std()) == pytest.approx(std, abs=0.01)
        # Its density at the middle is 4 / sqrt(2 pi) for mean 0 and std 1: how many levels lie about 1/2.
        if mean == 0:
            near = float(((level - 0.5).abs() < 0.05).double().mean())
            assert near == pytest.approx(0.1 * 4 / (2 * torch.pi) ** 0.5, rel=0.03)
    with pytest.raises(UsageError, match="law of times 'beta'"):
        build(prediction="flow", times="beta")


def test_uniform_noise_and_pure_noise():
    mixed, _ = build(prediction="linear_mix", distribution="uniform")
    draw = mixed.draw(torch.zeros(256, 1, 4, 4), rng.generator("cpu", 8))
    assert 0 <= float(draw.noise.min()) < 0.01 < 0.99 < float(draw.noise.max()) <= 1
    assert float(draw.noise.mean()) == pytest.approx(0.5, abs=0.01)
    objective, scheduler = build(prediction="pure_noise")
    assert scheduler.config.prediction_type == "sample"
    draw = objective.draw(X0, rng.generator("cpu", 9))
    seen = {}
    objective.loss(lambda x, t, labels: seen.update(x=x) or X0, X0, None, draw)
    assert torch.equal(seen["x"], draw.noise)  # nothing of the picture goes in
