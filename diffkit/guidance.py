"""Functions from one denoiser to another: classifier-free guidance.

They work on the batch axis, so that nested wrappers end in one network call per step; none of them holds state.
"""

from __future__ import annotations

from torch import Tensor

from diffkit.errors import UsageError
from diffkit.types import Cond, Denoiser, Prediction

__all__ = ["cfg"]


def cfg(
    net: Denoiser, uncond: Cond, scale: float, *, start: float = 0.0, stop: float = 1.0, levels: int = 1000
) -> Denoiser:
    """Guide a denoiser: out = uncond + scale * (cond - uncond), by one call on the doubled batch.

    Scale 1 is the conditional and 0 the unconditional prediction; neither costs a second pass. A learned variance is
    the conditional one's.

    Args:
        net: The denoiser to guide.
        uncond: The null class, empty prompt or negative prompt; batch size 1 or that of x.
        scale: Guidance scale w.
        start: Guide from this fraction of the way from pure noise (0) to the image (1) on, measured in timesteps;
            before it the prediction is conditional.
        stop: Guide up to this fraction.
        levels: T, the number of timesteps of the way; used for `start` and `stop` only.

    Raises:
        UsageError: start and stop are not 0 <= start <= stop <= 1.

    Source: Ho & Salimans, arXiv:2207.12598, eq. 6; the interval: Kynkäänniemi et al., arXiv:2404.07724.
    """
    if not 0.0 <= start <= stop <= 1.0:
        raise UsageError(f"guidance from {start} to {stop} of the loop; needed: 0 <= start <= stop <= 1")
    always = start == 0.0 and stop == 1.0

    def guided(x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        batch = x.shape[0]
        if scale == 1.0 or not (always or start <= 1.0 - float(t.max()) / levels <= stop):
            return net(x, t, cond)
        if scale == 0.0:
            return net(x, t, uncond.expand(batch))
        both = Cond.cat([uncond.expand(batch), cond.expand(batch)])
        pred = net(x.repeat(2, *[1] * (x.ndim - 1)), t if t.ndim == 0 else t.repeat(2), both)
        without, with_cond = pred.out.chunk(2)
        var = None if pred.var is None else pred.var[batch:]
        return Prediction(without + scale * (with_cond - without), var)

    return guided
