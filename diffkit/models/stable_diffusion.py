"""Stable Diffusion 1.x and 2.x: latent diffusion with 4-, 9-channel (inpainting) and 7-channel (x4 upscaling) UNets.

The family's codec is its VAE; epsilon and v-prediction are the scheduler's business. Source: Rombach et al.,
arXiv:2112.10752.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from diffkit.engine.sampling import draw_noise
from diffkit.models.configuration import (
    check_unused,
    field_of,
    load_noising,
    load_scheduler,
    read_network,
    read_record,
    read_size,
    whole_number,
    wrong,
)
from diffkit.models.latents import SCALING, LatentCodec, vae_config, vae_scaling
from diffkit.models.options import LoadOptions
from diffkit.models.repo import Repo
from diffkit.models.text_encodings import CLIP
from diffkit.models.text_model import TextUNet, noise_levels
from diffkit.models.vocabulary import tokens_of
from diffkit.types import Cond, ModelInfo

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

LOG = logging.getLogger("diffkit.models")

_UPSCALER_SCALING = 0.08333
_LEAST_SIZE = 64
TEXT_ENCODER = CLIP
# Classifier-free guidance as its authors use it: for pictures from noise, and for the x4 upscaler.
GUIDANCE, ILLUSION_GUIDANCE, UPSCALER_GUIDANCE = 7.5, 10.0, 9.0
UPSCALER_NOISE = 20  # timesteps
NOISING = "low_res_scheduler"
# Input channels beside the sample -> what it draws from: noise, the masked image, or a small image.
_CLASSES, _FOREIGN = ("class_embed_type", "num_class_embeds"), ("addition_embed_type", "time_cond_proj_dim")
_SOURCES: dict[int, Literal["noise", "mask", "small"]] = {0: "noise", 5: "mask", 3: "small"}


class StableDiffusion(TextUNet):
    """Latent text-to-image diffusion (the `Model` protocol); arguments as of `TextModel`."""

    encoding = CLIP

    def __init__(self, repo: Repo, info: ModelInfo, options: LoadOptions) -> None:
        super().__init__(repo, info, options)
        config, _ = vae_config(repo, info.sample[0])
        small = info.source == "small"
        # Its configuration is outdated, and diffusers puts it right as well.
        scaling = _UPSCALER_SCALING if small and vae_scaling(repo, config) == SCALING else None
        # Some VAEs overflow in fp16. Those of 1.x and 2.x do not and say nothing; the upscaler's does and says nothing.
        self.codec = self.latent_codec(scaling, upcast=small)
        self._low_res_scheduler = load_noising(repo, NOISING) if info.source == "small" else None

    def at(self, height: int, width: int) -> StableDiffusion:
        """Return this model for latents of another size, sharing all weights."""
        return self._resized(height, width)

    def image_cond(
        self, images: Tensor, generators: Sequence[torch.Generator], *, mask: Tensor | None = None, noise_level: int = 0
    ) -> Cond:
        """Condition a 9- or 7-channel UNet; see `Model.image_cond`.

        Raises:
            UsageError: It draws from noise alone, or the level is out of range.
        """
        if self.info.source == "mask" and mask is not None:
            return inpaint_cond(self.codec, images, mask)
        if self._low_res_scheduler is not None:
            return self._upscale_cond(images, generators, noise_level)
        return super().image_cond(images, generators, mask=mask, noise_level=noise_level)

    def _upscale_cond(self, images: Tensor, generators: Sequence[torch.Generator], noise_level: int) -> Cond:
        """The small image, a little noised, and how much: the latents have its very size."""
        assert self._low_res_scheduler is not None
        config = self.info.network.config
        limit = min(
            int(config.get("num_class_embeds") or 1000), int(self._low_res_scheduler.config.num_train_timesteps)
        )
        levels = noise_levels(noise_level, len(images), self.device, limit)
        noise = draw_noise(images.shape[1:], generators, self.device)
        noisy = self._low_res_scheduler.add_noise(images.to(self.device, torch.float32), noise, levels)
        return Cond({"channels": noisy, "class_labels": levels})


def inpaint_cond(codec: LatentCodec, images: Tensor, mask: Tensor) -> Cond:
    """Return what a UNet of nine channels is told: the mask at latent size, and latents with the white cut out.

    Args:
        codec: The model's VAE.
        images: (B, 3, H, W) in [-1, 1].
        mask: (1 or B, 1, H, W) in [0, 1].
    """
    mask = (mask >= 0.5).to(images)
    latents = codec.encode(images * (1 - mask))
    small = F.interpolate(mask, latents.shape[-2:]).to(latents)
    return Cond({"channels": torch.cat([small.expand(len(latents), -1, -1, -1), latents], dim=1)})


def info(repo: Repo) -> ModelInfo:
    """Say what a Stable Diffusion model is, from its configuration alone.

    Raises:
        ModelError: A field is missing or contradicts another one; the message names it.
    """
    network = read_network(repo, "unet", "UNet2DConditionModel")
    where, (record, _) = field_of(repo, network), read_record(repo)
    out, taken = (whole_number(network.config, key, where) for key in ("out_channels", "in_channels"))
    if taken - out not in _SOURCES:
        allowed = " or ".join(str(out + more) for more in sorted(_SOURCES))
        raise wrong(where, "in_channels", taken, f"{allowed}, for {out} out_channels")
    source = _SOURCES[taken - out]
    labels = {"class_embed_type": ("timestep",)} if source == "small" else dict.fromkeys(_CLASSES, ())
    check_unused(network.config, where, {**labels, **dict.fromkeys(_FOREIGN, ())})
    height, width = _latent_size(network.config, source, where)
    _, factor = vae_config(repo, out)
    if source == "small":
        load_noising(repo, NOISING)
    return ModelInfo(
        id=repo.id, revision=repo.revision, family="stable_diffusion", pipeline=repo.pipeline, channels=3,
        size=(height * factor, width * factor), sample=(out, height, width), network=network,
        scheduler=_corrected(load_scheduler(repo), source, repo.id), conditioning="text",
        text_encoder=TEXT_ENCODER.name, null=True, guidance=UPSCALER_GUIDANCE if source == "small" else GUIDANCE,
        illusion_guidance=UPSCALER_GUIDANCE if source == "small" else ILLUSION_GUIDANCE,
        source=source, latent=True, noise_level=UPSCALER_NOISE if source == "small" else 0,
        input_multiple=8 if source == "small" else 0, size_multiple=0 if source == "small" else factor,
        record=record, vocabulary=tokens_of(repo, record),
    )  # fmt: skip


def _latent_size(config: Mapping[str, Any], source: str, where: str) -> tuple[int, int]:
    """Return (height, width) of the latents; one below 64 of diffusers 0.8 or older means 64, as in stock."""
    size, square = read_size(config, where), isinstance(config["sample_size"], int)
    version = re.match(r"(\d+)\.(\d+)", str(config.get("_diffusers_version", "")))
    old = version is not None and (int(version[1]), int(version[2])) < (0, 9)
    if not (old and square and size[0] < _LEAST_SIZE and source != "small"):
        return size
    LOG.info("%s: an outdated sample_size is put right: %d is %d", where, size[0], _LEAST_SIZE)
    return _LEAST_SIZE, _LEAST_SIZE


def _corrected(scheduler: SchedulerMixin, source: str, name: str) -> SchedulerMixin:
    """Put right what outdated configurations say, as the stock pipelines do: unclipped latents, an offset of 1."""
    changes: dict[str, Any] = {}
    if scheduler.config.get("clip_sample"):
        changes["clip_sample"] = False
    if source != "small" and scheduler.config.get("steps_offset", 1) != 1:
        changes["steps_offset"] = 1
    if not changes:
        return scheduler
    LOG.info("%s: an outdated scheduler configuration is put right: %s", name, changes)
    return type(scheduler).from_config(scheduler.config, **changes)


load = StableDiffusion  # (repo, info, options): its parts are loaded when they are first used
