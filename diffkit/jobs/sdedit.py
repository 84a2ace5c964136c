"""SDEdit: noise an image up to a strength and denoise it again. Source: Meng et al., arXiv:2108.01073."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from diffkit.engine.constraints import composite, keep_known, shrink_mask
from diffkit.engine.samplers import canonical, default_sampler, is_flow, zero_terminal_snr
from diffkit.engine.sampling import denoise, generators, sdedit_start
from diffkit.jobs.edit import Edit, OnStep, label_list, pictures_of, walked
from diffkit.jobs.sample import Settings, conditioned, finished, numbers, prepare


def sdedit(
    model: Any,
    image: Tensor,
    seeds: Sequence[int],
    labels: Sequence[str | None] | None = None,
    settings: Settings | None = None,
    *,
    strength: float = 0.8,
    mask: Tensor | None = None,
    on_step: OnStep | None = None,
) -> Edit:
    """Draw variations of an image, one per seed.

    Args:
        model: A loaded model.
        image: (1, C, H, W) in [-1, 1], of the model's size.
        seeds: One per picture.
        labels: One class or prompt per picture.
        settings: How.
        strength: In (0, 1]: 1 is pure noise, which does not know the image.
        mask: (1, 1, H, W) in [0, 1]: white may change, black is kept.
        on_step: Called after each step.

    Raises:
        UsageError: What does not fit the model.
    """
    settings, random = settings or Settings(), generators(seeds)
    net, cond = conditioned(model, label_list(labels, len(seeds)), settings)
    scheduler = scheduler_of(model, settings, strength)
    x0 = model.codec.encode(image).expand(len(seeds), -1, -1, -1)
    x, start, _ = sdedit_start(scheduler, x0, model.noise(random), strength)
    hold = None if mask is None else keep_known(scheduler, x0, in_space(model, mask, x0), random)
    steps = denoise(
        net, x, scheduler, cond, start=start, constrain=hold, generators=random, eta=settings.eta,
        stop_noise_after=settings.stop_noise_after,
    )  # fmt: skip
    x = walked(steps, len(seeds), on_step)
    images = finished(model, x)
    if mask is not None:
        images = composite(image.cpu(), images, mask.cpu())
    visited = numbers(scheduler.timesteps)[start:]
    return Edit(pictures_of(images), visited, len(visited))


def scheduler_of(model: Any, settings: Settings, strength: float) -> Any:
    """Make the scheduler of an edit: one that ends as near to the image as the levels go.

    Below strength 1 the grid need not start at T, so it is laid down to the first level ("leading") where nothing else
    is asked for; and Stable Diffusion's DDIM, whose own last step stops at that level's noise, goes on to the image. So
    a small strength is a small change.
    """
    if strength == 1.0 or is_flow(model.scheduler):
        return prepare(model.scheduler, settings)
    options: dict[str, Any] = {}
    if canonical(settings.scheduler or default_sampler(model.scheduler)) == "ddim":
        options["set_alpha_to_one"] = True
    free = settings.spacing is None and settings.timesteps is None and not zero_terminal_snr(model.scheduler)
    scheduler = prepare(model.scheduler, settings, **options)
    if not free or len(scheduler.timesteps) == 1 or "timestep_spacing" not in scheduler.config:
        return scheduler
    return prepare(model.scheduler, replace(settings, spacing="leading"), **options)


def in_space(model: Any, mask: Tensor, x0: Tensor) -> Tensor:
    """Return a picture's mask in the space the diffusion runs in: smaller for latents, padded where pictures are."""
    if x0.shape[-1] >= mask.shape[-1]:
        padded = model.codec.encode(mask)[:, :1]
        return padded.clamp(0.0, 1.0)
    return shrink_mask(mask, (x0.shape[-2], x0.shape[-1]))


def visits(model: Any, settings: Settings, strength: float) -> list[float]:
    """Return the timesteps of one batch, one per network call."""
    scheduler = scheduler_of(model, settings, strength)
    nothing = torch.zeros(1, 1, 1, 1)
    _, start, _ = sdedit_start(scheduler, nothing, nothing, strength)
    return numbers(scheduler.timesteps)[start:]
