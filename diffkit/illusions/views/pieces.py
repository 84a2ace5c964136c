"""Views that cut the picture into pieces and put them somewhere else: patches, single pixels, a jigsaw, a user's file.

Every random order comes from a seed, the last argument. Geng et al., arXiv:2311.17919, section 3.4; reading a user's
file is in `files.py`, the outline of the jigsaw in `jigsaw.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import Tensor

from diffkit.illusions.views import files, frames, jigsaw
from diffkit.illusions.views.base import MAX_SEED, VIEWS, Moving, at_least, cornered, cuttable, generator, tables


class _Cells(Moving):
    """Equal square cells change places as they are; the order says from which cell each one is filled.

    Where they do not fill the picture, the rest at the right and at the bottom stays where it is.
    """

    def sources(self, size: int) -> Tensor:
        """Return the order of the cells, (count * count,) int64; count is at most size."""
        raise NotImplementedError

    def table(self, size: int) -> Tensor:
        return files.enlarge(self.sources(size), size)

    def between(self, image: Image.Image, progress: float) -> Image.Image:
        return frames.moved(image, tables(self, image.width)[0].numpy(), progress)


@VIEWS.register("patch_permute")
@dataclass(frozen=True)
class PatchPermute(_Cells):
    """Square patches change places at random; `patches` is their number per side.

    Their side is the picture's divided by that number, rounded down; the columns and rows that are left at the right
    and at the bottom stay where they are.
    """

    patches: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(self, "patches", self.patches, 2, 1024)
        at_least(self, "seed", self.seed, 0, MAX_SEED)

    def check(self, size: int) -> None:
        cuttable(self, size, self.patches, "patches")

    def sources(self, size: int) -> Tensor:
        """Return the order of the patches; it does not depend on the size."""
        return torch.randperm(self.patches**2, generator=generator(self.seed))


@VIEWS.register("pixel_permute")
@dataclass(frozen=True)
class PixelPermute(_Cells):
    """Single pixels change places at random; pictures of more than `cells` pixels per side move in blocks.

    A block is as small as it can be with at most `cells` of them per side; what is left of the picture, less than a
    block at the right and at the bottom, stays where it is. The order belongs to the number of blocks per side.
    """

    cells: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(self, "cells", self.cells, 2, 1024)
        at_least(self, "seed", self.seed, 0, MAX_SEED)

    def sources(self, size: int) -> Tensor:
        """Return the order of the blocks; the same at every multiple of `cells`."""
        # Not `cells` blocks at every size: at 127 px 63 of 127 rows and columns would stay where they are.
        block = -(-size // self.cells)
        return torch.randperm((size // block) ** 2, generator=generator(self.seed))


@VIEWS.register("jigsaw")
@dataclass(frozen=True)
class Jigsaw(Moving):
    """Interlocking pieces, `pieces` per side, trade places with those of the same outline, turned to fit.

    Below about 8 pixels per piece the tabs are too small for the pixels, and the pieces are squares. Where the pieces
    do not fill the picture, the columns and rows that are left at the right and at the bottom stay where they are.
    """

    pieces: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(self, "pieces", self.pieces, 2, 32)
        at_least(self, "seed", self.seed, 0, MAX_SEED)

    def check(self, size: int) -> None:
        cuttable(self, size, self.pieces, "pieces")

    def table(self, size: int) -> Tensor:
        whole = size - size % self.pieces
        return cornered(torch.from_numpy(jigsaw.table(whole, self.pieces, self.seed)), size)

    def between(self, image: Image.Image, progress: float) -> Image.Image:
        whole, result = image.width - image.width % self.pieces, image.copy()
        result.paste(jigsaw.drawn(image.crop((0, 0, whole, whole)), self.pieces, self.seed, progress), (0, 0))
        return result


@VIEWS.register("permutation")
@dataclass(frozen=True)
class Permutation(_Cells):
    """Your own permutation of the pixels, from a .npy or .png file.

    Pixel i of the view, counted row by row, is pixel order[i] of the picture. A .npy file holds the order as integers,
    (H * W,) or (H, W) with H = W. A .png file is an RGB picture of H x W pixels whose colours are the order,
    red + 256 * green + 65536 * blue. A picture whose side is a multiple of H moves in blocks; a smaller one can be
    viewed where whole blocks of the order stay together.
    """

    path: str
    digest: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", files.digest(self.order))

    @property
    def order(self) -> Tensor:
        """The order as the file holds it, (H * W,) int64.

        Raises:
            DataError: No such file, unreadable, or no permutation; the message says why.
        """
        found = self.__dict__.get("_order")
        if found is None:
            found = self.__dict__["_order"] = files.read_order(self.path)
        return found

    @property
    def side(self) -> int:
        """The side of the pictures that the file is made for."""
        return math.isqrt(self.order.numel())

    def check(self, size: int) -> None:
        """Refuse a size that the file's neither divides nor can be reduced to."""
        files.fit(self.order, size, self.path)

    def sources(self, size: int) -> Tensor:
        """Return the order, reduced if the picture is smaller than the file's."""
        return files.fit(self.order, size, self.path)
