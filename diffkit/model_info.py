"""What a model says of itself, from its configuration alone: all that the rest of the house has to know of it.

A family makes it (`diffkit.models`) before weights are read, and no torch is needed to ask.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from diffkit.errors import UsageError

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

NoiseKind: TypeAlias = Literal["normal", "uniform"]


@dataclass(frozen=True)
class Network:
    """A model's network, as its repository has it.

    Attributes:
        folder: Its sub-folder, "" where it lies at the root.
        kind: Its class in diffusers, such as UNet2DModel.
        config: Its configuration.
    """

    folder: str
    kind: str
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class ModelInfo:
    """What a model is, from its configuration alone: sizes, colours, conditioning, and the defaults that suit it.

    Attributes:
        id: Hub id or folder, as it was given.
        revision: The commit, or None for a folder.
        family: Name of the family's file in `diffkit.models`.
        pipeline: Class name in model_index.json, or of the bare network.
        channels: Channels of its pictures, 1 or 3.
        size: (height, width) of its pictures, pixels.
        sample: (C, h, w) of what the network denoises: pixels, padded where need be, or latents.
        network: The network and where it lies.
        scheduler: The scheduler it was trained with; read it, and never set its timesteps.
        conditioning: What it is told: "none", a "class", or a "text".
        classes: Names of the classes in label order, no two alike.
        synonyms: Further names of classes, and their labels.
        text_encoder: Name of its text encoding, such as "clip" or "t5"; "" where it takes no prompts.
        null: Whether it knows the empty condition, which guidance needs.
        guidance: Classifier-free guidance scale that suits it: 0 unconditional, 1 conditional, above 1 guided.
        illusion_guidance: The scale that suits several prompts in one picture.
        steps: Number of sampling steps that suits it; None: the sampler's own.
        source: What it draws from: "noise", an image with a "mask" (inpainting), or a "small" image (upscaling).
        latent: Whether it works on latents of a VAE rather than on pixels.
        grey: What the middle between black and white is in its samples, by channel; empty where it is 0.
        noise: What it was trained with: "normal", N(0, I), or "uniform" in [0, 1].
        one_step: It denoises in one call and has no timesteps.
        noise_level: Of a model that draws from a small image: the noise on that image that suits it, in timesteps.
        input_multiple: Of the same: what the sides of the small image are multiples of; 0 where its size is fixed.
        size_multiple: What the sides of its pictures are multiples of, where it draws other sizes, too; 0 where not.
        refit: What else changes with the size, of models that say so: takes what it is at a new size, and may refuse.
        record: What diffkit wrote of a model that it trained (`diffkit.json`); empty for others.
        vocabulary: Tokens of a model of captions that diffkit trained; None where nothing is known.
    """

    id: str
    revision: str | None
    family: str
    pipeline: str
    channels: int
    size: tuple[int, int]
    sample: tuple[int, int, int]
    network: Network
    scheduler: SchedulerMixin = field(repr=False)
    conditioning: Literal["none", "class", "text"] = "none"
    classes: tuple[str, ...] = field(default=(), repr=False)
    synonyms: Mapping[str, int] = field(default_factory=dict, repr=False)
    text_encoder: str = ""
    null: bool = False
    guidance: float = 1.0
    illusion_guidance: float = 1.0
    steps: int | None = None
    source: Literal["noise", "mask", "small"] = "noise"
    latent: bool = False
    grey: tuple[float, ...] = ()
    noise: NoiseKind = "normal"
    one_step: bool = False
    noise_level: int = 0
    input_multiple: int = 0
    size_multiple: int = 0
    refit: Callable[[ModelInfo], ModelInfo] | None = field(default=None, repr=False, compare=False)
    record: Mapping[str, Any] = field(default_factory=dict, repr=False)
    vocabulary: tuple[str, ...] | None = field(default=None, repr=False)

    @property
    def timesteps(self) -> int:
        """T, the number of levels of its noise schedule."""
        return int(self.scheduler.config.num_train_timesteps)

    def resized(self, height: int, width: int) -> ModelInfo:
        """Return what it is for pictures of another size, in pixels.

        Raises:
            UsageError: It draws no such size.
        """
        if (height, width) == self.size:
            return self
        size, unit = f"{width}x{height}", self.size_multiple
        if self.source == "small":
            raise UsageError(f"{self.id} enlarges a picture: its size follows from that one, and is not to be chosen")
        if not unit:
            raise UsageError(f"{self.id} draws {self.size[1]}x{self.size[0]} pixels only, not {size}")
        if height < 1 or width < 1 or height % unit or width % unit:
            raise UsageError(f"{self.id} draws pictures whose sides are multiples of {unit}, not {size}")
        factor = self.factor
        sample = (self.sample[0], height // factor, width // factor)
        other = replace(self, size=(height, width), sample=sample)
        return self.refit(other) if self.refit else other

    @property
    def factor(self) -> int:
        """Pixels per latent on each side; 1 for models of pixels."""
        return max(1, self.size[0] // self.sample[1]) if self.latent else 1

    @property
    def text(self) -> bool:
        """Whether it takes prompts."""
        return self.conditioning == "text"
