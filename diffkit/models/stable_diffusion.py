"""Stable Diffusion 1.x and 2.x: latent diffusion with 4-, 9-channel (inpainting) and 7-channel (x4 upscaling) UNets.

The family's codec is its VAE; epsilon and v-prediction are the scheduler's business. Source: Rombach et al.,
arXiv:2112.10752.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffkit.errors import ModelError, UsageError
from diffkit.models.hub import Repo, load_component, load_config
from diffkit.models.memory import MemoryPlan
from diffkit.models.text_unet import TextModel, noise_levels
from diffkit.models.weights import find_weights
from diffkit.types import Cond

LOG = logging.getLogger("diffkit.models")

_SCALING, _UPSCALER_SCALING = 0.18215, 0.08333


class LatentCodec:
    """The VAE: images (B, 3, H, W) in [-1, 1] <-> scaled latents (B, 4, H/f, W/f).

    Args:
        load: Makes the AutoencoderKL at the first use.
        scaling: What latents are multiplied with so that their variance is about 1.
        factor: f, pixels per latent.
        device: Where to run.
        rests: Where the weights wait between uses.
    """

    def __init__(
        self, load: Callable[[], Any], scaling: float, factor: int, device: torch.device, rests: torch.device
    ) -> None:
        self._load, self.scaling, self.factor, self.device, self._rests = load, scaling, factor, device, rests

    @torch.no_grad()
    def encode(self, images: Tensor, generators: Sequence[torch.Generator] | None = None) -> Tensor:
        """Return the latents of images: the mean of the posterior, or one sample per generator.

        Raises:
            UsageError: The size is no multiple of the factor.
        """
        if images.shape[-1] % self.factor or images.shape[-2] % self.factor:
            size = f"{images.shape[-1]}x{images.shape[-2]}"
            raise UsageError(f"image size {size} is no multiple of {self.factor}, which the VAE needs", "Resize it.")
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        vae = self._awake()
        rows = []
        for k, image in enumerate(images.to(self.device, vae.dtype).split(1)):  # one by one: no image sees its company
            posterior = vae.encode(image).latent_dist
            latents = posterior.mean
            if generators is not None:
                drawn = torch.randn(latents.shape, generator=generators[k], device=generators[k].device)
                latents = latents + posterior.std * drawn.to(latents)
            rows.append(latents)
        self._asleep(vae)
        return (self.scaling * torch.cat(rows)).float()

    def decode(self, x0: Tensor) -> Tensor:
        """Return the images of latents, not clipped; gradients flow through where they are on."""
        vae = self._awake()
        images = vae.decode((x0 / self.scaling).to(self.device, vae.dtype), return_dict=False)[0].float()
        if not images.requires_grad:
            self._asleep(vae)
        return images

    def _awake(self) -> Any:
        vae = self._load()
        return vae.to(self.device) if self._rests != self.device else vae

    def _asleep(self, vae: Any) -> None:
        if self._rests != self.device:
            vae.to(self._rests)


class StableDiffusion(TextModel):
    """Latent text-to-image diffusion (the `Model` protocol); arguments as of `TextModel`."""

    family = "stable_diffusion"

    def __init__(self, repo: Repo, **options: Any) -> None:
        super().__init__(repo, "clip", **options)
        if self.extra_channels not in (0, 3, 5):
            raise ModelError(f"{repo.id}: a UNet with {self.config['in_channels']} input channels is not supported")
        vae = load_config(repo, "vae", "config.json")
        find_weights(
            repo, "vae", "diffusion_pytorch_model", prefer=self._prefer,
            allow_pickle=self._allow_pickle,
        )  # fmt: skip
        self.vae_config = vae
        self.scheduler = _corrected(self.scheduler, self.kind, repo.id)
        factor = 2 ** (len(vae["block_out_channels"]) - 1)
        rests = torch.device("cpu") if self.memory.offload != "none" else self.device
        scaling = float(vae.get("scaling_factor", _SCALING))
        if self.kind == "upscale" and scaling == _SCALING:  # an outdated configuration; diffusers does the same
            scaling = _UPSCALER_SCALING
        self.codec = LatentCodec(lambda: self._part("vae", self._make_vae), scaling, factor, self.device, rests)
        self.low_res_scheduler = _scheduler(repo, "low_res_scheduler") if self.extra_channels == 3 else None

    @property
    def kind(self) -> str:
        """text, inpaint (9 channels) or upscale (7 channels), by the UNet's input."""
        return {0: "text", 5: "inpaint", 3: "upscale"}[self.extra_channels]

    def inpaint_cond(self, images: Tensor, mask: Tensor, generators: Sequence[torch.Generator] | None = None) -> Cond:
        """Condition a 9-channel UNet: the mask at latent size, and the latents of the image with the white cut out.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            mask: (B, 1, H, W) in [0, 1], white (1) is repainted.
            generators: Sample the posterior, one per image; its mean when left out.

        Raises:
            UsageError: This is no inpainting model.
        """
        if self.kind != "inpaint":
            raise UsageError(
                f"{self.id} is no inpainting model (its UNet has {self.config['in_channels']} input channels)"
            )
        mask = (mask >= 0.5).to(images)
        latents = self.codec.encode(images * (1 - mask), generators)
        small = F.interpolate(mask, latents.shape[-2:]).to(latents)
        return Cond({"channels": torch.cat([small.expand(len(latents), -1, -1, -1), latents], dim=1)})

    def upscale_cond(self, images: Tensor, generators: Sequence[torch.Generator], noise_level: int = 20) -> Cond:
        """Condition a 7-channel UNet (DeepFloyd's stage III): the small image, a little noised, and how much.

        Args:
            images: (B, 3, h, w) in [-1, 1]; the sample's latents have this very size, the picture is 4 times larger.
            generators: One per image.
            noise_level: Timestep of the noise.

        Raises:
            UsageError: This is no upscaler, or the level is out of range.
        """
        if self.low_res_scheduler is None:
            raise UsageError(f"{self.id} is no upscaler (its UNet has {self.config['in_channels']} input channels)")
        limit = min(
            int(self.config.get("num_class_embeds") or 1000), int(self.low_res_scheduler.config.num_train_timesteps)
        )
        levels = noise_levels(noise_level, len(images), self.device, limit)
        noise = self._noise(generators, tuple(images.shape[1:]))
        noisy = self.low_res_scheduler.add_noise(images.to(self.device, torch.float32), noise, levels)
        return Cond({"channels": noisy, "class_labels": levels})

    def _make_vae(self) -> Any:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        # Some VAEs overflow in fp16. Those of 1.x and 2.x do not and say nothing; the upscaler's does and says nothing.
        upcast = self.vae_config.get("force_upcast", self.kind == "upscale")
        dtype = torch.float32 if self.dtype == torch.float16 and upcast else self.dtype
        vae = load_component(
            self.repo, AutoencoderKL, "vae", dtype=dtype, prefer=self._prefer, allow_pickle=self._allow_pickle
        )
        vae.requires_grad_(False)
        return _spare(vae, self.memory).to(self.device)


def _corrected(scheduler: Any, kind: str, name: str) -> Any:
    """Put right what outdated configurations say, as the stock pipelines do: unclipped latents, an offset of 1."""
    wrong: dict[str, Any] = {}
    if scheduler.config.get("clip_sample"):
        wrong["clip_sample"] = False
    if kind != "upscale" and scheduler.config.get("steps_offset", 1) != 1:
        wrong["steps_offset"] = 1
    if not wrong:
        return scheduler
    LOG.info("%s: an outdated scheduler configuration is put right: %s", name, wrong)
    return type(scheduler).from_config(scheduler.config, **wrong)


def _spare(vae: Any, plan: MemoryPlan) -> Any:
    if plan.vae_slicing:
        vae.enable_slicing()
    if plan.vae_tiling:
        vae.enable_tiling()
    return vae


def _scheduler(repo: Repo, part: str) -> Any:
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    return DDPMScheduler.from_config(load_config(repo, part, "scheduler_config.json"))


def from_repo(repo: Repo, **options: Any) -> StableDiffusion:
    """Load a Stable Diffusion model from an opened repository; options as of `TextModel`.

    Raises:
        ModelError: Missing or broken files, or a UNet of another kind.
    """
    return StableDiffusion(repo, **options)
