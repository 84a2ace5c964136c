"""Walks between two pictures on the sphere of DDIM's noise. Source: Song et al., arXiv:2010.02502, section 5.3."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffkit.engine.sampling import denoise, generators, pure_noise
from diffkit.errors import UsageError
from diffkit.jobs.edit import Edit, OnStep, pictures_of
from diffkit.jobs.invert import REFINE, exact_sampler, invert_steps, top_of
from diffkit.jobs.sample import Settings, conditioned, finished, numbers, prepare
from diffkit.pictures.files import grid


def slerp(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """Go from a (weight 0) to b (weight 1) at constant angular speed; both ends are exact.

    Args:
        a: Any shape, seen as one vector.
        b: The same shape.
        weight: In [0, 1].

    Source: Shoemake, 1985, "Animating rotation with quaternion curves".
    """
    if weight in (0.0, 1.0):
        return b if weight else a
    cosine = (a / a.norm() * (b / b.norm())).sum().clamp(-1.0, 1.0)
    angle = torch.arccos(cosine)
    if float(torch.sin(angle)) < 1e-4:  # parallel, or opposite: there is no single arc
        return torch.lerp(a, b, weight)
    return (torch.sin((1 - weight) * angle) * a + torch.sin(weight * angle) * b) / torch.sin(angle)


def interpolate(
    model: Any,
    ends: tuple[int, int] | tuple[Tensor, Tensor],
    label: str | None = None,
    settings: Settings | None = None,
    *,
    frames: int = 9,
    refine: int = REFINE,
    on_step: OnStep | None = None,
) -> Edit:
    """Draw the way from one picture to another.

    Args:
        model: A loaded model.
        ends: Two seeds, or two images (1, C, H, W) in [-1, 1] of the model's size, which are inverted first.
        label: One class or prompt for the whole way.
        settings: How; without noise.
        frames: Pictures, both ends among them.
        refine: Of the inversion.
        on_step: Called after each step.

    Raises:
        UsageError: Fewer than two frames, a sampler that adds noise, or what does not fit the model.
    """
    settings = settings or Settings()
    if frames < 2:
        raise UsageError(f"--frames {frames}: there are two ends")
    images = [end for end in ends if isinstance(end, Tensor)]
    if images:
        plain = Settings(max_batch=settings.max_batch, guidance=1.0 if label else None)
        net, cond = conditioned(model, [label] * 2, plain)
        scheduler = exact_sampler(model.scheduler, settings)
        x0 = torch.cat([model.codec.encode(image) for image in images])
        a, b = invert_steps(net, x0, scheduler, cond, refine=refine).split(1)
        settings = plain
    else:
        if settings.eta or settings.scheduler not in (None, "ddim", "flow_euler"):
            raise UsageError("interpolation goes with --scheduler ddim and --eta 0 only", "Leave both out.")
        a, b = (model.noise(generators([int(seed)])) for seed in ends)
        scheduler = prepare(model.scheduler, settings)
    net, cond = conditioned(model, [label] * frames, settings)
    way = torch.cat([slerp(a, b, k / (frames - 1)) for k in range(frames)])
    x = way if images else pure_noise(scheduler, way)
    start = top_of(scheduler) if images else 0
    for step in denoise(net, x, scheduler, cond, start=start):
        x = step.x
        if on_step is not None:
            on_step(step, range(frames))
    pictures = pictures_of(finished(model, x))
    there = numbers(scheduler.timesteps)[start:]
    visited = [t for t in reversed(there) for _ in range(refine + 1)] * bool(images) + there
    return Edit([grid(pictures, frames)], visited, len(visited), frames=pictures + pictures[-2:0:-1])
