"""The nouns of diffkit: what a denoiser takes and gives, what a model is asked, and the maps of pictures.

Everything is a `Denoiser`, `(x, t, cond) -> Prediction`; guidance, anagrams and hybrids are functions from one denoiser
to another that work on the batch axis. A model is a denoiser with a `ModelInfo` (`model_info.py`). This module holds no
behaviour beyond the batch axis of `Cond`, and importing it imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from diffkit.model_info import ModelInfo as ModelInfo
from diffkit.model_info import Network as Network

if TYPE_CHECKING:
    import torch
    from diffusers.schedulers.scheduling_utils import SchedulerMixin
    from PIL import Image
    from torch import Tensor


@dataclass(frozen=True)
class Prediction:
    """What a denoiser says of a noisy batch.

    Attributes:
        out: (B, C, H, W), in the parameterization the model was trained in (epsilon, v, x0 or flow velocity).
        var: (B, C, H, W) in [-1, 1], the learned-range variance of Improved DDPM (arXiv:2102.09672, eq. 15), or None.
    """

    out: Tensor
    var: Tensor | None = None


@dataclass(frozen=True)
class Cond:
    """Conditioning: tensors by name, all with the batch as their first axis.

    The names belong to the model family (`class_labels`, `encoder_hidden_states`, ...). An unconditional model takes
    the empty `Cond()`, which fits every batch size.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    @staticmethod
    def cat(conds: Sequence[Cond]) -> Cond:
        """Join conditions along the batch axis; all must hold the same names."""
        import torch

        names = set(conds[0].tensors)
        if any(set(c.tensors) != names for c in conds):
            raise ValueError(f"conditions with different parts cannot be joined: {[sorted(c.tensors) for c in conds]}")
        return Cond({name: torch.cat([c.tensors[name] for c in conds]) for name in conds[0].tensors})

    def join(self, other: Cond) -> Cond:
        """Return the parts of both (a prompt and an image); one of batch size 1 is repeated to fit the other."""
        rows = max((v.shape[0] for c in (self, other) for v in c.tensors.values()), default=1)
        return Cond({**self.expand(rows).tensors, **other.expand(rows).tensors})

    def expand(self, batch: int) -> Cond:
        """Repeat a condition of batch size 1 to `batch` rows; one that has `batch` rows already is returned."""
        return Cond({k: v if v.shape[0] == batch else v.expand(batch, *v.shape[1:]) for k, v in self.tensors.items()})

    def rows(self, start: int, stop: int) -> Cond:
        """Return rows start..stop-1."""
        return Cond({k: v[start:stop] for k, v in self.tensors.items()})

    def to(self, *args: Any, **kwargs: Any) -> Cond:
        """Move every tensor as `Tensor.to` does; integer tensors keep their dtype."""

        def move(v: Tensor) -> Tensor:
            moved = v.to(*args, **kwargs)
            return moved if v.is_floating_point() else moved.to(v.dtype)

        return Cond({k: move(v) for k, v in self.tensors.items()})


@dataclass(frozen=True)
class Step:
    """One step of the sampling loop, after it was taken.

    Attributes:
        index: 0-based position in the list of timesteps.
        total: Number of timesteps of the whole loop.
        t: The timestep the prediction was made at, shape ().
        x: (B, C, H, W), the sample after the step.
        x0: (B, C, H, W), the clean estimate the step was based on, or None where the scheduler gives none.
    """

    index: int
    total: int
    t: Tensor
    x: Tensor
    x0: Tensor | None = None


class Denoiser(Protocol):
    """Anything that predicts, from x (B, C, H, W) at timestep t (shape () or (B,)), what its scheduler steps with."""

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Prediction: ...


class Codec(Protocol):
    """The way between images and the space the diffusion runs in; the identity for pixel models."""

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3 or 1, H, W) in [-1, 1] -> x0 (B, C, h, w)."""

    def decode(self, x0: Tensor) -> Tensor:
        """x0 (B, C, h, w) -> (B, 3 or 1, H, W) in [-1, 1]."""


class Model(Denoiser, Protocol):
    """A model family's denoiser together with its scheduler, codec and prompt encoder."""

    @property
    def info(self) -> ModelInfo:
        """What it is."""

    @property
    def scheduler(self) -> SchedulerMixin:
        """The scheduler that pictures are drawn with unless another one is asked for."""

    @property
    def codec(self) -> Codec:
        """The way between its samples and pictures."""

    @property
    def device(self) -> torch.device:
        """Where it runs."""

    @property
    def row_limit(self) -> int | None:
        """Most rows in one network call that its memory plan allows; None for no limit."""

    @property
    def parameters(self) -> int:
        """Number of the network's parameters."""

    @property
    def encode_seconds(self) -> float:
        """Time spent on encoding prompts so far."""

    def noise(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Draw N(0, I), (len(generators), C, h, w) fp32 on its device, one sample per generator."""

    def encode(self, prompts: Sequence[str | None]) -> Cond:
        """One condition per prompt (or class name), batch size len(prompts); None or "" is the empty one."""

    def uncond(self, batch: int) -> Cond:
        """The empty condition for `batch` rows, what guidance needs."""

    def screen(self, images: Tensor) -> tuple[Tensor, list[bool]]:
        """Let a safety checker judge (B, 3, H, W) in [-1, 1]: those flagged turned black, and which they are."""

    def at(self, height: int, width: int) -> Model:
        """This model for samples of another size, sharing all weights.

        Raises:
            UsageError: Its size is fixed.
        """

    def image_cond(
        self, images: Tensor, generators: Sequence[torch.Generator], *, mask: Tensor | None = None, noise_level: int = 0
    ) -> Cond:
        """What a model that draws from an image is told of it; see `ModelInfo.source`.

        Args:
            images: (B, 3, H, W) in [-1, 1]: of the picture's size ("mask"), or the small image ("small").
            generators: One per image.
            mask: (B, 1, H, W) in [0, 1], white (1) is repainted; for "mask".
            noise_level: Noise on the small image, in timesteps; for "small".

        Raises:
            UsageError: It draws from noise alone, or the level is out of range.
        """


class View(Protocol):
    """A linear, orthogonal map of pictures and latents: `invert(apply(x)) == x` and `norm(apply(x)) == norm(x)`.

    Anything else (blur, bilinear rotation, brightness) would turn N(0, I) into noise that no network knows.
    `diffkit.illusions.views.Look` is a base that has what most views share.
    """

    @property
    def name(self) -> str:
        """Its name in the registry; "identity" is the picture as it is."""

    @property
    def spatial(self) -> bool:
        """Whether it only moves pixels: then it may act on latents, and a learned variance moves with them."""

    @property
    def latent(self) -> str:
        """Whether latents of a convolutional VAE may be viewed in place of the picture: "close", else "decode"."""

    @property
    def square(self) -> bool:
        """Whether it acts on squares only."""

    def __hash__(self) -> int: ...

    def check(self, size: int) -> None:
        """Refuse, with a `UsageError`, a side that it cannot act on."""

    def apply(self, x: Tensor) -> Tensor:
        """Look at (B, C, H, W) in this way."""

    def invert(self, x: Tensor) -> Tensor:
        """Undo `apply`."""

    def invert_var(self, v: Tensor) -> Tensor:
        """Undo `apply` for a learned variance: as `invert`, but a change of sign leaves it alone."""

    @property
    def spec(self) -> str:
        """How the view is written on the command line and in a picture's metadata, with its seed: `jigsaw:4,0`."""

    def frame(self, image: Image.Image, progress: float) -> Image.Image:
        """Draw the way from the picture itself (progress 0) to the picture seen through the view (1)."""


class Filter(Protocol):
    """A split of pictures into linear parts that sum to the identity: low and high frequencies, grey and colour.

    `diffkit.illusions.filters.Split` is a base that has what most filters share.
    """

    @property
    def spec(self) -> str:
        """How the filter is written on the command line and in a picture's metadata: `low_high:2`."""

    @property
    def part_names(self) -> tuple[str, ...]:
        """What its parts are called, in their order."""

    @property
    def apart(self) -> str:
        """How its parts are told apart: by "distance", by "fading", or "never"."""

    def check(self, channels: int, height: int | None = None, width: int | None = None) -> None:
        """Refuse, with a `UsageError`, colours or a size that it cannot split; squares where no width is given."""

    def about(self, channels: int, height: int, width: int | None = None) -> list[str]:
        """Say what is to be known of its parts at a size: those that are nearly empty."""

    def leaving(self, x: Tensor, progress: float) -> Tensor:
        """Draw the way from (B, C, H, W) (progress 0) to its first part (1)."""

    @property
    def parts(self) -> int:
        """Number of parts."""

    def part(self, x: Tensor, k: int) -> Tensor:
        """Return part k of (B, C, H, W), of the same shape; the sum over all k is x."""
