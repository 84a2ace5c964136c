"""What the text-conditioned families share: a UNet that is loaded when it is first called, prompts, and noise.

Conditions are tensors by name: `encoder_hidden_states` (B, 77, D) from prompts; `channels` (B, K, H, W), which join the
sample on the channel axis and turn with it under a view; `class_labels` (B,), a noise level. What an image-conditioned
model makes of an image is the family's business.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffkit.errors import UsageError
from diffkit.models.ddpm import load_scheduler
from diffkit.models.hub import Repo, load_component, load_config
from diffkit.models.memory import MemoryPlan, count_parameters, default_dtype, make_plan, place
from diffkit.models.safety import Safety
from diffkit.models.text import EmbeddingCache, PromptEncoder
from diffkit.models.weights import find_weights, preferred
from diffkit.types import Cond, Prediction

LOG = logging.getLogger("diffkit.models")


class TextModel:
    """A text-conditioned denoiser with its scheduler, codec and prompt encoder (the `Model` protocol).

    Nothing large is loaded before it is used: the text encoder only for prompts that the cache lacks, and it is gone
    again before the UNet comes.

    Args:
        repo: Where from.
        kind: The text encoder: "clip" or "t5".
        device: Where to run.
        dtype: Type of the weights, half precision on CUDA and fp32 elsewhere when left out; the sample stays fp32.
        variant: Weight variant.
        allow_pickle: Also read `.bin`.
        memory: auto, low or lowest.
        safety: auto, on or off.
        compile: Compile the UNet.
        prompts: A prompt encoder to share (stage II with stage I's).
        cache: Where embeddings are kept.

    Raises:
        UsageError: Unknown memory level or safety mode.
        ModelError: Something needed is missing; found out before anything large is loaded.
    """

    family = ""

    def __init__(
        self,
        repo: Repo,
        kind: str,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        variant: str | None = None,
        allow_pickle: bool = False,
        memory: str = "auto",
        safety: str = "auto",
        compile: bool = False,
        prompts: PromptEncoder | None = None,
        cache: EmbeddingCache | None = None,
    ) -> None:
        self.repo, self.id, self.revision = repo, repo.id, repo.revision
        self.device = torch.device(device)
        self.dtype = dtype or default_dtype(self.device)
        # Of the UNet the variant has to be there; of the other parts it is taken where it is.
        self._variant, self._allow_pickle = variant, allow_pickle
        self._prefer = variant or preferred(self.dtype)
        self.config: Mapping[str, Any] = load_config(repo, "unet", "config.json")
        self.memory = self._plan(memory)
        self.safety = Safety(repo, safety, self.device, self._prefer)
        self.scheduler = load_scheduler(repo)
        self.prompts = prompts or PromptEncoder(
            repo, kind, device=self.device, dtype=self.dtype, eight_bit=self.memory.text_8bit, cache=cache,
            prefer=self._prefer, allow_pickle=allow_pickle,
        )  # fmt: skip
        self._compile = compile
        self._parts: dict[str, Any] = {}  # shared by the copies that `at` makes
        find_weights(
            repo, "unet", "diffusion_pytorch_model", variant=variant, prefer=self._prefer,
            allow_pickle=allow_pickle,
        )  # fmt: skip
        size = self.config.get("sample_size") or 64
        height, width = (size, size) if isinstance(size, int) else size
        self.shape: tuple[int, int, int] = (self.sample_channels, height, width)

    @property
    def sample_channels(self) -> int:
        """Channels of the sample: those of the prediction, without a learned variance."""
        return int(self.config["out_channels"])

    @property
    def extra_channels(self) -> int:
        """Input channels beyond the sample: a mask, an image."""
        return int(self.config["in_channels"]) - self.sample_channels

    @property
    def unet(self) -> Any:
        """The network, loaded and placed at the first use."""

        def make() -> Any:
            from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

            unet = load_component(
                self.repo, UNet2DConditionModel, "unet", variant=self._variant, dtype=self.dtype,
                allow_pickle=self._allow_pickle,
            )  # fmt: skip
            unet.requires_grad_(False)
            if self.device.type == "cuda":
                unet.to(memory_format=torch.channels_last)
            unet = place(unet, self.device, self.memory)
            return torch.compile(unet) if self._compile else unet

        return self._part("unet", make)

    def at(self, height: int, width: int) -> Any:
        """Return this model for samples of another size, sharing all weights.

        Args:
            height: Of the sample: pixels, or latents.
            width: Likewise.
        """
        other = copy.copy(self)
        other.shape = (self.shape[0], height, width)
        return other

    def noise(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Draw N(0, I), (len(generators), C, H, W) fp32 on the model's device, one image per generator."""
        return self._noise(generators, self.shape)

    def encode(self, prompts: Sequence[str | None]) -> Cond:
        """Turn prompts into a condition with one row each; None or "" is the empty prompt.

        Raises:
            ModelError: A prompt is not in the cache, and the text encoder is missing or broken.
        """
        return Cond({"encoder_hidden_states": self.prompts.encode([p or "" for p in prompts])})

    def uncond(self, batch: int, prompt: str = "") -> Cond:
        """Return the empty (or a negative) prompt for `batch` rows, what guidance needs."""
        return self.encode([prompt]).expand(batch)

    def screen(self, images: Tensor) -> tuple[Tensor, list[bool]]:
        """Let the safety checker judge pictures (B, 3, H, W) in [-1, 1]; see `Safety.screen`."""
        return self.safety.screen(images)

    def parameters_of_unet(self) -> int:
        """Count the UNet's parameters without loading it."""
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        return count_parameters(UNet2DConditionModel, self.config)

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        """Predict from x (B, C, H, W), already scaled as the scheduler asks, at t (shape () or (B,)).

        Raises:
            UsageError: The condition lacks what this UNet was trained with.
        """
        tensors = cond.tensors
        if "encoder_hidden_states" not in tensors:
            raise UsageError(f"{self.id} needs a prompt", "Give --prompt; an empty one is fine.")
        extra = tensors.get("channels")
        if (0 if extra is None else extra.shape[1]) != self.extra_channels:
            raise UsageError(
                f"the UNet of {self.id} takes {self.extra_channels} channels beside the sample,"
                f" got {0 if extra is None else extra.shape[1]}",
                "It is an inpainting or upscaling model: give it its image." if self.extra_channels else "",
            )
        sample = x if extra is None else torch.cat([x, extra.to(x)], dim=1)
        out = self.unet(
            sample.to(self.dtype),
            t.to(self.device, non_blocking=True),
            encoder_hidden_states=tensors["encoder_hidden_states"].to(self.dtype),
            class_labels=tensors.get("class_labels"),
            return_dict=False,
        )[0].float()
        if out.shape[1] == 2 * x.shape[1]:
            return Prediction(*out.chunk(2, dim=1))
        return Prediction(out)

    def _noise(self, generators: Sequence[torch.Generator], shape: tuple[int, ...]) -> Tensor:
        drawn = [torch.randn(1, *shape, generator=g, device=g.device) for g in generators]
        return torch.cat(drawn).to(self.device)

    def _part(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self._parts:
            self._parts[name] = make()
        return self._parts[name]

    def _plan(self, level: str) -> MemoryPlan:
        weights = 0
        if level == "auto" and self.device.type == "cuda":
            weights = self.parameters_of_unet() * torch.empty((), dtype=self.dtype).element_size()
        plan = make_plan(level, self.device, weights)
        if plan.level != "none":
            LOG.info("%s", plan.describe())
        return plan


def noise_levels(level: int, batch: int, device: torch.device, limit: int) -> Tensor:
    """Return a noise level as the UNet's class labels, (batch,).

    Raises:
        UsageError: Outside 0..limit-1.
    """
    if not 0 <= level < limit:
        raise UsageError(f"--noise-level {level} is outside 0..{limit - 1}")
    return torch.full((batch,), level, dtype=torch.long, device=device)
