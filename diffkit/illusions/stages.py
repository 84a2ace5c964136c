"""The larger stages of an illusion: DeepFloyd IF's stage II, and the x4 upscaler, both for all views at once.

Holds how a picture of one stage becomes the condition of the next; the views and splits themselves are drawn by
`illusion.py`, latents that have to agree as pictures by `latents.py`, windows are cut by `tiles.py`. Sources: Geng et
al., arXiv:2311.17919, section 4.1; noise on the small picture: Saharia et al., arXiv:2205.11487, section 2.3.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from diffkit.engine.sampling import generators
from diffkit.errors import UsageError
from diffkit.illusions.checks import about_latents, check_sizes, space_of
from diffkit.illusions.drawing import Illusion, draw_from, usual, working
from diffkit.illusions.tiles import Windowed
from diffkit.jobs.edit import OnStep
from diffkit.jobs.sample import Settings

LOG = logging.getLogger("diffkit.tasks")

NOISE_LEVEL = 50
TILE = 256  # the x4 upscaler takes 256 px whole, as it is usually run
_GUIDANCE = 9.0  # of the x4 upscaler, as its authors use it


def refine(
    model: Any,
    illusion: Illusion,
    images: Tensor,
    seeds: Sequence[int],
    settings: Settings | None = None,
    *,
    noise_level: int = NOISE_LEVEL,
    on_step: OnStep | None = None,
) -> Tensor:
    """Draw pictures of stage I anew at stage II's size, in all views at once.

    The small picture that the network sees beside its sample turns with every view, and the noise on it with it. A
    learned variance is averaged over the views; x0 is thresholded as the model's scheduler says.

    Args:
        model: Stage II of DeepFloyd IF.
        illusion: What the pictures show.
        images: (B, 3, h, w) in [-1, 1], as stage I gave them.
        seeds: One per picture; those of stage I will do.
        settings: How, as for stage I.
        noise_level: Noise on the small picture, in timesteps.
        on_step: Called after each step.

    Returns:
        Pictures (B, 3, H, W) fp32 on the CPU, about [-1, 1]; no safety checker has judged them.

    Raises:
        UsageError: The model is no stage II, a view cannot act at its size, or there is not one picture per seed.
        NumericalError: The result is not finite.

    Source: Geng et al., arXiv:2311.17919, section 4.1.
    """
    if getattr(model, "stage", None) != 2:
        raise UsageError(f"{model.id} is no stage II of DeepFloyd IF", "Give for example DeepFloyd/IF-II-M-v1.0.")
    _check_count(images, seeds)
    check_sizes(illusion, space_of(model))
    settings, random = usual(model, settings or Settings()), generators(seeds)
    noise = model.noise(random)
    extra = model.upscale_cond(images, random, noise_level)
    return draw_from(model, illusion, noise, random, settings, extra, on_step)


def enlarge(
    upscaler: Any,
    illusion: Illusion,
    images: Tensor,
    seeds: Sequence[int],
    settings: Settings | None = None,
    *,
    mode: Literal["multiview", "first"] = "multiview",
    noise_level: int = 0,
    tile: int = TILE,
    on_step: OnStep | None = None,
) -> Tensor:
    """Draw pictures four times larger by a latent upscaler: 1024 px of stage II's 256.

    "multiview" keeps every view its prompt. Flips and quarter turns act on the latents, all of which are one sample;
    that is approximate, as the VAE commutes with them only nearly. For other views, and splits of colours, every view
    has a latent and a turned small picture of its own, from the same noise, turned; the estimates are brought together
    as pictures at every step (`latents.synced`). That is approximate, too: what the views do not agree on is averaged,
    and the VAE is not linear. It costs one decoding and two encodings per view and step.

    "first" is for comparison: the picture as the first prompt alone would have it. Both see the same small picture,
    which keeps the illusion at low frequencies; they differ in the details.

    Args:
        upscaler: The x4 upscaler of Stable Diffusion.
        illusion: What the pictures show.
        images: (B, 3, h, w) in [-1, 1], h and w multiples of 8.
        seeds: One per picture.
        settings: How; guidance 9 when left out.
        mode: Whether all prompts are heard, or only the first.
        noise_level: Noise on the small picture, in timesteps; none keeps most of it.
        tile: Side of the windows that the network and the VAE work in, in pixels of `images`; a multiple of 8. Less
            takes less memory; what is no larger than a window is drawn whole.
        on_step: Called after each step; with a latent for each view, its sample is that of the first.

    Returns:
        Pictures (B, 3, 4h, 4w) fp32 on the CPU, about [-1, 1]; no safety checker has judged them.

    Raises:
        UsageError: The model is no upscaler, an unknown mode, a size that it or a view cannot take, or not one picture
            per seed.
        NumericalError: The result is not finite.

    Source: bringing the views together: Kim et al., arXiv:2403.14370; windows: Bar-Tal et al., arXiv:2302.08113.
    """
    if mode not in ("multiview", "first"):
        raise UsageError(f"--mode {mode!r} is not one of multiview, first")
    height, width = _check_upscaler(upscaler, images, seeds)
    model = Windowed(upscaler.at(height, width), tile)
    if mode == "first":
        illusion = Illusion((illusion.labels()[0],))
    check_sizes(illusion, space_of(model))
    for view in illusion.views:  # the small picture is seen through it, too
        getattr(view, "check", lambda size: None)(height)
    settings = usual(model, settings or Settings())
    if settings.guidance is None:
        settings = replace(settings, guidance=_GUIDANCE)
    for line in about_latents(illusion, space_of(model)):
        LOG.info("%s: %s", model.id, line)
    random = generators(seeds)
    noise = model.noise(random)
    extra = model.upscale_cond(images, random, noise_level)
    several = working(model, illusion)
    if getattr(several, "instances", 0):
        noise = torch.cat([view.apply(noise) for view in illusion.views], dim=1)
    return draw_from(several, illusion, noise, random, settings, extra, on_step)


def _check_upscaler(upscaler: Any, images: Tensor, seeds: Sequence[int]) -> tuple[int, int]:
    if getattr(upscaler, "kind", None) != "upscale":
        raise UsageError(
            f"{upscaler.id} is no latent upscaler", "Give for example stabilityai/stable-diffusion-x4-upscaler."
        )
    _check_count(images, seeds)
    height, width = images.shape[-2:]
    if height % 8 or width % 8:
        raise UsageError(f"pictures of {width}x{height} cannot be enlarged", "Sides have to be multiples of 8.")
    return height, width


def _check_count(images: Tensor, seeds: Sequence[int]) -> None:
    if len(images) != len(seeds):
        raise UsageError(f"{len(images)} pictures for {len(seeds)} seeds", "Give one seed per picture.")
