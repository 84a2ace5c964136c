"""What the latent families share: the VAE, read from its configuration, loaded, and as the codec of a model.

Source: Rombach et al., arXiv:2112.10752.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffkit.errors import UsageError
from diffkit.models.configuration import whole_number, whole_numbers, wrong
from diffkit.models.memory import MemoryPlan
from diffkit.models.options import LoadOptions
from diffkit.models.repo import Repo
from diffkit.models.weights import load_component, load_config
from diffkit.types import ModelInfo

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

FOLDER = "vae"
SCALING = 0.18215  # diffusers' default for an AutoencoderKL, that of Stable Diffusion 1.x and 2.x


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
        self, load: Callable[[], AutoencoderKL], scaling: float, factor: int, device: torch.device, rests: torch.device
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

    def _awake(self) -> AutoencoderKL:
        vae = self._load()
        return vae.to(self.device) if self._rests != self.device else vae

    def _asleep(self, vae: AutoencoderKL) -> None:
        if self._rests != self.device:
            vae.to(self._rests)


def vae_config(repo: Repo, channels: int) -> tuple[dict[str, Any], int]:
    """Return the configuration of a repository's VAE, and how many pixels one latent stands for on each side.

    Args:
        repo: The repository.
        channels: Those of the network's samples.

    Raises:
        ModelError: There is none, or a field cannot be right.
    """
    config, where = load_config(repo, FOLDER, "config.json"), f"{repo.id}: {FOLDER}/config.json"
    if config.get("_class_name", "AutoencoderKL") != "AutoencoderKL":
        raise wrong(where, "_class_name", config["_class_name"], "AutoencoderKL")
    if "latent_channels" in config and whole_number(config, "latent_channels", where) != channels:
        raise wrong(where, "latent_channels", config["latent_channels"], f"{channels}, as the network has")
    vae_scaling(repo, config)
    return config, 2 ** (len(whole_numbers(config, "block_out_channels", where)) - 1)


def vae_scaling(repo: Repo, config: Mapping[str, Any]) -> float:
    """Return what latents are multiplied with so that their variance is about 1.

    Raises:
        ModelError: The configuration says something that is no positive number.
    """
    value = config.get("scaling_factor", SCALING)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise wrong(f"{repo.id}: {FOLDER}/config.json", "scaling_factor", value, "a positive number")
    return float(value)


def load_vae(
    repo: Repo, options: LoadOptions, plan: MemoryPlan, device: torch.device, dtype: torch.dtype, prefer: str
) -> AutoencoderKL:
    """Load a repository's VAE.

    Args:
        repo: The repository.
        options: How the model is loaded.
        plan: Whether it works on one image at a time, and on tiles.
        device: Where to run.
        dtype: Type of its weights.
        prefer: Weight variant to take where it is there.

    Raises:
        ModelError: Missing or broken weights.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    vae = load_component(repo, AutoencoderKL, FOLDER, dtype=dtype, prefer=prefer, allow_pickle=options.allow_pickle)
    vae.requires_grad_(False)
    if plan.vae_slicing:
        vae.enable_slicing()
    if plan.vae_tiling:
        vae.enable_tiling()
    return vae.to(device)


def make_codec(
    info: ModelInfo, load: Callable[[], AutoencoderKL], scaling: float, plan: MemoryPlan, device: torch.device
) -> LatentCodec:
    """Make the codec of a latent model; where parts are offloaded, the weights wait on the CPU between uses."""
    rests = torch.device("cpu") if plan.offload != "none" else device
    return LatentCodec(load, scaling, info.factor, device, rests)
