"""Stochastic DDIM steps of the larger variance, against the Keras example's own words: signal and noise rates."""

from __future__ import annotations

import torch
from diffusers import DDPMScheduler

from diffkit.engine.samplers import make_sampler, name_of
from diffkit.engine.sampling import denoise, generators, pure_noise, set_grid
from diffkit.types import Prediction

BASE = DDPMScheduler(num_train_timesteps=100, clip_sample=False, timestep_spacing="trailing")


def net(x: torch.Tensor, t: torch.Tensor, cond: object) -> Prediction:
    return Prediction(0.6 * x + 0.1)


def test_every_step_is_the_formula() -> None:
    sampler = make_sampler("ddim_large", BASE)
    grid = [int(t) for t in set_grid(sampler, 5)]
    random, own = generators([3, 4]), generators([3, 4])
    start = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    steps = list(denoise(net, pure_noise(sampler, start), sampler, generators=random))
    x = start
    for k, t in enumerate(grid):
        abar = BASE.alphas_cumprod[t]
        after = BASE.alphas_cumprod[grid[k + 1]] if k + 1 < len(grid) else torch.tensor(1.0)
        signal, noise, next_signal, next_noise = abar**0.5, (1 - abar) ** 0.5, after**0.5, (1 - after) ** 0.5
        eps = net(x, t, None).out
        x0 = (x - noise * eps) / signal
        rate = (1 - (signal / next_signal) ** 2) ** 0.5 * next_noise / noise
        x = next_signal * x0 + (next_noise**2 - rate**2) ** 0.5 * eps
        fresh = torch.cat([torch.randn(1, 1, 4, 4, generator=g) for g in own])
        if k + 1 < len(grid):
            x = x + rate * noise / next_noise * fresh
        torch.testing.assert_close(steps[k].x, x, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(steps[-1].x, steps[-1].x0)  # it ends in the picture, without noise


def test_it_is_noisier_than_eta_1_and_known_by_its_name() -> None:
    large, small = make_sampler("ddim_large", BASE), make_sampler("ddim", BASE)
    assert (name_of(large), name_of(small)) == ("ddim_large", "ddim")
    x, out = torch.zeros(4000, 1, 1, 1), torch.zeros(4000, 1, 1, 1)
    spread = {}
    for name, sampler in (("large", large), ("small", small)):
        grid = set_grid(sampler, 10)
        random = torch.Generator().manual_seed(0)
        spread[name] = float(sampler.step(out, int(grid[5]), x, eta=1.0, generator=random).prev_sample.std())
    now, after = (BASE.alphas_cumprod[int(t)] for t in grid[5:7])
    assert abs(spread["large"] / spread["small"] - float(((1 - now) / (1 - after)) ** 0.5)) < 1e-4
    assert spread["large"] > 1.05 * spread["small"]
