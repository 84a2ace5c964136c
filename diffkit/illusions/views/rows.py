"""Views that act on the whole picture: turns, the flip, the negative, the skew, the turned disc, the hinged squares.

All follow Geng et al., arXiv:2311.17919, section 3.4, and each is an exact permutation of the pixels (or of their
signs) at every size. Views made of many pieces are in `pieces.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from PIL import Image
from torch import Tensor

from diffkit.errors import UsageError
from diffkit.illusions.views import frames
from diffkit.illusions.views.base import VIEWS, Look, Moving, at_least, side


@VIEWS.register("identity")
@dataclass(frozen=True)
class Identity(Look):
    """The picture as it is."""

    latent: ClassVar[str] = "close"
    square: ClassVar[bool] = False

    def apply(self, x: Tensor) -> Tensor:
        return x

    def invert(self, x: Tensor) -> Tensor:
        return x

    def between(self, image: Image.Image, progress: float) -> Image.Image:
        return image.copy()


@VIEWS.register("flip")
@dataclass(frozen=True)
class Flip(Look):
    """Mirrored, top to bottom."""

    latent: ClassVar[str] = "close"
    square: ClassVar[bool] = False

    def apply(self, x: Tensor) -> Tensor:
        return x.flip(-2)

    def invert(self, x: Tensor) -> Tensor:
        return x.flip(-2)

    def between(self, image: Image.Image, progress: float) -> Image.Image:
        return frames.turned_over(image, self.viewed(image), progress)


class _Turn(Look):
    """A turn by whole quarters, clockwise."""

    latent: ClassVar[str] = "close"
    quarters: ClassVar[int]

    def apply(self, x: Tensor) -> Tensor:
        if self.square:
            side(self, x)
        return torch.rot90(x, -self.quarters, (-2, -1))

    def invert(self, x: Tensor) -> Tensor:
        if self.square:
            side(self, x)
        return torch.rot90(x, self.quarters, (-2, -1))

    def between(self, image: Image.Image, progress: float) -> Image.Image:
        """Turn, drawn smaller so that no corner leaves the frame."""
        return frames.turned(image, 90.0 * self.quarters * progress, 90.0 * self.quarters)


@VIEWS.register("rotate_cw")
@dataclass(frozen=True)
class RotateCw(_Turn):
    """Turned by 90 degrees, clockwise."""

    quarters: ClassVar[int] = 1


@VIEWS.register("rotate_ccw")
@dataclass(frozen=True)
class RotateCcw(_Turn):
    """Turned by 90 degrees, counter-clockwise."""

    quarters: ClassVar[int] = -1


@VIEWS.register("rotate_180")
@dataclass(frozen=True)
class Rotate180(_Turn):
    """Turned upside down."""

    square: ClassVar[bool] = False
    quarters: ClassVar[int] = 2


@VIEWS.register("negate")
@dataclass(frozen=True)
class Negate(Look):
    """The negative: black and white, and all colours, are exchanged."""

    square: ClassVar[bool] = False

    spatial: ClassVar[bool] = False

    def apply(self, x: Tensor) -> Tensor:
        return -x

    def invert(self, x: Tensor) -> Tensor:
        return -x

    def between(self, image: Image.Image, progress: float) -> Image.Image:
        return frames.faded(image, self.viewed(image), progress)


@VIEWS.register("skew")
@dataclass(frozen=True)
class Skew(Moving):
    """Every column slides down, around the edge, by `factor` times its distance from the middle.

    The shift is cut to whole pixels, towards zero, and grows with the size, so that pictures of all sizes look alike.
    """

    factor: float = 1.5

    def __post_init__(self) -> None:
        at_least(self, "factor", self.factor, -64.0, 64.0)

    def shifts(self, size: int) -> Tensor:
        """Return by how many pixels each column slides, (size,) int64."""
        return torch.tensor([math.trunc(self.factor * (column - size // 2)) for column in range(size)])

    def table(self, size: int) -> Tensor:
        rows, columns = torch.arange(size)[:, None], torch.arange(size)[None]
        return ((rows - self.shifts(size)[None]) % size * size + columns).flatten()

    def between(self, image: Image.Image, progress: float) -> Image.Image:
        return frames.columns_slid(image, self.shifts(image.width).numpy(), progress)


@VIEWS.register("inner_circle")
@dataclass(frozen=True)
class InnerCircle(Moving):
    """A disc in the middle is turned upside down; `radius` is a fraction of the side, up to 0.5."""

    radius: float = 0.375

    def __post_init__(self) -> None:
        at_least(self, "radius", self.radius, 0.0, 0.5)

    def table(self, size: int) -> Tensor:
        axis = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
        inside = (axis[:, None] ** 2 + axis[None] ** 2 < (self.radius * size) ** 2).flatten()
        still = torch.arange(size * size)
        return torch.where(inside, still.flip(0), still)

    def between(self, image: Image.Image, progress: float) -> Image.Image:
        return frames.disc_turned(image, self.radius, 180.0 * progress)


@VIEWS.register("square_hinge")
@dataclass(frozen=True)
class SquareHinge(Moving):
    """Nine squares, hinged at their corners, swing by 90 degrees: every other one the other way round.

    The side of a square is a third of the picture's, rounded down; the one or two rows and columns that are left at the
    bottom and at the right stay where they are.
    """

    def check(self, size: int) -> None:
        if size < 3:
            raise UsageError(f"view {self.spec}: {size} px cannot be cut into nine squares", "Use 3 px or more.")

    def table(self, size: int) -> Tensor:
        square = size // 3
        index = torch.arange(size * size).view(size, size)
        moved = index.clone()
        for i in range(3):
            for j in range(3):
                place = (slice(i * square, (i + 1) * square), slice(j * square, (j + 1) * square))
                moved[place] = torch.rot90(index[place], 1 if (i + j) % 2 else -1, (0, 1))
        return moved.flatten()

    def between(self, image: Image.Image, progress: float) -> Image.Image:
        return frames.hinged(image, 90.0 * progress)
