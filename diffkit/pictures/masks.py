"""Masks: what a user's mask file means, decided once. White is repainted, black is kept.

- A file with transparent pixels says by these what is repainted, whatever its colours are: so do the eraser of an
  editor, ComfyUI's `LoadImage` (mask = 1 - alpha) and InvokeAI. (Where AUTOMATIC1111's web UI reads the alpha the other
  way round, it is that of strokes drawn over the image; `invert` serves these.)
- A picture in two colours is white where it is nearer to the brighter of them.
- In any other file the brightness counts; grey is repainted in the later steps only. If nothing in it is bright, as in
  a file of the labels 0 and 1, the values are stretched.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from diffkit.errors import UsageError
from diffkit.pictures.images import LUMA, cut, decoded
from diffkit.pictures.modes import eight_bits, has_alpha, is_deep, scaled

if TYPE_CHECKING:
    from torch import Tensor

LOG = logging.getLogger("diffkit.pictures.masks")

NEAR = 0.03  # how far from black or white a JPEG puts what was black or white
_DIM = 140.0  # of 255: what is brighter was meant to be
_GAUDY = 40  # difference of the channels of a pixel, from which on it has a colour
_BIN = 32  # width of the bins in which the main colours are looked for
_APART, _CLOSE, _SHARE = 96.0, 48.0, 0.97  # two colours, the pixels that have them, and how many have to

Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Mask:
    """A user's mask as it was read.

    Attributes:
        image: Grey ("L"): white is repainted, black is kept, grey is repainted in the later steps.
        line: How it was read, where that is not plain; "" else.
        ambiguous: Whether it could be read otherwise as well.
    """

    image: Image.Image
    line: str = ""
    ambiguous: bool = False


def read_mask(
    source: str | os.PathLike[str] | IO[bytes] | bytes | Image.Image, invert: bool = False, *, name: str | None = None
) -> Mask:
    """Open a user's mask, and decide what it means as the module's docstring says.

    Args:
        source: A path, an open binary file, the encoded bytes, or an image.
        invert: Turn the mask round.
        name: What errors and the line call it; the path when left out.

    Raises:
        DataError: As `open_image`.
    """
    label = name or (str(source) if isinstance(source, (str, os.PathLike)) else "the mask")
    if isinstance(source, Image.Image):
        return _read(source, invert, label)
    return decoded(source, lambda image: _read(image, invert, label), name=label)


def open_mask(
    source: str | os.PathLike[str] | IO[bytes] | bytes | Image.Image, invert: bool = False, *, name: str | None = None
) -> Image.Image:
    """Open a user's mask as grey ("L"), and log how it was read, where that is not plain; else as `read_mask`."""
    mask = read_mask(source, invert, name=name)
    if mask.line:
        LOG.log(logging.WARNING if mask.ambiguous else logging.INFO, "%s", mask.line)
    return mask.image


def check_mask_size(mask: Image.Image, image: Image.Image) -> None:
    """Refuse a mask of another size than the image's.

    Raises:
        UsageError: Another size.
    """
    if mask.size != image.size:
        (w, h), (width, height) = mask.size, image.size
        raise UsageError(f"`mask` is {w}x{h} pixels, the image {width}x{height}", "Give a mask of the image's size.")


def one_sided(mask: Image.Image) -> str | None:
    """Say that a mask asks for nothing or for everything; None for any other."""
    low, high = _range(mask)
    if high < NEAR * 255:
        return "the mask is black everywhere: nothing is repainted (`invert_mask` turns it round)"
    if low > (1 - NEAR) * 255:
        return "the mask is white everywhere: nothing of the image is kept (`invert_mask` turns it round)"
    return None


def cut_mask(mask: Image.Image, width: int, height: int) -> Tensor:
    """Cut a mask to a size, (1, 1, H, W) in [0, 1]; one without grey stays so.

    Nearly black and nearly white are made black and white.
    """
    import torch

    from diffkit.pictures.tensors import to_tensor

    whole = to_tensor(mask.convert("L"))
    hard = bool((whole.abs() == 1).all())
    soft = (to_tensor(cut(mask.convert("L"), width, height)) / 2 + 0.5).clamp(0, 1)
    soft = torch.where(soft < NEAR, 0.0, torch.where(soft > 1 - NEAR, 1.0, soft))
    return (soft >= 0.5).float() if hard else soft


def _read(image: Image.Image, invert: bool, label: str) -> Mask:
    """An image in any mode as a mask."""
    if is_deep(image):
        values, line = _stretched(scaled(image), label)
        return Mask(_turned(values, invert), line)
    if has_alpha(image):
        image = image.convert("RGBA")
        low, high = _range(image.getchannel("A"))
        if high - low >= NEAR * 255 or high < NEAR * 255:
            return _from_alpha(image, invert, label)
        image = image.convert("RGB")  # all of it is as opaque: that says nothing
    picture = eight_bits(image, (255, 255, 255))
    if picture.mode == "RGB" and _is_colored(picture):
        return _from_colors(picture, invert, label)
    return _from_brightness(picture.convert("L"), invert, label)


def _range(grey: Image.Image) -> tuple[int, int]:
    pixels = np.asarray(grey)
    return int(pixels.min()), int(pixels.max())


def _turned(values: Floats, invert: bool) -> Image.Image:
    mask = Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))
    return ImageOps.invert(mask) if invert else mask


def _from_brightness(grey: Image.Image, invert: bool, label: str) -> Mask:
    if _range(grey)[1] > (1 - NEAR) * 255:
        return Mask(ImageOps.invert(grey) if invert else grey)
    values, line = _stretched(np.asarray(grey).astype(np.float64), label)
    return Mask(_turned(values, invert), line)


def _from_alpha(layer: Image.Image, invert: bool, label: str) -> Mask:
    """An "RGBA" picture: what is transparent is repainted, by as much as it is."""
    alpha = layer.getchannel("A")
    repainted, kept = ("opaque", "transparent") if invert else ("transparent", "opaque")
    parts = f"its {repainted} part is repainted, its {kept} part is kept (`invert_mask` turns it round)"
    seen = np.asarray(layer.convert("RGB"))[np.asarray(alpha) > 0]
    black, white = (seen <= NEAR * 255).all(-1), (seen >= (1 - NEAR) * 255).all(-1)
    ambiguous = bool(black.any() and white.any() and (black | white).all())
    why = "is black and white, and has transparency, which counts" if ambiguous else "has transparency"
    return Mask(alpha if invert else ImageOps.invert(alpha), f"{label} {why}: {parts}", ambiguous)


def _from_colors(picture: Image.Image, invert: bool, label: str) -> Mask:
    """A picture in two colours: black and white, by the nearer one; in more of them: its brightness."""
    two = _two_colors(picture)
    if two is None:
        mask = _from_brightness(picture.convert("L"), invert, label)
        line = f"{label} has many colours: its brightness counts, what is {'dark' if invert else 'light'} is repainted"
        return replace(mask, line=mask.line or line)
    dark, light = two
    names = ["#" + "".join(f"{round(float(value)):02x}" for value in color) for color in (light, dark)]
    repainted, kept = names[::-1] if invert else names
    line = f"{label} has two colours: {repainted} is repainted, {kept} is kept (`invert_mask` turns it round)"
    pixels = np.asarray(picture).astype(np.float32)
    nearer = ((pixels - light) ** 2).sum(-1) < ((pixels - dark) ** 2).sum(-1)
    return Mask(_turned(nearer * 255.0, invert), line)


def _is_colored(picture: Image.Image) -> bool:
    """Whether an "RGB" picture has colours: strong ones, for a JPEG of greys has weak ones; or two exact ones."""
    pixels = np.asarray(picture)
    spread = int((pixels.max(-1) - pixels.min(-1)).max())
    return spread >= _GAUDY or (spread > 0 and len(picture.getcolors(2) or ()) == 2)


def _two_colors(picture: Image.Image) -> tuple[Floats, Floats] | None:
    """The darker and the brighter colour of an "RGB" picture that has no others, but for edges and noise of a JPEG."""
    few = picture.getcolors(2)
    if few is not None:
        found = [np.array(color, dtype=np.float64) for _, color in few]
    else:
        pixels = np.asarray(picture).reshape(-1, 3)
        bins = pixels // _BIN
        across = 256 // _BIN
        where = (bins[:, 0].astype(np.int64) * across + bins[:, 1]) * across + bins[:, 2]
        counts = np.bincount(where, minlength=across**3)
        found = []
        for _ in range(2):
            top = int(counts.argmax())
            if not counts[top]:
                return None
            color = pixels[where == top].mean(0, dtype=np.float64)
            found.append(color)
            centres = (np.stack(np.unravel_index(np.arange(across**3), (across,) * 3), -1) + 0.5) * _BIN
            counts = np.where(np.linalg.norm(centres - color, axis=-1) < _APART, 0, counts)
        distance = np.min([np.linalg.norm(pixels - color.astype(np.float32), axis=-1) for color in found], axis=0)
        if (distance < _CLOSE).mean() < _SHARE:
            return None
    if len(found) < 2:
        return None
    dark, light = sorted(found, key=lambda color: float(color @ LUMA))
    return dark, light


def _stretched(values: Floats, label: str) -> tuple[Floats, str]:
    """Brightness in 0..255, as it is but for a file in which nothing is bright; and the line that says so."""
    low, high = float(values.min()), float(values.max())
    if low == high or high > (1 - NEAR) * 255:
        return values, ""
    if not ((values == low) | (values == high)).all():
        if high > _DIM:
            return values, ""
        low = 0.0
    line = f"{label} has no white, its brightest value is {high:.3g} of 255: it is stretched to white"
    return (values - low) * (255.0 / (high - low)), line
