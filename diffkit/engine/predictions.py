"""What a network may be trained to predict, and the arithmetic from one form to another.

A noisy sample is x = signal * x0 + noise * eps (Ho et al., arXiv:2006.11239, eq. 4). Whoever knows x, the two numbers
and one of x0 and eps knows the other, so the four kinds of output say the same; they differ in what they say exactly
where there is much noise or little, and so in what a small error of the network does:

    epsilon       eps                         Ho et al., arXiv:2006.11239
    sample        x0
    v_prediction  signal * eps - noise * x0   Salimans & Ho, arXiv:2202.00512, appendix D
    flow          eps - x0                    Liu et al., arXiv:2209.03003, where signal = 1 - noise

Training and sampling both use these functions. `signal` and `noise` are numbers, or tensors that broadcast over
(B, C, H, W).
"""

from __future__ import annotations

from torch import Tensor

from diffkit.errors import UsageError

KINDS = ("epsilon", "sample", "v_prediction", "flow")

Number = float | Tensor

_LEAST = 1e-10  # far below the noise of any level that has some


def noised(x0: Tensor, eps: Tensor, signal: Number, noise: Number) -> Tensor:
    """Return x at a level: the forward process in one step. Source: arXiv:2006.11239, eq. 4."""
    return signal * x0 + noise * eps


def target(kind: str, x0: Tensor, eps: Tensor, signal: Number, noise: Number) -> Tensor:
    """Return what the network shall answer to `noised(x0, eps, signal, noise)`."""
    # Which one is asked decides where the network has to be exact: x0 = (x - noise * eps) / signal, so that an error in
    # eps counts most for the picture where there is much noise. v is between: of x0 and eps it is the combination at a
    # right angle to x, which x itself says nothing of, at every level.
    if kind == "epsilon":
        return eps
    if kind == "sample":
        return x0
    if kind == "v_prediction":
        return signal * eps - noise * x0
    if kind == "flow":
        return eps - x0
    raise _unknown(kind)


def clean_from(kind: str, out: Tensor, x: Tensor, signal: Number, noise: Number) -> Tensor:
    """Return the estimate of x0 that an output stands for: the definition of its kind, solved for x0."""
    if kind == "epsilon":
        return (x - noise * out) / signal  # arXiv:2006.11239, eq. 15
    if kind == "sample":
        return out
    if kind == "v_prediction":
        # (x, v) is (x0, eps) turned by an angle, cos = signal and sin = noise. Turned back, nothing is divided: v works
        # at a level without signal, where an epsilon says nothing of the image.
        return signal * x - noise * out
    if kind == "flow":
        return x - noise * out  # straight on along the velocity, for the time that is left
    raise _unknown(kind)


def noise_from(kind: str, out: Tensor, x: Tensor, signal: Number, noise: Number) -> Tensor:
    """Return the estimate of eps that an output stands for: the same, solved for eps."""
    if kind == "epsilon":
        return out
    if kind == "sample":
        return (x - signal * out) / noise
    if kind == "v_prediction":
        return signal * out + noise * x
    if kind == "flow":
        return x + signal * out
    raise _unknown(kind)


def output_from(kind: str, x0: Tensor, x: Tensor, signal: Number, noise: Number) -> Tensor:
    """Return the output that stands for an estimate of x0; undoes `clean_from`."""
    if kind == "sample":
        return x0
    # A schedule may begin without noise. There x is x0, whatever the noise was, and a step multiplies it by 0 again.
    noise = noise.clamp(min=_LEAST) if isinstance(noise, Tensor) else max(noise, _LEAST)
    if kind == "epsilon":
        return (x - signal * x0) / noise
    if kind == "v_prediction":
        return (signal * x - x0) / noise
    if kind == "flow":
        return (x - x0) / noise
    raise _unknown(kind)


def velocity_from(kind: str, out: Tensor, x: Tensor, signal: Number, noise: Number) -> Tensor:
    """Return the velocity x0 - eps that an output stands for, whatever the network was trained to predict.

    The courses count time from noise to picture, and so is this one; the `flow` that diffusers trains has the other
    sign. Source: arXiv:2209.03003, eq. 1.
    """
    return clean_from(kind, out, x, signal, noise) - noise_from(kind, out, x, signal, noise)


def _unknown(kind: str) -> UsageError:
    return UsageError(f"unknown prediction_type {kind!r}", f"Known are {', '.join(KINDS)}.")
