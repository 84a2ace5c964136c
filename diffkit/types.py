"""The nouns of diffkit: what a denoiser takes and gives.

Everything is a `Denoiser`, `(x, t, cond) -> Prediction`; guidance, anagrams and hybrids are functions from one
denoiser to another that work on the batch axis. This module holds no behaviour beyond the batch axis of `Cond`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image


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
        ...

    def decode(self, x0: Tensor) -> Tensor:
        """x0 (B, C, h, w) -> (B, 3 or 1, H, W) in [-1, 1]."""
        ...


class Model(Denoiser, Protocol):
    """A model family's denoiser together with its scheduler, codec and prompt encoder."""

    shape: tuple[int, int, int]
    scheduler: Any
    codec: Codec

    def encode(self, prompts: Sequence[str]) -> Cond:
        """One condition per prompt (or class name), batch size len(prompts)."""
        ...


class View(Protocol):
    """A linear, orthogonal map of pictures and latents: `invert(apply(x)) == x` and `norm(apply(x)) == norm(x)`.

    Anything else (blur, bilinear rotation, brightness) would turn N(0, I) into noise that no network knows.
    """

    def apply(self, x: Tensor) -> Tensor:
        """Look at (B, C, H, W) in this way."""
        ...

    def invert(self, x: Tensor) -> Tensor:
        """Undo `apply`."""
        ...

    def invert_var(self, v: Tensor) -> Tensor:
        """Undo `apply` for a learned variance: as `invert`, but a change of sign leaves it alone."""
        ...

    @property
    def spec(self) -> str:
        """How the view is written on the command line and in a picture's recipe, with its seed: `jigsaw:4,0`."""
        ...

    def frame(self, image: Image.Image, progress: float) -> Image.Image:
        """Draw the way from the picture itself (progress 0) to the picture seen through the view (1)."""
        ...


class Filter(Protocol):
    """A split of pictures into linear parts that sum to the identity: low and high frequencies, grey and colour."""

    @property
    def parts(self) -> int:
        """Number of parts."""
        ...

    def part(self, x: Tensor, k: int) -> Tensor:
        """Return part k of (B, C, H, W), of the same shape; the sum over all k is x."""
        ...
