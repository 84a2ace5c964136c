"""The larger stages of an illusion: DeepFloyd IF's stage II, and the x4 upscaler, both for all views at once.

Holds how a picture of one stage becomes the condition of the next; the views and splits themselves are drawn by
`drawing.py`, latents that have to agree as pictures by `latents.py`, windows are cut by `tiles.py`. Sources: Geng et
al., arXiv:2311.17919, section 4.1; noise on the small picture: Saharia et al., arXiv:2205.11487, section 2.3.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence

import torch
from torch import Tensor

from diffkit.engine.sampling import generators
from diffkit.engine.settings import Settings
from diffkit.errors import UsageError
from diffkit.illusions.checks import check_sizes, notes_on_latents
from diffkit.illusions.composition import Composition
from diffkit.illusions.drawing import Prompted, draw_steps, model_for
from diffkit.illusions.latents import Instances
from diffkit.illusions.tiles import Windowed
from diffkit.types import Model, Step

LOG = logging.getLogger("diffkit.illusions")

NOISE_LEVEL = 50
TILE = 256  # the x4 upscaler takes 256 px whole, as it is usually run

# From a stage's model and the settings of that stage to its guided network and its prompts.
Prompt = Callable[[Model, Settings], Prompted]


def refine(
    model: Model,
    composition: Composition,
    prompt: Prompt,
    images: Tensor,
    seeds: Sequence[int],
    settings: Settings | None = None,
    *,
    noise_level: int = NOISE_LEVEL,
) -> Generator[Step, None, Tensor]:
    """Draw pictures of stage I anew at stage II's size, in all views at once: steps, and in the end the pictures.

    Images are (B, 3, h, w) in [-1, 1], as stage I gave them; its seeds will do. The noise level is in timesteps.

    The small picture that the network sees beside its sample turns with every view, and the noise on it with it. A
    learned variance is averaged over the views; x0 is thresholded as the model's scheduler says.

    Returns:
        Pictures (B, 3, H, W) fp32 on the CPU, about [-1, 1]; no safety checker has judged them.

    Raises:
        UsageError: The model is no stage II, a view cannot act at its size, or there is not one picture per seed.
        NumericalError: The result is not finite.

    Source: Geng et al., arXiv:2311.17919, section 4.1.
    """
    if model.info.source != "small" or model.info.latent:
        raise UsageError(f"{model.info.id} is no stage II of DeepFloyd IF", "Give for example DeepFloyd/IF-II-M-v1.0.")
    _check_count(images, seeds)
    check_sizes(composition, model.info)
    settings, random = settings or Settings(), generators(seeds)
    noise = model.noise(random)
    extra = model.image_cond(images, random, noise_level=noise_level)
    return (yield from draw_steps(model, composition, prompt(model, settings), settings, random, noise, extra))


def enlarge(
    upscaler: Model,
    composition: Composition,
    prompt: Prompt,
    images: Tensor,
    seeds: Sequence[int],
    settings: Settings | None = None,
    *,
    noise_level: int = 0,
    tile: int = TILE,
) -> Generator[Step, None, Tensor]:
    """Draw pictures four times larger by a latent upscaler, 1024 px of stage II's 256: steps, and then the pictures.

    Images are (B, 3, h, w) in [-1, 1], h and w multiples of 8. The noise level is in timesteps; none keeps most of
    the small picture. A window of `tile` pixels of it, a multiple of 8, is drawn at a time: less takes less memory.

    Flips and quarter turns act on the latents, all of which are one sample; that is approximate, as the VAE commutes
    with them only nearly. For other views, and splits of colours, every view has a latent and a turned small picture of
    its own, from the same noise, turned; the estimates are brought together as pictures at every step
    (`latents.synced`). That is approximate, too: what the views do not agree on is averaged, and the VAE is not linear.
    It costs one decoding and two encodings per view and step.

    Returns:
        Pictures (B, 3, 4h, 4w) fp32 on the CPU, about [-1, 1]; no safety checker has judged them.

    Raises:
        UsageError: The model is no upscaler, a size that it or a view cannot take, or not one picture per seed.
        NumericalError: The result is not finite.

    Source: bringing the views together: Kim et al., arXiv:2403.14370; windows: Bar-Tal et al., arXiv:2302.08113.
    """
    height, width = _check_upscaler(upscaler, images, seeds)
    model: Model = Windowed(upscaler.at(height, width), tile)
    check_sizes(composition, model.info)
    for view in composition.views:  # the small picture is seen through it, too
        view.check(height)
    settings = settings or Settings()
    for line in notes_on_latents(composition, model.info):
        LOG.info("%s: %s", model.info.id, line)
    random = generators(seeds)
    noise = model.noise(random)
    extra = model.image_cond(images, random, noise_level=noise_level)
    prompted = prompt(model, settings)
    several = model_for(model, composition)
    if isinstance(several, Instances):
        noise = torch.cat([view.apply(noise) for view in composition.views], dim=1)
    return (yield from draw_steps(several, composition, prompted, settings, random, noise, extra))


def _check_upscaler(upscaler: Model, images: Tensor, seeds: Sequence[int]) -> tuple[int, int]:
    if upscaler.info.source != "small" or not upscaler.info.latent:
        raise UsageError(
            f"{upscaler.info.id} is no latent upscaler", "Give for example stabilityai/stable-diffusion-x4-upscaler."
        )
    _check_count(images, seeds)
    height, width = images.shape[-2:]
    unit = upscaler.info.input_multiple
    if height % unit or width % unit:
        raise UsageError(f"pictures of {width}x{height} cannot be enlarged", f"Sides have to be multiples of {unit}.")
    return height, width


def _check_count(images: Tensor, seeds: Sequence[int]) -> None:
    if len(images) != len(seeds):
        raise UsageError(f"{len(images)} pictures for {len(seeds)} seeds", "Give one seed per picture.")
