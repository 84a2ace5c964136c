"""Adams' method for flows: PixNerd's own sampler step by step, the order of its error, and starts in the middle."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file
from tiny_pixnerd import numbers, toy
from torch import Tensor

from diffkit.engine.adams import FlowMatchAdamsScheduler
from diffkit.engine.sampling import denoise, sdedit_start
from diffkit.types import Cond, Prediction

RECORDED = load_file(Path(__file__).parents[1] / "fixtures" / "pixnerd.safetensors")
TOLD = torch.tensor([0.7, -0.4])


def guided(x: Tensor, t: Tensor, cond: Cond) -> Prediction:
    """The recorded velocity in diffusers' convention; at time 0 the authors' sampler does not guide."""
    time = (1 - t / 1000).expand(len(x))
    told, empty = toy(x, time, TOLD), toy(x, time, torch.zeros(2))
    return Prediction(-(empty + (4.0 if float(t) < 1000 else 1.0) * (told - empty)))


@pytest.mark.parametrize("by", ["steps", "sigmas"])
def test_it_is_the_authors_sampler(by):
    scheduler = FlowMatchAdamsScheduler(shift=3.0)
    if by == "steps":
        scheduler.set_timesteps(25)
    else:
        scheduler.set_timesteps(sigmas=[1 - k / 25 for k in range(25)])
    times = 1 - scheduler.sigmas
    torch.testing.assert_close(times, RECORDED["adams.times"], rtol=0, atol=1e-6)
    x = numbers("toy", 2, 3, 4, 4)
    for step in denoise(guided, x, scheduler):
        x = step.x
    print("largest difference", float((x - RECORDED["adams"]).abs().max()))
    torch.testing.assert_close(x, RECORDED["adams"], rtol=0, atol=5e-6)


def test_the_weights_of_every_step():
    """Of the velocities before and here; the authors' are recorded as (before, here)."""
    scheduler = FlowMatchAdamsScheduler(shift=3.0)
    scheduler.set_timesteps(25)
    for place in range(25):
        weights = []
        for before, here in ((1.0, 0.0), (0.0, 1.0)):
            one = FlowMatchAdamsScheduler(shift=3.0)
            one.set_timesteps(25)
            x = torch.zeros(1, 1, 1, 1)
            if place:
                one.step(torch.full_like(x, before), one.timesteps[place - 1], x)
            moved = one.step(torch.full_like(x, here), one.timesteps[place], x).prev_sample
            weights.append(float(moved / (one.sigmas[place + 1] - one.sigmas[place])))
        torch.testing.assert_close(torch.tensor(weights), RECORDED["adams.weights"][place], rtol=0, atol=2e-5)


def error(cls: type, steps: int, shift: float = 3.0) -> float:
    """dx / dsigma = cos(3 sigma) x from sigma 1 to 0: x(0) = x(1) exp(-sin(3) / 3)."""
    scheduler = cls(shift=shift)
    scheduler.set_timesteps(sigmas=[1 - k / steps for k in range(steps)])
    x = torch.ones(1, 1, 1, 1, dtype=torch.float32)
    for t in scheduler.timesteps:
        x = scheduler.step(torch.cos(3 * t / 1000) * x, t, x).prev_sample
    return abs(float(x) - float(torch.exp(-torch.sin(torch.tensor(3.0)) / 3)))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_half_the_step_is_a_quarter_of_the_error(shift):
    errors = [error(FlowMatchAdamsScheduler, steps, shift) for steps in (10, 20, 40)]
    print("errors", errors)
    for coarse, fine in pairwise(errors):
        assert 3.2 < coarse / fine < 5
    assert errors[-1] < error(FlowMatchEulerDiscreteScheduler, 40, shift) / 5


def test_a_start_in_the_middle_is_eulers():
    scheduler, euler = FlowMatchAdamsScheduler(shift=3.0), FlowMatchEulerDiscreteScheduler(shift=3.0)
    for one in (scheduler, euler):
        one.set_timesteps(sigmas=[1 - k / 8 for k in range(8)])
    x0, noise = numbers("x0", 2, 3, 4, 4), numbers("noise", 2, 3, 4, 4)
    x, start, taken = sdedit_start(scheduler, x0, noise, 0.5)
    assert (start, taken) == (4, 4)
    ours = [step.x for step in denoise(guided, x, scheduler, start=start)]
    theirs = [step.x for step in denoise(guided, x, euler, start=start)]
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=1e-6)
    assert (ours[1] - theirs[1]).abs().max() > 1e-3


def test_a_path_that_goes_on_elsewhere_forgets():
    """Set anew, or copied before it has stepped, it begins with a step of Euler's again."""
    scheduler = FlowMatchAdamsScheduler()
    scheduler.set_timesteps(4)
    fresh = copy.copy(scheduler)
    x, v = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    first = scheduler.step(v, scheduler.timesteps[0], x).prev_sample
    second = scheduler.step(3 * v, scheduler.timesteps[1], x).prev_sample
    torch.testing.assert_close(second, 4 * first)  # 3 + (3 - 1) / 2
    torch.testing.assert_close(fresh.step(3 * v, fresh.timesteps[1], x).prev_sample, 3 * first)
    scheduler.set_timesteps(4)
    torch.testing.assert_close(scheduler.step(3 * v, scheduler.timesteps[1], x).prev_sample, 3 * first)
