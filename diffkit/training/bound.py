"""The variational bound of one reverse step, which trains a learned variance.

Everything is in bits per dimension, as the papers have it. Source: Nichol & Dhariwal, arXiv:2102.09672, eq. 4, 15, 16.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Bound:
    """The terms L_0, ..., L_(T-1) for a chain of noise levels.

    Args:
        betas: (T,) of the forward process.
        device: Where the batches will be.
    """

    def __init__(self, betas: Tensor, device: torch.device | str) -> None:
        beta = betas.double().cpu()
        after = torch.cumprod(1 - beta, 0)
        before = torch.cat([torch.ones(1, dtype=torch.float64), after[:-1]])
        posterior = beta * (1 - before) / (1 - after)
        posterior[0] = posterior[1]  # the last step has none of its own, and its logarithm is needed
        kept = {
            "clean": before.sqrt() * beta / (1 - after),
            "smallest": posterior.log(),
            "largest": beta.log(),
        }
        self._kept = {name: value.to(device, torch.float32) for name, value in kept.items()}

    def log_variance(self, v: Tensor, t: Tensor) -> Tensor:
        """Return the log variance that the network's v (B, C, H, W) stands for: -1 the posterior's, 1 beta (eq. 15)."""
        low, high = self._at("smallest", t), self._at("largest", t)
        share = (v + 1) / 2
        return share * high + (1 - share) * low

    def __call__(self, x0: Tensor, estimate: Tensor, v: Tensor, t: Tensor) -> Tensor:
        """Return L_t of every image, (B,), in bits per dimension; the gradient flows into v alone.

        Outside of [-1, 1] v counts as the nearest end, plus the square of what it is off. At the cleanest levels an
        x0-predicting network misses by more than beta allows for, and its v would run away; sampling in fewer, longer
        steps, where the range is wider, would then turn that into a burst of noise.

        Args:
            x0: (B, C, H, W) in [-1, 1], the clean images, taken to be 8-bit for L_0.
            estimate: (B, C, H, W), what the network makes of them.
            v: (B, C, H, W), the network's variance.
            t: (B,) timesteps.
        """
        inside = v.clamp(-1, 1)
        log_variance = self.log_variance(inside, t)
        estimate = estimate.detach()
        # Both means hold the same share of x_t; at t = 0 the mean is the estimate itself.
        miss = self._at("clean", t) * (x0 - estimate)
        divergence = gaussian_kl(miss, self._at("smallest", t), log_variance)
        first = (t == 0)[:, None, None, None]
        terms = torch.where(first, -discrete_log_likelihood(x0, estimate, log_variance), divergence)
        return terms.flatten(1).mean(1) / math.log(2) + (v - inside).square().flatten(1).mean(1)

    def _at(self, name: str, t: Tensor) -> Tensor:
        return self._kept[name][t][:, None, None, None]


def gaussian_kl(difference: Tensor, log_variance: Tensor, other: Tensor) -> Tensor:
    """Return KL(N(a, exp(log_variance)) || N(b, exp(other))) in nats, for difference = a - b."""
    return 0.5 * (other - log_variance - 1 + (log_variance - other).exp() + difference.square() * (-other).exp())


def discrete_log_likelihood(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return the log of the probability that N(mean, exp(log_variance)) gives to x's bin of 1/127.5, in nats.

    The first and the last bin reach to infinity. Source: Ho et al., arXiv:2006.11239, eq. 13.
    """
    scale = (-0.5 * log_variance).exp()
    centred = x - mean
    upper = torch.special.ndtr((centred + 1 / 255) * scale)
    lower = torch.special.ndtr((centred - 1 / 255) * scale)
    upper = torch.where(x > 0.999, torch.ones_like(upper), upper)
    lower = torch.where(x < -0.999, torch.zeros_like(lower), lower)
    return (upper - lower).clamp_min(1e-12).log()
