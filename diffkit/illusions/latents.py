"""Illusions on latents whose views have to be seen as pictures: one sample per view, brought together by the VAE.

A VAE does not commute with most views, and the negative of a latent is no negative. So every view has a latent of its
own; at each step the clean estimates are decoded, turned back, joined to one picture, viewed again, and what has
changed is encoded. This is approximate, and takes one decoding and two encodings per view and step. Source: Kim et al.,
arXiv:2403.14370 (synchronised Tweedie estimates); the change in place of the picture itself keeps the VAE's own loss
out of the samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from diffkit.engine.levels import out_of, x0_of
from diffkit.types import Cond, Denoiser, Prediction, View

# (the views' pictures, turned back; the number of the step, or None in the end) -> one picture
Gather = Callable[[list[Tensor], int | None], Tensor]


class Instances:
    """A latent model whose sample holds one latent per view, side by side on the channel axis.

    So a picture is still one row with one generator. All else is the model's own; called, it is the plain network.

    Args:
        model: A loaded latent model.
        views: One per prompt.
        gather: Joins the views' pictures.
    """

    def __init__(self, model: Any, views: Sequence[View], gather: Gather) -> None:
        self._model, self.views, self.gather = model, list(views), gather
        self.instances = len(self.views)
        channels, height, width = model.shape
        self.shape: tuple[int, int, int] = (channels * self.instances, height, width)
        self.codec = JoinedCodec(model.codec, self.views, gather)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def noise(self, generators: Sequence[torch.Generator]) -> Tensor:
        """Draw N(0, I), (len(generators), V * C, h, w) fp32 on the model's device, one image per generator."""
        drawn = [torch.randn(1, *self.shape, generator=g, device=g.device) for g in generators]
        return torch.cat(drawn).to(self._model.device)

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        """Predict rows of plain latents, (B, C, h, w)."""
        prediction: Prediction = self._model(x, t, cond)
        return prediction


class JoinedCodec:
    """Between pictures and samples of several latents.

    Args:
        codec: The model's own.
        views: One per latent.
        gather: Joins the views' pictures.
    """

    def __init__(self, codec: Any, views: Sequence[View], gather: Gather) -> None:
        self._codec, self._views, self._gather = codec, list(views), gather
        self.factor = codec.factor

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
    net: Denoiser, conds: Sequence[Cond], model: Instances, scheduler: Any, timesteps: Sequence[float] | Tensor
) -> Denoiser:
    """Predict every view's latent under its own condition, in one call, and bring the clean estimates together.

    Args:
        net: The network with its guidance, for plain latents.
        conds: One per view, of batch size 1.
        model: Says how the views are joined.
        scheduler: Says how x0 follows from an output, and back.
        timesteps: The grid that steps are counted on.

    Source: Kim et al., arXiv:2403.14370, case 2.
    """
    grid = torch.as_tensor(timesteps, dtype=torch.float64).cpu()
    codec, views, count = model.codec._codec, model.views, model.instances

    def together(x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        batch = x.shape[0]
        rows, when = rows_of(x, count), t if t.ndim == 0 else t.repeat(count)
        seen = [own.join(_turned(cond, view)).expand(batch) for view, own in zip(views, conds, strict=True)]
        pred = net(rows, when, Cond.cat(seen))
        x0 = x0_of(pred.out, rows, when, scheduler)
        pictures = codec.decode(x0)
        place = int((grid - float(t.reshape(-1)[0])).abs().argmin())
        whole = model.gather(turned_back(pictures, views), place)
        changed = codec.encode(torch.cat([view.apply(whole) for view in views])) - codec.encode(pictures)
        out = out_of(x0 + changed, rows, when, scheduler)
        return Prediction(torch.cat(out.chunk(count), dim=1))

    return together


def _turned(cond: Cond, view: View) -> Cond:
    """What all views share, with its picture (`channels`) as this view shows it."""
    return Cond({name: view.apply(v) if name == "channels" else v for name, v in cond.tensors.items()})
