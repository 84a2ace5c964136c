"""What the edits share: their result, the size and colours that a model's pictures have, PSNR.

An edit is a function of a loaded model, an image (1, C, H, W) in [-1, 1] of the model's size, seeds, labels (classes or
prompts) and `Settings`; it draws one batch. Files and options are the command line's business.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from diffkit.errors import UsageError
from diffkit.jobs.sample import takes_prompts
from diffkit.pictures.images import cut, from_tensor, to_tensor, with_channels
from diffkit.types import Step

LOG = logging.getLogger("diffkit.tasks")

OnStep = Callable[[Step, range], None]


@dataclass
class Edit:
    """What an edit gives.

    Attributes:
        pictures: One per seed.
        timesteps: Those that were visited, one per network call (of one batch).
        calls: Network calls.
        sheet: Labelled pictures to be shown side by side, in place of a plain grid.
        scores: Numbers for `--json`.
        frames: An animation of its own, in place of that of the denoising.
        shown: What stands on the sheet in place of each picture: an illusion in all its views.
    """

    pictures: list[Image.Image]
    timesteps: list[float]
    calls: int
    sheet: list[tuple[str, Image.Image]] = field(default_factory=list)
    scores: dict[str, Any] = field(default_factory=dict)
    frames: list[Image.Image] = field(default_factory=list)
    shown: list[Image.Image] = field(default_factory=list)


def walked(steps: Iterator[Step], count: int, on_step: OnStep | None) -> Tensor:
    """Take all steps of a batch of `count` pictures, telling `on_step` of each; return the last sample."""
    x: Tensor | None = None
    for step in steps:
        x = step.x
        if on_step is not None:
            on_step(step, range(count))
    assert x is not None, "a walk of no steps"
    return x


def picture_shape(model: Any) -> tuple[int, int, int]:
    """Return (C, H, W) of the pictures that a model takes and gives."""
    channels, height, width = model.shape
    if not takes_prompts(model):
        side = model.meta.resolution
        return (channels, side, side) if side else (channels, height, width)
    factor = getattr(model.codec, "factor", 1)
    return 3, height * factor, width * factor


def fit(model: Any, image: Image.Image) -> Tensor:
    """Cut an image to what the model takes, (1, C, H, W) in [-1, 1] on its device."""
    channels, height, width = picture_shape(model)
    return to_tensor(with_channels(cut(image, width, height), channels)).to(model.device)


def fit_mask(model: Any, mask: Image.Image) -> Tensor:
    """Cut a mask in the same way, (1, 1, H, W) in [0, 1]; one without grey stays so."""
    _, height, width = picture_shape(model)
    whole = to_tensor(mask.convert("L"))
    hard = bool((whole.abs() == 1).all())
    # Nearly black and nearly white are what a JPEG made of black and white.
    soft = (to_tensor(cut(mask.convert("L"), width, height)) / 2 + 0.5).clamp(0, 1)
    soft = torch.where(soft < 0.03, 0.0, torch.where(soft > 0.97, 1.0, soft))
    return ((soft >= 0.5).float() if hard else soft).to(model.device)


def check_mask(mask: Image.Image, image: Image.Image, name: str = "MASK") -> None:
    """Refuse a mask of another size than the image's; warn where it asks for nothing or for everything.

    Raises:
        UsageError: Another size.
    """
    if mask.size != image.size:
        (w, h), (width, height) = mask.size, image.size
        raise UsageError(f"{name} is {w}x{h} pixels, the image {width}x{height}", "Give a mask of the image's size.")
    low, high = mask.convert("L").getextrema()
    if high == 0:
        LOG.warning("the mask is black everywhere: nothing is repainted (--invert-mask turns it round)")
    elif low == 255:
        LOG.warning("the mask is white everywhere: nothing of the image is kept (--invert-mask turns it round)")


def psnr(x: Tensor, y: Tensor) -> float:
    """Return the peak signal-to-noise ratio of images in [-1, 1] in dB; infinite for equal ones."""
    error = float((x.clamp(-1, 1) - y.clamp(-1, 1)).double().square().mean())
    return float("inf") if error == 0.0 else float(-10.0 * torch.log10(torch.tensor(error / 4.0, dtype=torch.float64)))


def pictures_of(images: Tensor) -> list[Image.Image]:
    """(B, C, H, W) in [-1, 1] -> pictures."""
    return from_tensor(images)


def label_list(labels: Sequence[str | None] | None, count: int) -> list[str | None]:
    """Return one label per picture."""
    return list(labels) if labels is not None else [None] * count
