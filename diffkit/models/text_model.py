"""What the text-conditioned families share: a network that is loaded when it is first called, prompts, and sizes.

Conditions are tensors by name: `encoder_hidden_states` (B, L, D) from prompts, and what else a family's encoding gives;
`channels` (B, K, H, W), which join the sample on the channel axis and turn with it under a view; `class_labels` (B,), a
noise level. What an image-conditioned model makes of an image is the family's business.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from diffkit.errors import UsageError
from diffkit.models.base import BaseModel, unpacked
from diffkit.models.kinds import network_class
from diffkit.models.latents import (
    FOLDER,
    Autoencoder,
    LatentCodec,
    Scale,
    load_vae,
    make_codec,
    vae_config,
    vae_scaling,
    vae_shift,
)
from diffkit.models.memory import MemoryPlan, count_parameters, default_dtype, make_plan, place
from diffkit.models.options import LoadOptions
from diffkit.models.repo import Repo
from diffkit.models.safety import Safety
from diffkit.models.text import PromptEncoder
from diffkit.models.text_encodings import TextEncoding
from diffkit.models.weights import find_weights, load_component, preferred
from diffkit.types import Cond, ModelInfo, Prediction

LOG = logging.getLogger("diffkit.models")

_KEPT = 64  # embeddings on the device: in half precision 40 MB of DeepFloyd IF's, 175 MB of Stable Diffusion 3's


class TextModel(BaseModel):
    """A text-conditioned denoiser with its scheduler, codec and prompt encoder (the `Model` protocol).

    Nothing large is loaded before it is used: text encoders only for prompts that the cache lacks, and they are gone
    again before the network comes. A family says its `encoding` and how its network is called (`predict`).

    Attributes:
        encoding: How prompts become tensors.

    Args:
        repo: Where from.
        info: What it is.
        options: How it is loaded; without a type, half precision on CUDA and fp32 elsewhere. The sample stays fp32.

    Raises:
        UsageError: Unknown memory level or safety mode, or an option that it does not have.
        ModelError: Something needed is missing; found out before anything large is loaded.
    """

    encoding: ClassVar[TextEncoding]

    def __init__(self, repo: Repo, info: ModelInfo, options: LoadOptions) -> None:
        if options.raw:
            raise UsageError("`raw` goes with runs that draw freely or by class, not by prompt", "Leave it out.")
        self.repo, self.info, self.options = repo, info, options
        self.device = torch.device(options.device)
        self.dtype = options.dtype or default_dtype(self.device, self.encoding.half)
        # Of the network the variant has to be there; of the other parts it is taken where it is.
        self._prefer = options.variant or preferred(self.dtype)
        self.memory = self._plan(options.memory)
        self.row_limit = self.memory.max_batch
        self.safety = Safety(
            repo, options.safety, self.device, self._prefer, allow_pickle=options.allow_pickle, own=bool(info.record)
        )
        self.prompts = self._encoder = options.prompts or PromptEncoder(
            repo, self.encoding, device=self.device, dtype=self.dtype, eight_bit=self.memory.text_8bit,
            cache=options.cache, prefer=self._prefer, allow_pickle=options.allow_pickle,
        )  # fmt: skip
        self._parts: dict[str, Any] = {}  # shared by the copies that `at` makes
        self._rows: dict[str, dict[str, Tensor]] = {}  # embeddings of prompts that were asked for before
        find_weights(
            repo, info.network.folder, "diffusion_pytorch_model", variant=options.variant, prefer=self._prefer,
            allow_pickle=options.allow_pickle,
        )  # fmt: skip

    @property
    def network(self) -> nn.Module:  # type: ignore[override]
        """The network, loaded and placed at the first use."""

        def make() -> nn.Module:
            network: nn.Module = load_component(
                self.repo, network_class(self.info.network.kind), self.info.network.folder,
                variant=self.options.variant, dtype=self.dtype, allow_pickle=self.options.allow_pickle,
            )  # fmt: skip
            network.requires_grad_(False)
            if self.device.type == "cuda":
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            network = place(network, self.device, self.memory)
            return cast(nn.Module, torch.compile(network)) if self.options.compile else network

        return self._part("network", make)

    @property
    def parameters(self) -> int:
        """Number of the network's parameters, without loading it."""
        return count_parameters(self.info.network)

    @property
    def encode_seconds(self) -> float:
        """Time spent on encoding prompts, the text encoder's loading included."""
        return self._encoder.seconds

    def encode(self, prompts: Sequence[str | None]) -> Cond:
        """Turn prompts into a condition with one row each; None or "" is the empty prompt.

        Raises:
            ModelError: A prompt is not in the cache, and the text encoder is missing or broken.
        """
        wanted = [p or "" for p in prompts]
        missing = [p for p in dict.fromkeys(wanted) if p not in self._rows]
        encoded = self._encoder.encode(missing) if missing else {}
        found = {p: {name: rows[k] for name, rows in encoded.items()} for k, p in enumerate(missing)}
        rows = [found[p] if p in found else self._rows[p] for p in wanted]
        self._rows |= dict(list(found.items())[: max(0, _KEPT - len(self._rows))])
        return Cond({name: torch.stack([row[name] for row in rows]) for name in rows[0]})

    def uncond(self, batch: int) -> Cond:
        """Return the empty prompt for `batch` rows, what guidance needs."""
        return self.encode([""]).expand(batch)

    def screen(self, images: Tensor) -> tuple[Tensor, list[bool]]:
        """Let the safety checker judge pictures (B, 3, H, W) in [-1, 1]; see `Safety.screen`."""
        return self.safety.screen(images)

    def predict(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Return the network's output for x (B, C, H, W) in its own type, at t (shape () or (B,)) on its device."""
        raise NotImplementedError

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        """Predict from x (B, C, H, W), already scaled as the scheduler asks, at t (shape () or (B,)).

        Raises:
            UsageError: The condition lacks what this network was trained with.
        """
        if "encoder_hidden_states" not in cond.tensors:
            raise UsageError(f"{self.info.id} needs a prompt", "Give `prompt`; an empty one is fine.")
        out = self.predict(x.to(self.dtype), t.to(self.device, non_blocking=True), cond)
        return unpacked(out, x)

    def latent_codec(self, scaling: Scale | None = None, *, deep: bool = False, upcast: bool = False) -> LatentCodec:
        """Make the codec of a family whose samples are latents; its weights are looked for now and read at first use.

        Args:
            scaling: What latents are multiplied with, where the configuration does not say it right.
            deep: Whether the autoencoder may be an AutoencoderDC.
            upcast: Whether it overflows in fp16 where its configuration says nothing (`force_upcast`).

        Raises:
            ModelError: It is missing, or a field of its configuration cannot be right.
        """
        config, _ = vae_config(self.repo, self.info.sample[0], deep=deep)
        find_weights(
            self.repo, FOLDER, "diffusion_pytorch_model", prefer=self._prefer, allow_pickle=self.options.allow_pickle,
        )  # fmt: skip

        def make() -> Autoencoder:
            wide = self.dtype == torch.float16 and config.get("force_upcast", upcast)
            dtype = torch.float32 if wide else self.dtype
            return load_vae(self.repo, self.options, self.memory, self.device, dtype, self._prefer)

        scaling = vae_scaling(self.repo, config) if scaling is None else scaling
        shift = vae_shift(self.repo, config)
        return make_codec(self.info, lambda: self._part("vae", make), scaling, self.memory, self.device, shift)

    def _resized(self, height: int, width: int) -> Self:
        other = copy.copy(self)
        factor = self.info.factor
        size = (height * factor, width * factor)
        if self.info.size_multiple:
            other.info = self.info.resized(*size)
        else:  # an upscaler's size is that of the picture that it enlarges
            other.info = replace(self.info, sample=(self.info.sample[0], height, width), size=size)
        return other

    def _part(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self._parts:
            self._parts[name] = make()
        return self._parts[name]

    def _plan(self, level: str) -> MemoryPlan:
        weights = 0
        if level == "auto" and self.device.type == "cuda":
            weights = self.parameters * torch.empty((), dtype=self.dtype).element_size()
        plan = make_plan(level, self.device, weights)
        if plan.level != "none":
            LOG.info("%s", plan.describe())
        return plan


class TextUNet(TextModel):
    """A `TextModel` whose network is a UNet2DConditionModel; arguments as there."""

    def predict(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Call the UNet.

        Raises:
            UsageError: The condition lacks the image that this UNet was trained with.
        """
        tensors = cond.tensors
        extra = tensors.get("channels")
        wanted = int(self.info.network.config["in_channels"]) - self.info.sample[0]
        if (0 if extra is None else extra.shape[1]) != wanted:
            raise UsageError(
                f"the UNet of {self.info.id} takes {wanted} channels beside the sample,"
                f" got {0 if extra is None else extra.shape[1]}",
                "It is an inpainting or upscaling model: give it its image." if wanted else "",
            )
        sample = x if extra is None else torch.cat([x, extra.to(x)], dim=1)
        out: Tensor = self.network(
            sample, t, encoder_hidden_states=tensors["encoder_hidden_states"].to(self.dtype),
            class_labels=tensors.get("class_labels"), return_dict=False, **self.added(cond),
        )[0]  # fmt: skip
        return out

    def added(self, cond: Cond) -> dict[str, Any]:
        """Return what a family's UNet is given beside prompts and labels."""
        return {}


def noise_levels(level: int, batch: int, device: torch.device, limit: int) -> Tensor:
    """Return a noise level as the UNet's class labels, (batch,).

    Raises:
        UsageError: Outside 0..limit-1.
    """
    if not 0 <= level < limit:
        raise UsageError(f"`noise_level` {level} is outside 0..{limit - 1}")
    return torch.full((batch,), level, dtype=torch.long, device=device)
