"""Splits of a picture into parts that sum to it: low and high frequencies, grey and colour, motion and the rest.

A hybrid takes each part of the *prediction* from another prompt; the input of the network is never filtered (Geng et
al., Factorized Diffusion, arXiv:2404.11615). One frozen dataclass per split, its fields are its command-line
arguments (`low_high:2`). Lengths are counted in pixels of a picture 64 wide, and grow with the picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diffkit.errors import UsageError
from diffkit.illusions.blur import BASE, add_shifted, blur, line_weights
from diffkit.registry import Registry, spell

_FAINT = 0.05  # of a picture: below, nobody sees what a prompt puts into a part
_NOTHING = 1e-6  # about the rounding of single precision


class Split:
    """Base of all filters: a frozen dataclass whose fields are its command-line arguments.

    Attributes:
        name: Its name in the registry.
        part_names: What the parts are called, in their order.
        apart: How one who looks tells the parts apart: by "distance" (the first is seen from afar, the last from near),
            by "fading" (the first is left as the others fade), or "never".
        latent: "close": latents may be split in place of the picture; "decode": only the decoded picture, as of views.
    """

    name: ClassVar[str]
    apart: ClassVar[str] = "fading"
    latent: ClassVar[str] = "close"
    part_names: ClassVar[tuple[str, ...]] = ()

    @property
    def parts(self) -> int:
        """Number of parts."""
        return len(self.part_names)

    @property
    def spec(self) -> str:
        """The canonical spelling with every argument: `low_high:2`."""
        return spell(self)

    def check(self, channels: int, height: int | None = None, width: int | None = None) -> None:
        """Do nothing if pictures (or latents) of so many channels, and of this size, can be split.

        Args:
            channels: Of the pictures.
            height: Of the pictures, pixels; the channels alone are looked at when left out.
            width: The same as the height when left out.

        Raises:
            UsageError: They cannot: the number of channels, or a part that is empty at this size.
        """
        if height is None:
            return
        for k in range(self.parts):
            if self.passed(k, channels, height, width) < _NOTHING:
                text = f"filter {self.spec}: part {k} ({self.part_names[k]}) is empty at {_size(height, width)} px"
                raise UsageError(text, f"Its prompt would not be seen. {_OTHERWISE}")

    def about(self, channels: int, height: int, width: int | None = None) -> list[str]:
        """Return what is to be said at a size that `check` has passed: a sentence for each nearly empty part."""
        found = [(k, self.passed(k, channels, height, width)) for k in range(self.parts)]
        return [
            f"filter {self.spec}: part {k} ({self.part_names[k]}) is nearly empty at {_size(height, width)} px, its"
            f" prompt will hardly be seen (it holds {max(share, 0.001):.1%} of a picture at most). {_OTHERWISE}"
            for k, share in found
            if share < _FAINT
        ]

    def passed(self, k: int, channels: int, height: int, width: int | None = None) -> float:
        """Estimate the largest share of any picture's length that part k keeps, 0 to about 1; exact only if small."""
        dice = torch.Generator().manual_seed(0)
        x = torch.randn(1, channels, height, width or height, generator=dice)
        share = 0.0
        # White noise is not enough: a strong blur leaves little of it, and yet the whole of a flat picture. Power
        # iteration goes from the noise to what the part keeps best.
        for _ in range(8):
            kept = self.part(x, k)
            share = max(share, float(kept.norm() / x.norm()))
            if share >= _FAINT or share < _NOTHING:
                break
            x = kept / kept.norm()
        return share

    def part(self, x: Tensor, k: int) -> Tensor:
        """Return part k of (B, C, H, W), of the same shape and dtype; the sum over all k is x.

        Raises:
            UsageError: There is no part k.
        """
        if not 0 <= k < self.parts:
            raise UsageError(f"filter {self.spec} has the parts 0 to {self.parts - 1}, not {k}")
        # Half precision would leave more than rounding between the sum of the parts and x.
        wide = x if x.dtype == torch.float64 else x.float()
        return self.compute(wide, k).to(x.dtype)

    def compute(self, x: Tensor, k: int) -> Tensor:
        """Return part k of x, which is in single or double precision."""
        raise NotImplementedError

    def leaving(self, x: Tensor, progress: float) -> Tensor:
        """Draw the way from (B, C, H, W) to its first part: the parts fade one after the other, the last one first.

        Args:
            x: Pictures.
            progress: 0 (x itself) to 1 (`part(x, 0)`); after k of n - 1 equal stretches the last k parts are gone.
        """
        left = (1.0 - progress) * (self.parts - 1)
        kept = [(k, min(1.0, left - (k - 1))) for k in range(1, self.parts) if left > k - 1]
        return sum((share * self.part(x, k) for k, share in kept), self.part(x, 0))


FILTERS: Registry[Split] = Registry("filter")
_OTHERWISE = "Give other arguments, another filter, or a model of larger pictures."


def parse_filter(spec: str) -> Split:
    """Make a filter from `name` or `name:arg1,arg2`.

    Raises:
        UsageError: Unknown name, or a wrong argument.
    """
    return FILTERS.parse(spec)


@FILTERS.register("low_high")
@dataclass(frozen=True)
class LowHigh(Split):
    """What is seen from afar (a Gaussian blur of `sigma` pixels at 64) and what is left, seen from near.

    Source: Geng et al., arXiv:2404.11615; Oliva et al., Hybrid images, 2006.
    """

    sigma: float = 2.0
    part_names: ClassVar[tuple[str, ...]] = ("low", "high")
    apart: ClassVar[str] = "distance"

    def __post_init__(self) -> None:
        _within(self, "sigma", self.sigma, 0.05, 64.0)

    def compute(self, x: Tensor, k: int) -> Tensor:
        low = blur(x, self.sigma)
        return low if k == 0 else x - low


@FILTERS.register("triple")
@dataclass(frozen=True)
class Triple(Split):
    """Three bands: a blur of `sigma_1` cuts the high one off, a further blur of `sigma_2` parts middle and low.

    Source: Geng et al., arXiv:2404.11615, triple hybrids.
    """

    sigma_1: float = 1.0
    sigma_2: float = 2.0
    part_names: ClassVar[tuple[str, ...]] = ("low", "middle", "high")
    apart: ClassVar[str] = "distance"

    def __post_init__(self) -> None:
        _within(self, "sigma_1", self.sigma_1, 0.05, 64.0)
        _within(self, "sigma_2", self.sigma_2, 0.05, 64.0)

    def compute(self, x: Tensor, k: int) -> Tensor:
        below = blur(x, self.sigma_1)
        if k == 2:
            return x - below
        low = blur(below, self.sigma_2)
        return low if k == 0 else below - low


@FILTERS.register("grey_colour")
@dataclass(frozen=True)
class GreyColour(Split):
    """Brightness (the mean of the channels, seen in the dark) and colour (the difference, seen in the light).

    Source: Geng et al., arXiv:2404.11615.
    """

    latent: ClassVar[str] = "decode"
    part_names: ClassVar[tuple[str, ...]] = ("grey", "colour")

    def check(self, channels: int, height: int | None = None, width: int | None = None) -> None:
        """Refuse anything but three channels; these are full at every size."""
        if channels != 3:
            text = f"filter {self.spec} splits pictures of 3 channels, not of {channels}"
            raise UsageError(text, "Use a model that draws RGB pixels, or another filter.")

    def compute(self, x: Tensor, k: int) -> Tensor:
        self.check(x.shape[-3])
        grey = x.mean(-3, keepdim=True).expand_as(x)
        return grey if k == 0 else x - grey


@FILTERS.register("motion")
@dataclass(frozen=True)
class Motion(Split):
    """What is seen as the picture moves (a mean along a line) and the rest.

    The line is `length` pixels long at 64, counted along the axis it is nearer to, made odd; `angle` is in degrees,
    clockwise from the horizontal: 45 goes from the top left to the bottom right. Outside the picture are zeros. A line
    of more than 1 takes in the nearest pixels at every size, or small pictures would not move.

    Source: Geng et al., arXiv:2404.11615.
    """

    length: float = 7.0
    angle: float = 45.0
    part_names: ClassVar[tuple[str, ...]] = ("moving", "still")

    def __post_init__(self) -> None:
        _within(self, "length", self.length, 1.0, 63.0)
        _within(self, "angle", self.angle, -360.0, 360.0)

    def compute(self, x: Tensor, k: int) -> Tensor:
        moved = self._moved(x, self._half(x))
        return moved if k == 0 else x - moved

    def leaving(self, x: Tensor, progress: float) -> Tensor:
        """Draw the way from a picture at rest to one that moves: the line grows.

        To be looked at, the edges go on outside; in `part` they do not, and a picture of white paper gets a grey frame.
        """
        half, edge = progress * self._half(x), self._half(x)
        if not edge:
            return x
        whole, wide = int(half), torch.nn.functional.pad(x, (edge,) * 4, mode="replicate")
        moved = self._moved(wide, whole)
        if half > whole:
            moved = torch.lerp(moved, self._moved(wide, whole + 1), half - whole)
        return moved[..., edge:-edge, edge:-edge]

    def _half(self, x: Tensor) -> int:
        """Pixels to each side of the middle one."""
        return max(int(self.length > 1.0), int(self.length * x.shape[-1] / BASE) // 2)

    def _moved(self, x: Tensor, half: int) -> Tensor:
        moved = torch.zeros_like(x)
        for (dy, dx), weight in line_weights(half, self.angle).items():
            add_shifted(moved, x, dy, dx, weight)
        return moved


@FILTERS.register("scale")
@dataclass(frozen=True)
class Scale(Split):
    """The picture times `share`, and times 1 - `share`: two prompts mixed with weights.

    Source: Geng et al., arXiv:2404.11615; with a share equal to a guidance scale it is classifier-free guidance.
    """

    share: float = 0.5
    part_names: ClassVar[tuple[str, ...]] = ("first", "second")
    apart: ClassVar[str] = "never"

    def __post_init__(self) -> None:
        _within(self, "share", self.share, -100.0, 100.0)

    def compute(self, x: Tensor, k: int) -> Tensor:
        return self.share * x if k == 0 else x - self.share * x


def _within(row: Split, name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UsageError(f"filter {row.name}: {name} is {value}; needed: {low:g} to {high:g}")


def _size(height: int, width: int | None) -> str:
    return f"{height}" if width in (None, height) else f"{width}x{height}"
