"""Illusions on latents whose views have to be seen as pictures: one sample per view, brought together by the VAE.

A VAE does not commute with most views, and the negative of a latent is no negative. So every view has a latent of its
own; at each step the clean estimates are decoded, turned back, joined to one picture, viewed again, and what has
changed is encoded. This is approximate, and takes one decoding and two encodings per view and step. Source: Kim et al.,
arXiv:2403.14370 (synchronised Tweedie estimates); the change in place of the picture itself keeps the VAE's own loss
out of the samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffkit.engine.guidance import place_of, turn_cond
from diffkit.engine.levels import out_of, x0_of
from diffkit.engine.sampling import draw_noise
from diffkit.models.base import WrappedModel
from diffkit.types import Codec, Cond, Denoiser, Model, ModelInfo, Prediction, View

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

# (the views' pictures, turned back; the number of the step, or None in the end) -> one picture
Gather = Callable[[list[Tensor], int | None], Tensor]


class Instances(WrappedModel):
    """A latent model whose sample holds one latent per view, side by side on the channel axis.

    So a picture is still one row with one generator. Called, it is the plain network.
    """

    def __init__(self, model: Model, views: Sequence[View], gather: Gather) -> None:
        super().__init__(model)
        self.views, self.gather = list(views), gather
        channels, height, width = model.info.sample
        self._info = replace(model.info, sample=(channels * len(self.views), height, width))
        self._codec = JoinedCodec(model.codec, self.views, gather)

    @property
    def info(self) -> ModelInfo:
        return self._info

    @property
    def codec(self) -> JoinedCodec:
        return self._codec

    def noise(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Draw N(0, I), (len(generators), V * C, h, w) fp32 on the model's device, one image per generator."""
        return draw_noise(self.info.sample, generators, self.device)


class JoinedCodec:
    """Between pictures and samples of several latents."""

    def __init__(self, codec: Codec, views: Sequence[View], gather: Gather) -> None:
        self._codec, self._views, self._gather = codec, list(views), gather

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, V * C, h, w)."""
        return torch.cat([self._codec.encode(view.apply(images)) for view in self._views], dim=1)

    def decode(self, x0: Tensor) -> Tensor:
        """(B, V * C, h, w) -> (B, 3, H, W): the picture that the views agree on."""
        pictures = self._codec.decode(rows_of(x0, len(self._views)))
        return self._gather(turned_back(pictures, self._views), None)


def rows_of(x: Tensor, count: int) -> Tensor:
    """(B, V * C, h, w) -> (V * B, C, h, w), view by view."""
    return torch.cat(x.chunk(count, dim=1))


def turned_back(pictures: Tensor, views: Sequence[View]) -> list[Tensor]:
    """(V * B, C, H, W), each as its view shows it -> V times (B, C, H, W), all the same way up."""
    return [view.invert(part) for view, part in zip(views, pictures.chunk(len(views)), strict=True)]


def synced(
    net: Denoiser, conds: Sequence[Cond], model: Instances, scheduler: SchedulerMixin, timesteps: Tensor
) -> Denoiser:
    """Predict every view's latent under its own condition, in one call, and bring the clean estimates together.

    `net` is the network with its guidance for plain latents; there is one condition of batch size 1 per view.

    Source: Kim et al., arXiv:2403.14370, case 2.
    """
    codec, views, count = model.inner.codec, model.views, len(model.views)

    def together(x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        batch = x.shape[0]
        rows, when = rows_of(x, count), t if t.ndim == 0 else t.repeat(count)
        each = [own.join(turn_cond(cond, view)).expand(batch) for view, own in zip(views, conds, strict=True)]
        pred = net(rows, when, Cond.cat(each))
        x0 = x0_of(pred.out, rows, when, scheduler)
        pictures = codec.decode(x0)
        whole = model.gather(turned_back(pictures, views), place_of(timesteps, t))
        changed = codec.encode(torch.cat([view.apply(whole) for view in views])) - codec.encode(pictures)
        out = out_of(x0 + changed, rows, when, scheduler)
        return Prediction(torch.cat(out.chunk(count), dim=1))

    return together
