"""What every view shares: its registry, its canonical spelling, and the exact moving of pixels by a table.

The views themselves are in the other modules of this package. A view must be linear and orthogonal, or pure noise seen
through it is no longer N(0, I): Geng et al., arXiv:2311.17919, section 3.3.
"""

from __future__ import annotations

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
    """

    name: ClassVar[str]
    spatial: ClassVar[bool] = True
    latent: ClassVar[str] = "decode"

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
        """Look at (B, C, H, W), H = W, in this way."""
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
            image: A square picture, "L" or "RGB".
            progress: 0 (the picture itself) to 1 (exactly what `apply` makes of it).

        Returns:
            A picture of the same size and mode, white where nothing is.

        Raises:
            UsageError: The picture is not square, or `check` refuses its size.
        """
        if image.width != image.height:
            raise UsageError(f"view {self.spec}: a picture of {image.width}x{image.height} pixels is not square")
        self.check(image.width)
        image = image if image.mode in ("L", "RGB") else image.convert("RGB")
        if progress <= 0.0:
            return image.copy()
        return self.seen(image) if progress >= 1.0 else self.between(image, progress)

    def seen(self, image: Image.Image) -> Image.Image:
        """Apply the view to a picture."""
        from diffkit.images import from_tensor, to_tensor

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
        """Look at (B, C, H, W), H = W, in this way."""
        return _gather(x, tables(self, side(self, x), x.device)[0])

    def invert(self, x: Tensor) -> Tensor:
        """Undo `apply`."""
        return _gather(x, tables(self, side(self, x), x.device)[1])


VIEWS: Registry[Look] = Registry("view")


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


def divide(view: Look, size: int, parts: int, field: str) -> int:
    """Return size // parts.

    Raises:
        UsageError: It leaves a rest; the message names a size and an argument that work.
    """
    if size % parts == 0 and size >= parts:
        return size // parts
    other = max(n for n in range(1, parts + 1) if size % n == 0)
    near = max(1, round(size / parts)) * parts
    hint = f"Use pictures of {near} px" + (f", or {view.name}:{other}." if other > 1 else ".")
    raise UsageError(f"view {view.spec}: {size} px cannot be cut into {parts} equal {field} per side", hint)


def at_least(view: Look, field: str, value: Any, low: Any, high: Any) -> None:
    """Raise a UsageError unless low <= value <= high."""
    if not low <= value <= high:
        raise UsageError(f"view {view.name}: {field} is {value}; needed: {low} to {high}")


def _gather(x: Tensor, table: Tensor) -> Tensor:
    return x.flatten(-2).index_select(-1, table).view(x.shape)
