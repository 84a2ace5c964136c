"""Whether a composition fits a model: sizes, colours and latents, known from what the model says of itself.

Also how a view acts where a network works on a frame around the picture, or on latents. Nothing is drawn here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from diffkit.errors import UsageError
from diffkit.illusions.composition import Composition
from diffkit.illusions.views import Look
from diffkit.pictures.tensors import in_channels
from diffkit.types import ModelInfo, View


def check_fit(composition: Composition, info: ModelInfo) -> None:
    """Refuse what a model cannot draw; before its weights are read.

    Raises:
        UsageError: A view or filter that cannot act at the model's size, on its colours or on its latents.
    """
    if composition.latent != "auto" and not info.latent:
        raise UsageError(f"`latent` {composition.latent}: {info.id} draws pixels, not latents", "Leave it out.")
    check_sizes(composition, info)


def check_sizes(composition: Composition, info: ModelInfo) -> None:
    """Refuse views that cannot act on a model's pictures (or latents), and a split of colours that it does not have.

    Raises:
        UsageError: They cannot; the message names a size that works.
    """
    direct = latent_way(composition, info) == "direct"
    height, width = info.sample[1:] if direct else info.size
    for view in composition.views:
        if view.square and height != width:
            size = f"{info.size[1]}x{info.size[0]}"  # in pixels, as people ask for it, whatever the view acts on
            raise UsageError(
                f"{info.id} draws {size} here, and view {view.spec} is of squares",
                "Use flip, rotate_180 or negate, or a square size.",
            )
        if direct and not view.spatial:
            raise UsageError(
                f"`latent` direct: {view.spec} cannot act on latents (-z is no negative)", "Use `latent` decode."
            )
        if view.name != "identity":
            view.check(height)
        if any(info.grey):
            _check_grey(view, info)
    split = composition.split
    if split is None:
        return
    if direct and split.latent != "close":
        raise UsageError(
            f"`latent` direct: {split.spec} cannot act on latents, which have no colours", "Use `latent` decode."
        )
    split.check(*_split_at(composition, info))


def _check_grey(view: View, info: ModelInfo) -> None:
    """Refuse a view that does not keep middle grey, where that is another number than 0."""
    # Samples are (picture - mean) / std, and a view is linear: it acts on the picture as on the sample only where it
    # leaves -mean / std as it is. Moved pixels do; but -x is no negative where black is 0 and white is 1.
    flat = torch.tensor(info.grey).view(1, -1, 1, 1).expand(1, -1, *info.size)
    if not torch.allclose(view.apply(flat), flat, atol=1e-4):
        raise UsageError(
            f"view {view.spec} changes signs, and {info.id} was trained on pixels whose range is not symmetric: -x is"
            " no negative there",
            "Use views that move pixels, as flip does, or a model trained with dataset.normalize symmetric.",
        )


def notes(composition: Composition, info: ModelInfo) -> list[str]:
    """Return what has to be said before a picture is drawn: what is approximate, and parts that are nearly empty."""
    said = notes_on_latents(composition, info)
    if composition.split is not None:
        said += composition.split.about(*_split_at(composition, info))
    return said


def notes_on_latents(composition: Composition, info: ModelInfo) -> list[str]:
    """Return what has to be said about the way pictures are drawn in latents; nothing for models of pixels."""
    way = latent_way(composition, info)
    if way == "pixels" or (composition.split is None and composition.plain):
        return []
    if way == "direct":
        return ["approximate: views and filters act on latents, with which the VAE commutes only nearly"]
    views = len(composition.views)
    return [
        "approximate: every view has its own latent; they are brought together through the VAE at each step"
        f" ({views} decodings and {2 * views} encodings per picture and step)"
    ]


def _split_at(composition: Composition, info: ModelInfo) -> tuple[int, int, int]:
    """Channels, height and width of what is split."""
    if latent_way(composition, info) == "direct":
        return info.sample
    return (info.channels, *info.size)


def latent_way(composition: Composition, info: ModelInfo) -> str:
    """Return how views and filters act: "pixels", "direct" on latents, or "decode".

    Flips and quarter turns nearly commute with a convolutional VAE, and so does a blur; colours are no matter of
    single latents, and nothing else commutes.
    """
    if not info.latent:
        return "pixels"
    if composition.latent != "auto":
        return composition.latent
    split = composition.split
    near = all(view.latent == "close" for view in composition.views) and (split is None or split.latent == "close")
    return "direct" if near else "decode"


@dataclass(frozen=True)
class Inside(Look):
    """A view that moves pixels, of the picture in the middle of a padded sample; the frame stays where it is."""

    name: ClassVar[str] = "inside"
    view: View
    top: int
    left: int
    height: int
    width: int

    def _within(self, x: Tensor, turn: Callable[[Tensor], Tensor]) -> Tensor:
        inside = (..., slice(self.top, self.top + self.height), slice(self.left, self.left + self.width))
        out = x.clone()
        out[inside] = turn(x[inside])
        return out

    def apply(self, x: Tensor) -> Tensor:
        return self._within(x, self.view.apply)

    def invert(self, x: Tensor) -> Tensor:
        return self._within(x, self.view.invert)


def view_in(view: View, info: ModelInfo) -> View:
    """Return a view as it acts on the sample: where that is padded, on the picture in its middle.

    What turns the whole square about its centre may turn the padding, too, if that is even on all sides; a change of
    sign may in any case.
    """
    if info.latent:
        return view
    pads = [s - p for s, p in zip(info.sample[1:], info.size, strict=True)]
    if not any(pads) or not view.spatial:
        return view
    if view.latent == "close" and (all(pad % 2 == 0 for pad in pads) or view.name == "identity"):
        return view
    return Inside(view, pads[0] // 2, pads[1] // 2, *info.size)


def reference_for(composition: Composition, info: ModelInfo, device: torch.device) -> Tensor:
    """Return the reference at the size and in the colours of a model's pictures, (1, C, H, W) in [-1, 1]."""
    assert composition.reference is not None, "there is none"
    picture = in_channels(composition.reference.to(device), info.channels)
    if tuple(picture.shape[-2:]) != info.size:
        picture = F.interpolate(picture, info.size, mode="bicubic", antialias=True).clamp(-1, 1)
    return picture
