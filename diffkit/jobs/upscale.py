"""Larger pictures: DeepFloyd's stage II, and stage III by Stable Diffusion's x4 upscaler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from diffkit.engine.guidance import chunked
from diffkit.engine.sampling import denoise, generators, pure_noise
from diffkit.errors import UsageError
from diffkit.jobs.edit import Edit, OnStep, label_list, pictures_of, walked
from diffkit.jobs.sample import Settings, finished, guided, numbers, prepare
from diffkit.pictures.images import cut, to_tensor

# Guidance and noise level of each stage, as its authors use them.
_USUAL = {"deepfloyd": (4.0, 250), "stable_diffusion": (9.0, 20)}
_FACTOR = 4


def upscale(
    model: Any,
    image: Image.Image,
    seeds: Sequence[int],
    prompts: Sequence[str | None] | None = None,
    settings: Settings | None = None,
    *,
    noise_level: int | None = None,
    on_step: OnStep | None = None,
) -> Edit:
    """Draw an image four times larger.

    Args:
        model: Stage II of DeepFloyd IF, which takes a square and gives its own size; or the x4 upscaler, which takes
            any size.
        image: The picture; stage II sees a square cut of a quarter of its size.
        seeds: One per picture.
        prompts: One per picture; what is in the image.
        settings: How.
        noise_level: Noise added to the image, in timesteps; the stage's own when left out.
        on_step: Called after each step.

    Raises:
        UsageError: The model is no upscaler.
    """
    settings, random = settings or Settings(), generators(seeds)
    if not hasattr(model, "upscale_cond"):
        raise UsageError(f"{model.id} is no upscaler", "Give stage II of DeepFloyd IF, or an x4 upscaler.")
    guidance, level = _USUAL[model.family]
    width, height = upscaled_from(model, image)
    if model.family == "stable_diffusion":
        model = model.at(height, width)
    small = to_tensor(cut(image, width, height), 3).expand(len(seeds), -1, -1, -1).to(model.device)
    scheduler = prepare(model.scheduler, settings)
    x = pure_noise(scheduler, model.noise(random))
    extra = model.upscale_cond(small, random, level if noise_level is None else noise_level)
    wanted = label_list(prompts, len(seeds))
    both = model.encode([*wanted, settings.negative or ""])
    net = chunked(model, settings.max_batch or model.memory.max_batch)
    scale = guidance if settings.guidance is None else settings.guidance
    cond = both.rows(0, len(seeds)).join(extra)
    assert not isinstance(scale, tuple)
    net = guided(net, both.rows(len(seeds), len(seeds) + 1), scale, model, settings)
    x = walked(denoise(net, x, scheduler, cond, generators=random, eta=settings.eta), len(seeds), on_step)
    visited = numbers(scheduler.timesteps)
    return Edit(pictures_of(finished(model, x)), visited, len(visited))


def upscaled_from(model: Any, image: Image.Image) -> tuple[int, int]:
    """Return the (width, height) at which the model takes the image in."""
    if model.family == "deepfloyd":
        return model.shape[2] // _FACTOR, model.shape[1] // _FACTOR
    return max(8, image.width // 8 * 8), max(8, image.height // 8 * 8)
