"""Guidance by the gradient of a loss on the clean estimate, for any network: a denoiser from a denoiser.

What the loss is stands in `losses.py`. Sources: Dhariwal & Nichol, arXiv:2105.05233; Chung et al., arXiv:2209.14687.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffkit.engine.levels import network_level, out_of, x0_of
from diffkit.engine.predictions import Number
from diffkit.engine.samplers import is_flow
from diffkit.errors import UsageError, did_you_mean
from diffkit.types import Cond, Denoiser, ModelInfo, Prediction

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

WEIGHTS = ("signal", "index", "score")
LEAST_SIGNAL = 1e-3  # a loss is not asked about estimates from samples that hold less of the image


def gradient(
    net: Denoiser,
    loss: Callable[[Tensor, Tensor], Tensor],
    scale: float,
    scheduler: SchedulerMixin,
    *,
    decode: Callable[[Tensor], Tensor] | None = None,
    through: bool = True,
    weight: Callable[[Tensor], Number] | None = None,
    limit: float | None = None,
) -> Denoiser:
    """Guide a denoiser by the gradient of a loss on its clean estimate: x0' = x0 - scale * m(t) / signal * grad_x loss.

    With m = noise^2, the weight in Tweedie's formula, this is score' = score - scale * grad_x loss(x0(x)).

    Args:
        net: The denoiser to guide.
        loss: From images (B, C, H, W) and the timestep to one number per image, (B,); lower is better.
        scale: Weight of the gradient; 0 gives the denoiser back.
        scheduler: Says how x0 follows from the output.
        decode: From x0 to images, for latent models.
        through: Differentiate through the network; without, the noise in x is taken as given, and x0 moves by
            1 / signal with x: no backward pass of the network, and a coarser guide.
        weight: m, of the timestep; noise^2 when left out. See `weight`.
        limit: Of pixel models: the estimate is moved within [-limit, limit] only.

    Source: Dhariwal & Nichol, arXiv:2105.05233, algorithm 2; on x0: Chung et al., arXiv:2209.14687, eq. 16.
    """
    if scale == 0.0:
        return net

    def guided(x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        signal, noise = network_level(scheduler, t)
        if float(torch.as_tensor(signal).min()) < LEAST_SIGNAL:
            return net(x, t, cond)  # x holds nothing of the image yet, and 1 / signal explodes
        # Pictures of a low loss are wanted: p(x) exp(-scale * loss) in place of p(x). The score is the gradient of the
        # logarithm, where the product becomes a sum: the network's score, and -scale times the gradient of the loss.
        # The loss is known of clean pictures only; the clean estimate stands for them (arXiv:2209.14687, eq. 10).
        with torch.enable_grad():
            x_in = x.detach().requires_grad_()
            if through:
                pred = net(x_in, t, cond)
                clean = x0_of(pred.out, x_in, t, scheduler)
            else:
                with torch.no_grad():
                    pred = net(x, t, cond)
                    clean = x0_of(pred.out, x, t, scheduler)
                x_in = clean = clean.requires_grad_()
            # One sum over the batch gives every picture its own gradient, since no loss looks at another's.
            (slope,) = torch.autograd.grad(loss(decode(clean) if decode else clean, t).sum(), x_in)
        slope = slope if through else slope / signal
        # Guidance by a loss is written for the score, and Tweedie's formula, x0 = (x + noise^2 * score) / signal, tells
        # what a change of the score is for x0. From x0 the output follows, whatever the network predicts.
        clean = clean.detach()
        moved = clean - scale * (noise**2 if weight is None else weight(t)) / signal * slope
        if limit is not None:
            # Samplers clip the estimate and not the noise that belongs to it: what they cut off of one would count in
            # the other, with the opposite sign.
            moved = clean + (moved.clamp(-limit, limit) - clean.clamp(-limit, limit))
        return Prediction(out_of(moved, x, t, scheduler), pred.var.detach() if pred.var is not None else None)

    return guided


def weight(kind: str, scheduler: SchedulerMixin, place: Callable[[Tensor], int]) -> Callable[[Tensor], Number] | None:
    """Return how much guidance counts at a timestep, beside the scale; None is `gradient`'s own weight.

    "signal" is sqrt(abar_t). By it the slope of the clean estimate in x, 1 / sqrt(abar_t), falls out where the gradient
    stops at that estimate: a picture is pulled by the loss's own slope, and not the more the less can be seen of it.
    "index" is sqrt(abar) at the number of the step in place of its timestep, as notebook 2.1 of the Hugging Face course
    has it: 0.99 and more everywhere, so that nothing falls out. "score" is 1 - abar_t: the posterior p(x0) exp(-scale
    loss), as far as the loss of the mean x0 is the mean loss.

    Args:
        kind: One of `WEIGHTS`.
        scheduler: Its grid set.
        place: From a timestep to its place in the grid.

    Raises:
        UsageError: An unknown kind.
    """
    if kind not in WEIGHTS:
        raise UsageError(f"unknown weight {kind!r}", did_you_mean(kind, WEIGHTS))
    if kind == "score":
        return None
    if kind == "signal":
        return lambda t: network_level(scheduler, t)[0]
    if is_flow(scheduler):
        return lambda t: 1.0 - place(t) / scheduler.config.num_train_timesteps
    return lambda t: float(scheduler.alphas_cumprod[place(t)]) ** 0.5


def unit(kind: str, info: ModelInfo) -> float:
    """Return what scales are multiplied with: a hundredth of the number of values in a picture, but 1 for "score".

    A loss is one number for all values, and its slope in each of them is the smaller the more there are. By this unit a
    scale means the same at every size: at the last step 100 moves a pixel against its slope in a mean over pixels by as
    much as the slope of its own term, of an absolute error half of the way from black to white.
    """
    return 1.0 if kind == "score" else info.channels * info.size[0] * info.size[1] / 100
