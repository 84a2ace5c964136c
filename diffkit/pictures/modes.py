"""From any mode of an image file to eight bits: grey ("L") or colour ("RGB")."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from diffkit.errors import DataError


def is_deep(image: Image.Image) -> bool:
    """Whether an image has one channel of more than eight bits, or of floats."""
    return image.mode.startswith("I") or image.mode == "F"


def has_alpha(image: Image.Image) -> bool:
    """Whether an image of eight bits may have transparent pixels."""
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def eight_bits(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Convert any mode to "L" or "RGB", transparent pixels on a background."""
    if is_deep(image):
        return Image.fromarray(np.clip(np.rint(scaled(image)), 0, 255).astype(np.uint8))
    if has_alpha(image):
        grey = image.mode in ("L", "LA", "La") and len(set(background)) == 1
        layer = image.convert("RGBA")
        flat = Image.new("RGBA", layer.size, (*background, 255))
        flat.alpha_composite(layer)
        return flat.convert("RGB").getchannel(0) if grey else flat.convert("RGB")
    if image.mode in ("L", "RGB"):
        return image.copy()
    return image.convert("L" if image.mode == "1" else "RGB")


def scaled(image: Image.Image) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return integers of more than eight bits, or floats, in 0..255: `convert` would clip them to white.

    "I;16" is 16 bits by its name. The 32-bit modes do not say their range, so it is the least of 8, 16 and 32 bits
    (for floats also 0..1) that holds the largest value.

    Raises:
        DataError: Values that are NaN or infinite.
    """
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise DataError("holds NaN or infinite values", "Clean the image first.")
    top = float(values.max())
    if image.mode.startswith("I;16"):
        full = 65535.0
    elif image.mode == "F" and top <= 1.0:
        full = 1.0
    else:
        full = next(limit for limit in (255.0, 65535.0, 2.0**31 - 1, np.inf) if top <= limit)
        full = top if np.isinf(full) else full
    return values * (255.0 / full)
