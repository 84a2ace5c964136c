"""What the latent families share: the VAE, read from its configuration, loaded, and as the codec of a model.

Source: Rombach et al., arXiv:2112.10752.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from diffkit.errors import UsageError
from diffkit.models.configuration import whole_number, whole_numbers, wrong
from diffkit.models.kinds import network_class
from diffkit.models.memory import MemoryPlan
from diffkit.models.options import LoadOptions
from diffkit.models.repo import Repo
from diffkit.models.weights import load_component, load_config
from diffkit.types import ModelInfo

if TYPE_CHECKING:
    from diffusers import AutoencoderDC, AutoencoderKL

Autoencoder: TypeAlias = "AutoencoderKL | AutoencoderDC"

Scale: TypeAlias = float | Sequence[float]

FOLDER = "vae"
SCALING = 0.18215  # diffusers' default for an AutoencoderKL, that of Stable Diffusion 1.x and 2.x
_DEEP_SCALING = 1.0  # and for an AutoencoderDC


class LatentCodec:
    """The autoencoder: images (B, 3, H, W) in [-1, 1] <-> scaled latents (B, C, H/f, W/f).

    Args:
        load: Makes the autoencoder at the first use.
        scaling: What latents are multiplied with so that their variance is about 1.
        factor: f, pixels per latent.
        device: Where to run.
        rests: Where the weights wait between uses.
        shift: What is taken off latents before they are scaled; a number, or one per channel.
    """

    def __init__(
        self,
        load: Callable[[], Autoencoder],
        scaling: Scale,
        factor: int,
        device: torch.device,
        rests: torch.device,
        shift: Scale = 0.0,
    ) -> None:
        self._load, self.factor, self.device, self._rests = load, factor, device, rests
        self.scaling, self.shift = _per_channel(scaling, device), _per_channel(shift, device)

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
            given = vae.encode(image)
            if "latent" in given:  # a deep compression autoencoder has no distribution
                rows.append(given.latent)
                continue
            latents = given.latent_dist.mean
            if generators is not None:
                drawn = torch.randn(latents.shape, generator=generators[k], device=generators[k].device)
                latents = latents + given.latent_dist.std * drawn.to(latents)
            rows.append(latents)
        self._asleep(vae)
        latents = torch.cat(rows)
        return (self.scaling * (latents - self.shift if self._shifted else latents)).float()

    def decode(self, x0: Tensor) -> Tensor:
        """Return the images of latents, not clipped; gradients flow through where they are on."""
        vae = self._awake()
        latents = x0.to(self.device) / self.scaling  # there first: one number per channel is there, too
        latents = latents + self.shift if self._shifted else latents
        images = vae.decode(latents.to(vae.dtype), return_dict=False)[0].float()
        if not images.requires_grad:
            self._asleep(vae)
        return images

    @property
    def _shifted(self) -> bool:
        return isinstance(self.shift, Tensor) or self.shift != 0.0

    def _awake(self) -> Autoencoder:
        vae = self._load()
        return vae.to(self.device) if self._rests != self.device else vae

    def _asleep(self, vae: Autoencoder) -> None:
        if self._rests != self.device:
            vae.to(self._rests)


def _per_channel(value: Scale, device: torch.device) -> float | Tensor:
    """Return a number as it is, and one per channel as (1, C, 1, 1)."""
    if isinstance(value, (int, float)):
        return float(value)
    return torch.tensor(list(value), device=device).reshape(1, -1, 1, 1)


def vae_config(repo: Repo, channels: int, *, deep: bool = False) -> tuple[dict[str, Any], int]:
    """Return the configuration of a repository's autoencoder, and how many pixels a latent stands for on each side.

    Args:
        repo: The repository.
        channels: Those of the network's samples.
        deep: Whether it may be an AutoencoderDC.

    Raises:
        ModelError: There is none, or a field cannot be right.
    """
    config, where = load_config(repo, FOLDER, "config.json"), f"{repo.id}: {FOLDER}/config.json"
    kinds = ("AutoencoderKL", "AutoencoderDC")[: 1 + deep]
    if config.get("_class_name", "AutoencoderKL") not in kinds:
        raise wrong(where, "_class_name", config["_class_name"], " or ".join(kinds))
    if "latent_channels" in config and whole_number(config, "latent_channels", where) != channels:
        raise wrong(where, "latent_channels", config["latent_channels"], f"{channels}, as the network has")
    vae_scaling(repo, config)
    vae_shift(repo, config)
    levels = "encoder_block_out_channels" if config.get("_class_name") == "AutoencoderDC" else "block_out_channels"
    return config, 2 ** (len(whole_numbers(config, levels, where)) - 1)


def vae_scaling(repo: Repo, config: Mapping[str, Any]) -> Scale:
    """Return what latents are multiplied with so that their variance is about 1, or one number per channel.

    Raises:
        ModelError: The configuration says something that is no positive number.
    """
    default = _DEEP_SCALING if config.get("_class_name") == "AutoencoderDC" else SCALING
    value, where = config.get("scaling_factor", default), f"{repo.id}: {FOLDER}/config.json"
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise wrong(where, "scaling_factor", value, "a positive number")
    spread = config.get("latents_std")
    if spread is None or config.get("latents_mean") is None:
        return float(value)
    if not _numbers(spread) or min(spread) <= 0:
        raise wrong(where, "latents_std", spread, "one positive number per channel")
    return [float(value) / float(each) for each in spread]


def vae_shift(repo: Repo, config: Mapping[str, Any]) -> Scale:
    """Return what is taken off latents before they are scaled; a number, or one per channel.

    Raises:
        ModelError: The configuration says something else.
    """
    where, mean = f"{repo.id}: {FOLDER}/config.json", config.get("latents_mean")
    if mean is not None and config.get("latents_std") is not None:
        if not _numbers(mean):
            raise wrong(where, "latents_mean", mean, "one number per channel")
        return [float(each) for each in mean]
    value = config.get("shift_factor") or 0.0
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < float("inf"):
        raise wrong(where, "shift_factor", value, "a number")
    return float(value)


def _numbers(values: Any) -> bool:
    return isinstance(values, (list, tuple)) and bool(values) and all(type(v) in (int, float) for v in values)


def load_vae(
    repo: Repo, options: LoadOptions, plan: MemoryPlan, device: torch.device, dtype: torch.dtype, prefer: str
) -> Autoencoder:
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
    config = load_config(repo, FOLDER, "config.json")
    kind = network_class(str(config.get("_class_name", "AutoencoderKL")))
    vae: Autoencoder = load_component(repo, kind, FOLDER, dtype=dtype, prefer=prefer, allow_pickle=options.allow_pickle)
    vae.requires_grad_(False)
    if plan.vae_slicing:
        vae.enable_slicing()
    if plan.vae_tiling:
        vae.enable_tiling()
    return vae.to(device)


def make_codec(
    info: ModelInfo,
    load: Callable[[], Autoencoder],
    scaling: Scale,
    plan: MemoryPlan,
    device: torch.device,
    shift: Scale = 0.0,
) -> LatentCodec:
    """Make the codec of a latent model; where parts are offloaded, the weights wait on the CPU between uses."""
    rests = torch.device("cpu") if plan.offload != "none" else device
    return LatentCodec(load, scaling, info.factor, device, rests, shift)
