"""The variational bound against torch's own distributions."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from diffkit.engine.schedules import make_noise_scheduler
from diffkit.recipes.schema import NoiseSpec
from diffkit.training import rng
from diffkit.training.bound import Bound, discrete_log_likelihood, gaussian_kl
from diffkit.training.objectives import make_objective


def setting(**fields):
    noise = NoiseSpec(**{"variance": "learned", "schedule": "cosine", **fields})
    scheduler = make_noise_scheduler(noise)
    return make_objective(noise, scheduler, "cpu"), scheduler


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_divergence_is_torchs():
    a, b = drawn(50, seed=1), drawn(50, seed=2)
    log_p, log_q = drawn(50, seed=3), drawn(50, seed=4)
    expected = kl_divergence(Normal(a, (log_p / 2).exp()), Normal(b, (log_q / 2).exp()))
    torch.testing.assert_close(gaussian_kl(a - b, log_p, log_q), expected)


def test_the_bins_of_the_last_step_hold_all_of_the_probability():
    pixels = (torch.arange(256) / 127.5 - 1)[None]
    for mean, deviation in ((0.0, 0.05), (0.98, 0.02), (-1.2, 0.3)):
        log = discrete_log_likelihood(pixels, torch.full((1, 1), mean), torch.full((1, 1), 2 * math.log(deviation)))
        assert float(log.exp().sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("t", [1, 10, 400, 999])
def test_a_term_is_the_divergence_of_the_posterior(t):
    """Both Gaussians written out from eq. 10-12 of arXiv:2102.09672, for images and an estimate that misses them."""
    _, scheduler = setting()
    abar, beta = scheduler.alphas_cumprod.double(), scheduler.betas.double()
    x0, estimate, x = drawn(2, 3, 4, 4).double(), drawn(2, 3, 4, 4, seed=1).double(), drawn(2, 3, 4, 4, seed=2).double()
    v = drawn(2, 3, 4, 4, seed=3).double().clamp(-1, 1)
    tilde = beta[t] * (1 - abar[t - 1]) / (1 - abar[t])

    def mean(clean):
        share = abar[t - 1].sqrt() * beta[t] / (1 - abar[t])
        return share * clean + (1 - beta[t]).sqrt() * (1 - abar[t - 1]) / (1 - abar[t]) * x

    log_variance = (v + 1) / 2 * beta[t].log() + (1 - v) / 2 * tilde.log()
    exact = kl_divergence(Normal(mean(x0), tilde.sqrt()), Normal(mean(estimate), (log_variance / 2).exp()))
    expected = exact.flatten(1).mean(1) / math.log(2)
    got = Bound(scheduler.betas, "cpu")(x0.float(), estimate.float(), v.float(), torch.full((2,), t))
    torch.testing.assert_close(got.double(), expected, rtol=2e-3, atol=1e-6)


def test_the_best_variance_of_a_right_estimate_is_the_posteriors():
    _, scheduler = setting()
    bound, x0, t = Bound(scheduler.betas, "cpu"), drawn(1, 3, 4, 4).clamp(-1, 1), torch.tensor([300])
    at = [float(bound(x0, x0, torch.full_like(x0, v), t)) for v in (-1.0, -0.5, 0.0, 1.0)]
    assert at[0] == pytest.approx(0, abs=1e-6)
    assert at == sorted(at)


def test_a_variance_out_of_range_is_drawn_back_and_not_out():
    """An estimate that misses by far asks for more than beta; v = 1 is the most it gets."""
    _, scheduler = setting()
    bound, x0, t = Bound(scheduler.betas, "cpu"), torch.zeros(1, 3, 4, 4), torch.tensor([2])
    slopes = []
    for start in (0.5, 1.5, -1.5):
        v = torch.full_like(x0, start, requires_grad=True)
        bound(x0, x0 + 0.5, v, t).sum().backward()
        slopes.append(float(v.grad.sum()))
    assert slopes[0] < 0 < slopes[1]
    assert slopes[2] < 0


@pytest.mark.parametrize("name", ["epsilon", "sample", "v_prediction"])
def test_the_bound_trains_the_variance_and_leaves_the_mean_alone(name):
    x0 = drawn(4, 3, 4, 4).clamp(-1, 1)
    gradients = {}
    for weight in (0.0, 1.0):
        objective, _ = setting(prediction=name, vlb_weight=weight)
        draw = objective.draw(x0, rng.generator("cpu", 0))
        out = drawn(4, 6, 4, 4, seed=5).mul(0.1).requires_grad_()
        objective.loss(lambda x, t, labels, out=out: out, x0, None, draw).sum().backward()
        gradients[weight] = out.grad.chunk(2, dim=1)
    assert torch.equal(gradients[0.0][0], gradients[1.0][0])
    assert gradients[0.0][0].abs().min() > 0
    assert float(gradients[0.0][1].abs().max()) == 0
    assert gradients[1.0][1].abs().min() > 0


@pytest.mark.parametrize("name", ["epsilon", "sample", "v_prediction"])
def test_the_exact_answer_has_the_bound_of_the_posterior_alone(name):
    """With the right mean and v = -1 nothing is left of the terms t > 0, whichever way the mean is predicted."""
    objective, scheduler = setting(prediction=name, vlb_weight=1.0)
    x0 = drawn(3, 3, 4, 4).clamp(-1, 1)
    draw = objective.draw(x0, rng.generator("cpu", 0))
    draw.level.copy_(torch.tensor([5, 400, 900]))
    exact = {"epsilon": draw.noise, "sample": x0, "v_prediction": scheduler.get_velocity(x0, draw.noise, draw.level)}
    packed = torch.cat([exact[name], -torch.ones_like(x0)], dim=1)
    loss = objective.loss(lambda x, t, labels: packed, x0, None, draw)
    torch.testing.assert_close(loss, torch.zeros(3), atol=1e-5, rtol=0)


def test_the_usual_weight_is_a_thousandth_of_the_chain():
    assert setting(timesteps=400)[0].vlb_weight == pytest.approx(0.4)
    assert setting(timesteps=400, vlb_weight=0.2)[0].vlb_weight == 0.2


def test_biased_timesteps_fall_into_their_range_as_often_as_asked():
    x0 = torch.zeros(20_000, 1, 1, 1)
    plain, biased = (setting(variance="fixed", timestep_bias=b)[0] for b in (None, "200-900:0.5"))
    levels = biased.draw(x0, rng.generator("cpu", 0)).level
    inside = ((levels >= 200) & (levels < 900)).float().mean()
    assert float(inside) == pytest.approx(0.5 + 0.5 * 0.7, abs=0.01)
    assert (int(levels.min()), int(levels.max())) == (0, 999)
    # Without a bias, the numbers are those of before there was one.
    same = plain.draw(x0[:4], rng.generator("cpu", 0)).level
    assert torch.equal(same, torch.randint(0, 1000, (4,), generator=rng.generator("cpu", 0)))
