"""What the families' models share, and a model that passes everything on to another one, for wrappers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from diffkit.engine.sampling import draw_noise
from diffkit.errors import UsageError
from diffkit.models.classes import class_label
from diffkit.models.options import LoadOptions
from diffkit.types import Codec, Cond, Model, ModelInfo, Prediction

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

    from diffkit.models.text import PromptEncoder


class BaseModel:
    """A model that draws from noise alone, at one size, and has no safety checker: what most families begin with.

    Attributes:
        info: What it is.
        device: Where it runs.
        network: What predicts, where it is loaded at once.
        options: How it was loaded, for further models that are to be loaded likewise.
        row_limit: Most rows in one network call.
        prompts: What encodes prompts, where it takes any.
    """

    info: ModelInfo
    device: torch.device
    network: nn.Module
    options: LoadOptions
    row_limit: int | None = None
    prompts: PromptEncoder | None = None

    @property
    def parameters(self) -> int:
        """Number of the network's parameters."""
        return sum(p.numel() for p in self.network.parameters())

    @property
    def scheduler(self) -> SchedulerMixin:
        """The scheduler it was trained with; not to be changed."""
        return self.info.scheduler

    @property
    def encode_seconds(self) -> float:
        """Time spent on encoding prompts: none, where there are none."""
        return 0.0

    def noise(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Draw its kind of noise, (len(generators), C, h, w) fp32 on its device, one sample per generator."""
        return draw_noise(self.info.sample, generators, self.device, self.info.noise)

    def screen(self, images: Tensor) -> tuple[Tensor, list[bool]]:
        """Return the pictures as they are: nobody judges them."""
        return images, [False] * len(images)

    def at(self, height: int, width: int) -> Model:
        """Refuse another size."""
        raise UsageError(f"{self.info.id} draws at one size only, {self.info.size[1]}x{self.info.size[0]} pixels")

    def image_cond(
        self, images: Tensor, generators: Sequence[torch.Generator], *, mask: Tensor | None = None, noise_level: int = 0
    ) -> Cond:
        """Refuse an image: it draws from noise alone."""
        raise UsageError(
            f"{self.info.id} draws from noise, not from an image", "Give an inpainting or upscaling model."
        )


def class_cond(names: Sequence[str | None], info: ModelInfo, device: torch.device) -> Cond:
    """Turn class names or numbers into a condition; None or "" is the null class.

    Raises:
        UsageError: Not a class of this model.
    """
    labels = torch.tensor([class_label(name, info) for name in names], dtype=torch.long)
    return Cond({"class_labels": labels.to(device)})


def unpacked(out: Tensor, x: Tensor) -> Prediction:
    """Part a network's output for x (B, C, H, W): 2 C channels are a prediction and a learned variance, C the first."""
    return Prediction(*out.float().split(x.shape[1], dim=1))


def plain(model: Model) -> Model:
    """Return the model inside all wrappers."""
    while isinstance(model, WrappedModel):
        model = model.inner
    return model


class WrappedModel:
    """A model that is another one in everything that a subclass does not change.

    Args:
        model: The model to wrap.
    """

    def __init__(self, model: Model) -> None:
        self.inner = model

    @property
    def info(self) -> ModelInfo:
        return self.inner.info

    @property
    def scheduler(self) -> SchedulerMixin:
        return self.inner.scheduler

    @property
    def codec(self) -> Codec:
        return self.inner.codec

    @property
    def device(self) -> torch.device:
        return self.inner.device

    @property
    def row_limit(self) -> int | None:
        return self.inner.row_limit

    @property
    def parameters(self) -> int:
        return self.inner.parameters

    @property
    def encode_seconds(self) -> float:
        return self.inner.encode_seconds

    def noise(self, generators: Sequence[torch.Generator]) -> Tensor:
        return self.inner.noise(generators)

    def encode(self, prompts: Sequence[str | None]) -> Cond:
        return self.inner.encode(prompts)

    def uncond(self, batch: int) -> Cond:
        return self.inner.uncond(batch)

    def screen(self, images: Tensor) -> tuple[Tensor, list[bool]]:
        return self.inner.screen(images)

    def at(self, height: int, width: int) -> Model:
        """The inner model at another size, not wrapped."""
        return self.inner.at(height, width)

    def image_cond(
        self, images: Tensor, generators: Sequence[torch.Generator], *, mask: Tensor | None = None, noise_level: int = 0
    ) -> Cond:
        return self.inner.image_cond(images, generators, mask=mask, noise_level=noise_level)

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        return self.inner(x, t, cond)
