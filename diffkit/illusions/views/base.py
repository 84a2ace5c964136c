"""What every view shares: its registry, its canonical spelling, and the exact moving of pixels by a table.

The views themselves are in the other modules of this package. A view must be linear and orthogonal, or pure noise seen
through it is no longer N(0, I): Geng et al., arXiv:2311.17919, section 3.3.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from diffkit.errors import UsageError
from diffkit.registry import Registry, spell


class Look:
    """Base of all views: a frozen dataclass whose fields are its command-line arguments.

    Attributes:
        name: Its name in the registry.
        spatial: It only moves pixels; a learned variance moves with them.
        latent: "close": the latents of a convolutional autoencoder may be viewed in place of the picture, which is
            nearly the same; "decode": only the decoded picture can be viewed.
        square: It acts on squares only.
    """

    name: ClassVar[str]
    spatial: ClassVar[bool] = True
    latent: ClassVar[str] = "decode"
    square: ClassVar[bool] = True

    @property
    def spec(self) -> str:
        """The canonical spelling, with every argument and seed: `patch_permute:8,0`."""
        return spell(self)

    def check(self, size: int) -> None:
        """Do nothing if the view can act on size x size pixels.

        Raises:
            UsageError: It cannot; the message names a size that works.
        """

    def apply(self, x: Tensor) -> Tensor:
        """Look at (B, C, H, W), H = W where the view needs that, in this way."""
        raise NotImplementedError

    def invert(self, x: Tensor) -> Tensor:
        """Undo `apply`."""
        raise NotImplementedError

    def invert_var(self, v: Tensor) -> Tensor:
        """Undo `apply` for a learned variance, which moves with the pixels and has no sign."""
        return self.invert(v) if self.spatial else v

    def frame(self, image: Image.Image, progress: float) -> Image.Image:
        """Draw the way from the picture as it is to the picture seen through the view.

        Args:
            image: A picture, "L" or "RGB"; a square one where the view needs that.
            progress: 0 (the picture itself) to 1 (exactly what `apply` makes of it).

        Returns:
            A picture of the same size and mode, white where nothing is.

        Raises:
            UsageError: The picture is not square and has to be, or `check` refuses its size.
        """
        if self.square and image.width != image.height:
            raise UsageError(f"view {self.spec}: a picture of {image.width}x{image.height} pixels is not square")
        self.check(image.width)
        image = image if image.mode in ("L", "RGB") else image.convert("RGB")
        if progress <= 0.0:
            return image.copy()
        return self.viewed(image) if progress >= 1.0 else self.between(image, progress)

    def viewed(self, image: Image.Image) -> Image.Image:
        """Apply the view to a picture."""
        from diffkit.pictures.tensors import from_tensor, to_tensor

        return from_tensor(self.apply(to_tensor(image)))[0]

    def between(self, image: Image.Image, progress: float) -> Image.Image:
        """Draw a frame with 0 < progress < 1 of a picture that was checked."""
        raise NotImplementedError


class Moving(Look):
    """A view that moves pixels by a table: pixel i (row-major) of the view is pixel table[i] of the picture."""

    def table(self, size: int) -> Tensor:
        """Return the permutation for size x size pixels, (size * size,) int64; `check` has passed."""
        raise NotImplementedError

    def apply(self, x: Tensor) -> Tensor:
        return _gather(x, tables(self, side(self, x), x.device)[0])

    def invert(self, x: Tensor) -> Tensor:
        return _gather(x, tables(self, side(self, x), x.device)[1])


VIEWS: Registry[Look] = Registry("view")
MAX_SEED = 2**63 - 1  # as of pictures


def side(view: Look, x: Tensor) -> int:
    """Return the side of (..., H, W).

    Raises:
        UsageError: H is not W.
    """
    if x.shape[-1] != x.shape[-2]:
        raise UsageError(f"view {view.spec}: pictures of {x.shape[-1]}x{x.shape[-2]} pixels are not square")
    return int(x.shape[-1])


@lru_cache(maxsize=32)
def tables(view: Moving, size: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Return the permutation of a view at a size and its inverse, both (size * size,) int64."""
    view.check(size)
    forward = view.table(size)
    backward = torch.empty_like(forward)
    backward[forward] = torch.arange(size * size)
    return forward.to(device), backward.to(device)


def generator(seed: int) -> torch.Generator:
    """Return a CPU generator, so that a seed means the same permutation on every device."""
    return torch.Generator().manual_seed(seed)


def cuttable(view: Look, size: int, parts: int, field: str) -> None:
    """Do nothing if there is a pixel for each of the parts per side.

    Raises:
        UsageError: There is not; the message names a size and an argument that work.
    """
    if size >= parts:
        return
    hint = f"Use pictures of {parts} px or more" + (f", or {view.name}:{size}." if size > 1 else ".")
    raise UsageError(f"view {view.spec}: {size} px cannot be cut into {parts} {field} per side", hint)


def cornered(inner: Tensor, size: int) -> Tensor:
    """Extend a permutation of n x n pixels, n <= size, to size x size.

    The columns and rows that are left, at the right and at the bottom, stay where they are.
    """
    n = math.isqrt(inner.numel())
    if n == size:
        return inner
    table = torch.arange(size * size).view(size, size)
    table[:n, :n] = (inner // n * size + inner % n).view(n, n)
    return table.flatten()


def at_least(view: Look, field: str, value: Any, low: Any, high: Any) -> None:
    """Raise a UsageError unless low <= value <= high."""
    if not low <= value <= high:
        raise UsageError(f"view {view.name}: {field} is {value}; needed: {low} to {high}")


def _gather(x: Tensor, table: Tensor) -> Tensor:
    return x.flatten(-2).index_select(-1, table).view(x.shape)
