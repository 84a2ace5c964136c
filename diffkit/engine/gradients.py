"""Guidance by the gradient of a loss: the sample is pulled to where a function of the clean picture is small.

What the loss is made of, a classifier, a colour, a distance, is the caller's; this file knows scores only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffkit.engine.levels import network_level, out_of, x0_of
from diffkit.types import Cond, Denoiser, Prediction

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_utils import SchedulerMixin


def gradient(
    net: Denoiser,
    loss: Callable[[Tensor], Tensor],
    scale: float,
    scheduler: SchedulerMixin,
    *,
    decode: Callable[[Tensor], Tensor] | None = None,
    through: bool = True,
) -> Denoiser:
    """Guide a denoiser by the gradient of a loss on the clean estimate: score' = score - scale * grad_x loss(x0(x)).

    Args:
        net: The denoiser to guide.
        loss: From images (B, C, H, W) to one number per image, (B,); lower is better.
        scale: Weight of the gradient.
        scheduler: Says how x0 follows from the output.
        decode: From x0 to images, for latent models.
        through: Differentiate through the network; without, only through the last formula, which costs no backward
            pass and guides more coarsely.

    Source: Dhariwal & Nichol, arXiv:2105.05233, algorithm 2; on x0: Chung et al., arXiv:2209.14687, eq. 16.
    """

    def guided(x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        signal, noise = network_level(scheduler, t)
        if float(torch.as_tensor(signal).min()) < 1e-3:  # x holds nothing of the image yet, and 1 / signal explodes
            return net(x, t, cond)
        # Pictures of a low loss are wanted: p(x) exp(-scale * loss) in place of p(x). The score is the gradient of the
        # logarithm, where the product becomes a sum: the network's score, and -scale times the gradient of the loss.
        # The loss is known of clean pictures only; the clean estimate stands for them (arXiv:2209.14687, eq. 10).
        with torch.enable_grad():
            x_in = x.detach().requires_grad_()
            pred = net(x_in if through else x.detach(), t, cond)
            clean = x0_of(pred.out, x_in, t, scheduler)
            # One sum over the batch gives every picture its own gradient, since no loss looks at another's.
            (slope,) = torch.autograd.grad(loss(decode(clean) if decode else clean).sum(), x_in)
        # Guidance by a loss is written for the score, and Tweedie's formula, x0 = (x + noise^2 * score) / signal, tells
        # what a change of the score is for x0. From x0 the output follows, whatever the network predicts.
        clean = clean.detach() - scale * noise**2 / signal * slope
        return Prediction(out_of(clean, x, t, scheduler), pred.var.detach() if pred.var is not None else None)

    return guided
