"""Large tensors in overlapping windows, one after another, so that memory depends on the window and not on the picture.

Holds the cutting and the blending, and a model whose network and VAE work that way. What they are used for is in
`stages.py`. Source: Bar-Tal et al. (MultiDiffusion), arXiv:2302.08113, eq. 5, with weights that fall towards the edges.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffkit.errors import UsageError
from diffkit.models.base import WrappedModel
from diffkit.types import Codec, Cond, Denoiser, Model, Prediction

OVERLAP = 4  # a window shares (at least) one part in 4 with the next


def by_tiles(work: Callable[[Tensor], Tensor], x: Tensor, tile: int, *, cell: int = 1, made: int = 1) -> Tensor:
    """Apply a function to overlapping windows and blend what it gives; to the whole where that is no larger than one.

    Args:
        work: From (B, C, h, w) to (B, D, h * made / cell, w * made / cell).
        x: (B, C, H, W), H and W multiples of `cell`.
        tile: Side of a window, in cells.
        cell: What a window is a multiple of, in pixels of x: the factor of an encoder.
        made: Pixels that are made of a cell: the factor of a decoder.
    """
    height, width = x.shape[-2] // cell, x.shape[-1] // cell
    if max(height, width) <= tile:
        return work(x)
    total, weights = None, torch.zeros(1, 1, height * made, width * made, device=x.device)
    for top in starts(height, tile):
        for left in starts(width, tile):
            high, wide = min(tile, height), min(tile, width)
            window = x[..., top * cell : (top + high) * cell, left * cell : (left + wide) * cell]
            part = work(window)
            weight = _ramp(high, tile, made)[:, None] * _ramp(wide, tile, made)[None]
            weight = weight.to(part)
            place = (..., slice(top * made, (top + high) * made), slice(left * made, (left + wide) * made))
            if total is None:
                total = part.new_zeros(*part.shape[:2], height * made, width * made)
            total[place] += weight * part
            weights[place] += weight
    assert total is not None
    return total / weights.to(total)


def starts(length: int, tile: int) -> list[int]:
    """Return where windows begin: evenly spread, the last one ends where the picture does."""
    if length <= tile:
        return [0]
    count = -(-(length - tile) // (tile - tile // OVERLAP)) + 1
    return [k * (length - tile) // (count - 1) for k in range(count)]


def _ramp(length: int, tile: int, made: int) -> Tensor:
    """Weights of a window along one side: rising over the overlap, never 0."""
    place = torch.arange(length * made) + 0.5
    rise = tile // OVERLAP * made
    return (torch.minimum(place, length * made - place) / rise).clamp(max=1.0)


def tiled(net: Denoiser, tile: int) -> Denoiser:
    """Let a network see windows of the sample, and of the image that it is conditioned on, one after another.

    Args:
        net: The denoiser; of its condition `channels` is cut like the sample, the rest goes to every window.
        tile: Side of a window in the sample's pixels.
    """

    def windowed(x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        if max(x.shape[-2:]) <= tile:
            return net(x, t, cond)
        split, extra = x.shape[1], cond.tensors.get("channels")

        def predict(part: Tensor) -> Tensor:
            own = {**cond.tensors} if extra is None else {**cond.tensors, "channels": part[:, split:]}
            prediction = net(part[:, :split], t, Cond(own))
            return prediction.out if prediction.var is None else torch.cat([prediction.out, prediction.var], dim=1)

        both = x if extra is None else torch.cat([x, extra.expand(len(x), -1, -1, -1).to(x)], dim=1)
        out = by_tiles(predict, both, tile)
        return Prediction(out[:, :split], out[:, split:] if out.shape[1] > split else None)

    return windowed


class Windowed(WrappedModel):
    """A latent model whose network and VAE work in windows.

    Raises:
        UsageError: It is no multiple of 8, as the networks need.
    """

    def __init__(self, model: Model, tile: int) -> None:
        if tile < 8 or tile % 8:
            raise UsageError(f"`tile` {tile} is no multiple of 8", "Give for example 128.")
        super().__init__(model)
        self._net = tiled(model, tile)
        self._codec = WindowedCodec(model.codec, tile, model.info.factor)

    @property
    def codec(self) -> WindowedCodec:
        return self._codec

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        """Predict from x (B, C, h, w)."""
        return self._net(x, t, cond)


class WindowedCodec:
    """A VAE that sees one picture and one window at a time."""

    def __init__(self, codec: Codec, tile: int, factor: int) -> None:
        self._codec, self._tile, self.factor = codec, tile, factor

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> scaled latents (B, C, H/f, W/f)."""
        whole = [by_tiles(self._codec.encode, one, self._tile, cell=self.factor) for one in images.split(1)]
        return torch.cat(whole)

    def decode(self, x0: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) -> (B, 3, h * f, w * f), not clipped."""
        return torch.cat([by_tiles(self._codec.decode, one, self._tile, made=self.factor) for one in x0.split(1)])
