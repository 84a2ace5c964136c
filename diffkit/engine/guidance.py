"""Functions from one denoiser to another: classifier-free guidance and gradients.

They work on the batch axis, so that nested wrappers end in one network call per step; none of them holds state. Views
and mixtures are in `mixing.py`, smaller calls in `rows.py`; all of them can be imported from here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffkit.engine.levels import network_level, out_of, x0_of
from diffkit.engine.mixing import check_shares, mix, multiview, place_of, turn_cond
from diffkit.engine.rows import chunked, fit, smallest_limit, stacked
from diffkit.errors import UsageError
from diffkit.types import Cond, Denoiser, Prediction

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

__all__ = [
    "cfg", "check_interval", "check_shares", "chunked", "gradient", "mix", "multiview", "place_of", "smallest_limit",
    "turn_cond", "within",
]  # fmt: skip


def cfg(
    net: Denoiser,
    uncond: Cond,
    scale: float | Sequence[float],
    *,
    start: float = 0.0,
    stop: float = 1.0,
    levels: int = 1000,
) -> Denoiser:
    """Guide a denoiser: out = uncond + scale * (cond - uncond), by one call on the doubled batch.

    Scale 1 is the conditional and 0 the unconditional prediction; neither costs a second pass. A learned variance is
    the conditional one's.

    Args:
        net: The denoiser to guide.
        uncond: The null class, empty prompt or negative prompt; batch size 1 or that of x. What it does not hold (an
            image, a noise level) is the same in both halves, and comes from the condition.
        scale: Guidance scale w; or one per image, where x is then that batch or several of them (views).
        start: Guide from this fraction of the way from pure noise (0) to the image (1) on, measured in timesteps;
            before it the prediction is conditional.
        stop: Guide up to this fraction; a step at either end is guided.
        levels: T, the number of timesteps of the way; used for `start` and `stop` only.

    Raises:
        UsageError: start and stop are not 0 <= start <= stop <= 1.

    Source: Ho & Salimans, arXiv:2207.12598, eq. 6; the interval: Kynkäänniemi et al., arXiv:2404.07724.
    """
    check_interval(start, stop)
    # Reading a timestep from a GPU stops everything until it has arrived; without an interval nobody asks for it.
    always = start == 0.0 and stop == 1.0

    def guided(x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        batch = x.shape[0]
        if scale == 1.0 or not (always or within(start, stop, float(t.max()), levels)):
            return net(x, t, cond)
        if scale == 0.0:
            return net(x, t, stacked([(cond, uncond)], batch))
        # Both predictions in one call: the batch twice, first without and then with the condition.
        both = stacked([(cond, uncond), (cond, cond)], batch)
        pred = net(x.repeat(2, *[1] * (x.ndim - 1)), t if t.ndim == 0 else t.repeat(2), both)
        without, with_cond = pred.out.chunk(2)
        var = None if pred.var is None else pred.var[batch:]
        weight = scale if isinstance(scale, float | int) else fit(torch.tensor(scale).reshape(-1, 1, 1, 1), batch).to(x)
        # The difference points to where the condition makes x likelier: by Bayes it is, up to a factor, the gradient of
        # log p(cond | x). Weight 1 follows the model; a larger one goes on in the same direction (eq. 6). The line is
        # the same for every kind of prediction, since each is affine in the score.
        return Prediction(without + weight * (with_cond - without), var)

    return guided


def check_interval(start: float, stop: float) -> None:
    """Refuse a stretch of the way from noise (0) to picture (1) that is none.

    Raises:
        UsageError: start and stop are not 0 <= start <= stop <= 1.
    """
    if not 0.0 <= start <= stop <= 1.0:
        raise UsageError(
            f"`guidance_interval` {start:g}:{stop:g} is not a part of the way from 0 to 1",
            "Needed is 0 <= start <= stop <= 1; 0:1 is all of it.",
        )


def within(start: float, stop: float, timestep: float, levels: int) -> bool:
    """Say whether a step is guided: both ends count, and 0 and 1 hold whatever timesteps a sampler has."""
    # Measured in timesteps and not in steps, so that the same part of the way is guided whatever the number of steps.
    place = min(max((levels - timestep) / levels, 0.0), 1.0)
    return start <= place <= stop


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
        with torch.enable_grad():
            x_in = x.detach().requires_grad_()
            pred = net(x_in if through else x.detach(), t, cond)
            clean = x0_of(pred.out, x_in, t, scheduler)
            (slope,) = torch.autograd.grad(loss(decode(clean) if decode else clean).sum(), x_in)
        # Guidance by a loss is written for the score, and Tweedie's formula, x0 = (x + noise^2 * score) / signal, tells
        # what a change of the score is for x0. From x0 the output follows, whatever the network predicts.
        clean = clean.detach() - scale * noise**2 / signal * slope
        return Prediction(out_of(clean, x, t, scheduler), pred.var.detach() if pred.var is not None else None)

    return guided
