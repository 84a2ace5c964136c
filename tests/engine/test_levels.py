from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from diffkit.engine.levels import level, level_after, network_level, out_of, unstep, x0_of
from diffkit.engine.sampler_names import SAMPLERS
from diffkit.engine.samplers import make_sampler
from diffkit.engine.sampling import denoise, fresh_noise, generators, pure_noise, sdedit_start, set_grid
from diffkit.errors import UsageError
from diffkit.types import Cond, Prediction

DIFFUSION = [name for name, row in SAMPLERS.items() if not row.flow]
X0 = torch.linspace(-0.9, 0.9, 64).reshape(1, 1, 8, 8)
NOISE = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(5))


def base_of(kind: str):
    if kind == "flow":
        return FlowMatchEulerDiscreteScheduler()
    return DDPMScheduler(prediction_type=kind, timestep_spacing="trailing")


def truth(kind: str, signal, noise, x0: Tensor, eps: Tensor) -> Tensor:
    return {"epsilon": eps, "sample": x0, "v_prediction": signal * eps - noise * x0, "flow": eps - x0}[kind]


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction", "flow"])
@pytest.mark.parametrize("t", [torch.tensor(400), torch.tensor([900, 10, 1])])
def test_the_one_conversion_and_back(kind: str, t: Tensor) -> None:
    scheduler = base_of(kind)
    x0, eps = X0.expand(max(1, t.numel()), -1, -1, -1), NOISE.expand(max(1, t.numel()), -1, -1, -1)
    signal, noise = network_level(scheduler, t)
    x = signal * x0 + noise * eps
    out = truth(kind, signal, noise, x0, eps)
    torch.testing.assert_close(x0_of(out, x, t, scheduler), x0, rtol=0, atol=3e-4)
    torch.testing.assert_close(out_of(x0, x, t, scheduler), out.expand_as(x), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", DIFFUSION)
def test_the_level_of_every_scheduler_at_every_point_of_its_grid(name: str) -> None:
    base = base_of("epsilon")
    abar = base.alphas_cumprod
    scheduler = make_sampler(name, base)
    set_grid(scheduler, 10)
    for t in scheduler.timesteps:
        low, high = float(abar[int(t)].sqrt()), float(abar[-int(-t // 1)].sqrt())
        signal, noise = network_level(scheduler, t)
        assert min(low, high) - 1e-5 <= signal <= max(low, high) + 1e-5
        assert signal**2 + noise**2 == pytest.approx(1.0, abs=1e-5)
        a, s = level(scheduler, t)
        assert (a, s) == (signal, noise) or (a, s * signal) == (1.0, pytest.approx(noise, rel=1e-5))
    assert level_after(scheduler, None) == (1.0, 0.0)


def test_an_epsilon_without_signal_says_nothing() -> None:
    scheduler = DDPMScheduler(rescale_betas_zero_snr=True)
    with pytest.raises(UsageError, match="no signal"):
        x0_of(NOISE, NOISE, torch.tensor(999), scheduler)


def test_going_up_is_the_forward_process() -> None:
    scheduler = base_of("epsilon")
    low, high = level(scheduler, 200), level(scheduler, 700)
    torch.testing.assert_close(
        unstep(X0, (1.0, 0.0), high, NOISE), scheduler.add_noise(X0, NOISE, torch.tensor([700])), rtol=0, atol=1e-6
    )
    other = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(6))
    x = unstep(low[0] * X0 + low[1] * NOISE, low, high, other)
    abar = scheduler.alphas_cumprod
    ratio = abar[700] / abar[200]
    expected = ratio.sqrt() * (low[0] * X0 + low[1] * NOISE) + (1 - ratio).sqrt() * other
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-6)
    # sigma space and flows: the two noises add up to the level's
    for a, b in (((1.0, 2.0), (1.0, 5.0)), ((0.8, 0.2), (0.3, 0.7)), ((0.8, 0.2), (0.0, 1.0))):
        kept, added = unstep(torch.ones(1), a, b, torch.zeros(1)), unstep(torch.zeros(1), a, b, torch.ones(1))
        assert float(kept) * a[0] == pytest.approx(b[0])
        assert (float(kept) * a[1]) ** 2 + float(added) ** 2 == pytest.approx(b[1] ** 2)


# --- where image to image starts


@pytest.mark.parametrize(
    ("steps", "strength", "taken"), [(50, 0.58, 29), (20, 0.04, 1), (50, 0.001, 1), (30, 1.0, 30), (50, 0.55, 28)]
)
def test_strength_is_rounded_and_never_nothing(steps: int, strength: float, taken: int) -> None:
    scheduler = make_sampler("ddim", base_of("epsilon"))
    set_grid(scheduler, steps)
    _, start, got = sdedit_start(scheduler, X0, NOISE, strength)
    assert (got, start) == (taken, steps - taken)


def test_strength_one_is_pure_noise_whatever_the_image() -> None:
    for name, row in SAMPLERS.items():
        scheduler = make_sampler(name, base_of("flow" if row.flow else "epsilon"))
        set_grid(scheduler, 10)
        x, start, _ = sdedit_start(scheduler, X0, NOISE, 1.0)
        assert start == 0
        assert torch.equal(x, pure_noise(scheduler, NOISE))


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.01])
def test_impossible_strength(strength: float) -> None:
    with pytest.raises(UsageError, match="`strength`"):
        sdedit_start(make_sampler("ddim", base_of("epsilon")), X0, NOISE, strength)


@pytest.mark.parametrize("strength", [0.3, 0.75])
@pytest.mark.parametrize("name", list(SAMPLERS))
def test_every_sampler_starts_in_the_middle_at_the_right_level(name: str, strength: float) -> None:
    """The network checks that x - signal * x0 has the noise of t; then it names the only image there is."""
    kind = "flow" if SAMPLERS[name].flow else "epsilon"
    scheduler = make_sampler(name, base_of(kind))
    set_grid(scheduler, 12)
    if name in ("pndm", "lms"):
        with pytest.raises(UsageError, match="in the middle"):
            sdedit_start(scheduler, X0, NOISE, strength)
        return
    random = generators([1])
    x, start, taken = sdedit_start(scheduler, X0, fresh_noise(X0, random), strength)
    calls = []

    def net(x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        signal, noise = network_level(scheduler, t)
        eps = (x - signal * X0) / noise
        if not calls:
            assert float(eps.std()) == pytest.approx(1.0, abs=0.25)
        calls.append(float(t))
        return Prediction(truth(kind, signal, noise, X0, eps))

    for step in denoise(net, x, scheduler, start=start, generators=random):
        x = step.x
    assert taken == max(1, round(12 * strength))
    assert len(calls) == len(scheduler.timesteps) - start
    # DEIS ends at the first level of training, sigma 0.01, and not at 0.
    torch.testing.assert_close(x, X0, rtol=0, atol=0.04 if name == "deis" else 0.03)
