"""Inpainting: RePaint for pixel models, blending in latents, and Stable Diffusion's own 9-channel networks.

Known pixels are exact in the end. Source: Lugmayr et al., arXiv:2201.09865.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from diffkit.engine.constraints import composite, keep_known
from diffkit.engine.samplers import is_memoryless
from diffkit.engine.sampling import denoise, generators, pure_noise, repaint_path
from diffkit.jobs.edit import Edit, OnStep, label_list, pictures_of, walked
from diffkit.jobs.sample import Settings, conditioned, finished, numbers, prepare, takes_prompts
from diffkit.jobs.sdedit import in_space

JUMP = 10


def resamplings(model: Any, settings: Settings, resample: int | None) -> int:
    """Return how often each stretch is walked: 10 for models without prompts, 1 with, unless it is said."""
    if resample is not None:
        return resample
    return 1 if takes_prompts(model) or not is_memoryless(prepare(model.scheduler, settings)) else 10


def inpaint(
    model: Any,
    image: Tensor,
    mask: Tensor,
    seeds: Sequence[int],
    labels: Sequence[str | None] | None = None,
    settings: Settings | None = None,
    *,
    jump: int = JUMP,
    resample: int | None = None,
    on_step: OnStep | None = None,
) -> Edit:
    """Paint the white of a mask anew, one picture per seed.

    Args:
        model: A loaded model.
        image: (1, C, H, W) in [-1, 1], of the model's size.
        mask: (1, 1, H, W) in [0, 1]: white is repainted, black exactly kept.
        seeds: One per picture.
        labels: One class or prompt per picture.
        settings: How.
        jump: Steps that are taken again.
        resample: How often; 1 for none. See `resamplings`.
        on_step: Called after each step.

    Raises:
        UsageError: What does not fit the model.
    """
    settings, random = settings or Settings(), generators(seeds)
    net, cond = conditioned(model, label_list(labels, len(seeds)), settings)
    scheduler = prepare(model.scheduler, settings)
    path = repaint_path(len(scheduler.timesteps), jump, resamplings(model, settings, resample))
    x = pure_noise(scheduler, model.noise(random))
    if getattr(model, "kind", "") == "inpaint":  # the network sees the mask and the rest of the picture
        cond = cond.join(model.inpaint_cond(image, mask).expand(len(seeds)))
    x0 = model.codec.encode(image).expand(len(seeds), -1, -1, -1)
    hold = keep_known(scheduler, x0, in_space(model, mask, x0), random)
    steps = denoise(
        net, x, scheduler, cond, path=path, constrain=hold, generators=random, eta=settings.eta,
        stop_noise_after=settings.stop_noise_after,
    )  # fmt: skip
    x = walked(steps, len(seeds), on_step)
    images = composite(image.cpu(), finished(model, x), mask.cpu())
    grid = numbers(scheduler.timesteps)
    return Edit(pictures_of(images), [grid[k] for k in path], len(path))


def visits(model: Any, settings: Settings, jump: int, resample: int | None) -> list[float]:
    """Return the timesteps of one batch, one per network call."""
    grid = numbers(prepare(model.scheduler, settings).timesteps)
    return [grid[k] for k in repaint_path(len(grid), jump, resamplings(model, settings, resample))]
