"""Training objectives: how a clean batch is corrupted, what the network shall answer, and the loss.

One row per objective. `draw` makes the random parts, `loss` is deterministic given them, so that training and
validation share one function and an out-of-memory replay sees the same noise. Arithmetic outside the network is fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor

from diffkit.engine.predictions import clean_from, noised, target
from diffkit.recipes.schema import NoiseSpec, parse_timestep_bias
from diffkit.registry import Registry
from diffkit.training.bound import Bound
from diffkit.training.losses import TIMES, error_of

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

Network = Callable[..., Tensor]


@dataclass(frozen=True)
class Draw:
    """The random parts of a batch: `noise` (B, C, H, W) ~ N(0, I) and `level` (B,), a timestep or a sigma in (0, 1)."""

    noise: Tensor
    level: Tensor

    def rows(self, start: int, stop: int) -> Draw:
        """Return rows start..stop-1."""
        return Draw(self.noise[start:stop], self.level[start:stop])


class Objective(Protocol):
    """Corruption, question and loss of one way to train."""

    name: ClassVar[str]

    def draw(self, x0: Tensor, generator: torch.Generator) -> Draw:
        """Draw noise and levels for x0 (B, C, H, W) on the generator's device."""

    def loss(self, network: Network, x0: Tensor, labels: Tensor | None, draw: Draw) -> Tensor:
        """Return the loss of every image, (B,), fp32."""


OBJECTIVES: Registry[Any] = Registry("training objective")


def _wide(v: Tensor) -> Tensor:
    return v[:, None, None, None]


def _stratified(x0: Tensor, generator: torch.Generator) -> Tensor:
    """Stratified numbers in (0, 1): one per B-th, in random order; the same law per image, less variance per batch."""
    count = x0.shape[0]
    order = torch.randperm(count, generator=generator, device=x0.device)
    jitter = torch.rand(count, generator=generator, device=x0.device)
    return (order + jitter) / count


def _noise(x0: Tensor, generator: torch.Generator, kind: str = "normal") -> Tensor:
    draw = torch.rand if kind == "uniform" else torch.randn
    return draw(x0.shape, generator=generator, device=x0.device, dtype=torch.float32)


def _blind(network: Network, x: Tensor, labels: Tensor | None) -> Tensor:
    """Ask a network that is not told the level: its time is 0."""
    return network(x, torch.zeros(x.shape[0], dtype=torch.long, device=x.device), labels).float()


class _Diffusion:
    """DDPM training: x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps, t uniform in 0..T-1 unless biased to a range.

    Where the variance is learned, the network's second half v is trained by the variational bound, whose mean is not.

    Source: arXiv:2006.11239, eq. 4 and 14; Min-SNR weights arXiv:2303.09556, eq. 8, for each prediction type; the
    hybrid objective arXiv:2102.09672, eq. 16.
    """

    name: ClassVar[str] = ""

    def __init__(self, noise: NoiseSpec, scheduler: SchedulerMixin, device: torch.device | str) -> None:
        self.error = error_of(noise)
        self.abar = scheduler.alphas_cumprod.to(device=device, dtype=torch.float32)
        self.bound = Bound(scheduler.betas, device) if noise.variance == "learned" else None
        self.vlb_weight = len(self.abar) / 1000 if noise.vlb_weight is None else noise.vlb_weight
        self.bias = parse_timestep_bias(noise.timestep_bias, len(self.abar)) if noise.timestep_bias else None
        snr = self.abar / (1 - self.abar).clamp_min(1e-20)
        self.weight = None if noise.snr_gamma is None else self.weigh(snr, noise.snr_gamma)

    def draw(self, x0: Tensor, generator: torch.Generator) -> Draw:
        levels = torch.randint(0, len(self.abar), (x0.shape[0],), generator=generator, device=x0.device)
        if self.bias is not None:
            low, high, share = self.bias
            chosen = torch.rand(levels.shape, generator=generator, device=x0.device) < share
            inside = torch.randint(low, high, levels.shape, generator=generator, device=x0.device)
            levels = torch.where(chosen, inside, levels)
        return Draw(_noise(x0, generator), levels)

    def loss(self, network: Network, x0: Tensor, labels: Tensor | None, draw: Draw) -> Tensor:
        abar = _wide(self.abar[draw.level])
        signal, share = abar.sqrt(), (1 - abar).sqrt()
        x = noised(x0, draw.noise, signal, share)
        out, v = network(x, draw.level, labels).float(), None
        if self.bound is not None:
            out, v = out.chunk(2, dim=1)
        loss = self.error(out - target(self.name, x0, draw.noise, signal, share))
        if self.weight is not None:
            loss = loss * self.weight[draw.level]
        if self.bound is None or v is None:
            return loss
        clean = clean_from(self.name, out.detach(), x, signal, share)
        return loss + self.vlb_weight * self.bound(x0, clean, v, draw.level)

    def weigh(self, snr: Tensor, gamma: float) -> Tensor:
        raise NotImplementedError


@OBJECTIVES.register("epsilon")
class Epsilon(_Diffusion):
    """Predict the noise. Source: arXiv:2006.11239, eq. 14."""

    def weigh(self, snr: Tensor, gamma: float) -> Tensor:
        return snr.clamp(max=gamma) / snr.clamp_min(1e-20)


@OBJECTIVES.register("sample")
class Sample(_Diffusion):
    """Predict the clean image; plain mean square unless Min-SNR is asked for (then min(SNR, gamma), so clamped)."""

    def weigh(self, snr: Tensor, gamma: float) -> Tensor:
        return snr.clamp(max=gamma)


@OBJECTIVES.register("v_prediction")
class VPrediction(_Diffusion):
    """Predict v = sqrt(abar) eps - sqrt(1 - abar) x0. Source: arXiv:2202.00512, appendix D."""

    def weigh(self, snr: Tensor, gamma: float) -> Tensor:
        return snr.clamp(max=gamma) / (snr + 1)


class _Levels:
    """What the objectives without a noise schedule share: levels in (0, 1), uniform unless `times` says otherwise."""

    name: ClassVar[str] = ""

    def __init__(self, noise: NoiseSpec, scheduler: SchedulerMixin, device: torch.device | str) -> None:
        self.timesteps = noise.timesteps
        self.sigma = noise.sigma
        self.error = error_of(noise)
        self.times = TIMES.parse(noise.times)
        self.distribution = noise.distribution

    def draw(self, x0: Tensor, generator: torch.Generator) -> Draw:
        return Draw(_noise(x0, generator, self.distribution), self.times(_stratified(x0, generator)))


@OBJECTIVES.register("flow")
class Flow(_Levels):
    """Rectified flow: x = (1 - s) x0 + s eps; predict the velocity eps - x0, the network's time being s T.

    Source: arXiv:2209.03003, eq. 1; arXiv:2403.03206, eq. 13.
    """

    def loss(self, network: Network, x0: Tensor, labels: Tensor | None, draw: Draw) -> Tensor:
        s = _wide(draw.level)
        out = network(noised(x0, draw.noise, 1 - s, s), draw.level * self.timesteps, labels).float()
        return self.error(out - target("flow", x0, draw.noise, 1 - s, s))


@OBJECTIVES.register("linear_mix")
class LinearMix(_Levels):
    """The course's warm-up: x = (1 - a) x0 + a eps; predict x0 without being told a (the network's time is 0)."""

    def loss(self, network: Network, x0: Tensor, labels: Tensor | None, draw: Draw) -> Tensor:
        a = _wide(draw.level)
        return self.error(_blind(network, noised(x0, draw.noise, 1 - a, a), labels) - x0)


@OBJECTIVES.register("one_step")
class OneStep(_Levels):
    """The one-step denoiser: z = x0 + sigma eps at one fixed sigma; predict x0 (the network's time is 0)."""

    def loss(self, network: Network, x0: Tensor, labels: Tensor | None, draw: Draw) -> Tensor:
        return self.error(_blind(network, x0 + self.sigma * draw.noise, labels) - x0)


@OBJECTIVES.register("pure_noise")
class PureNoise(_Levels):
    """Noise alone goes in, and x0 is to come out (the network's time is 0).

    The noise says nothing of x0, so that the best answer, whatever the noise, is the mean of the data for `mse`, and
    the median of each pixel for `mae`.
    """

    def loss(self, network: Network, x0: Tensor, labels: Tensor | None, draw: Draw) -> Tensor:
        return self.error(_blind(network, draw.noise, labels) - x0)


def make_objective(noise: NoiseSpec, scheduler: SchedulerMixin, device: torch.device | str) -> Objective:
    """Build the objective that a recipe names.

    Args:
        noise: The recipe's noise section; its `prediction` is the name.
        scheduler: A diffusers scheduler with `alphas_cumprod` (T,) for the diffusion objectives; unused by the others.
        device: Where the batches will be.

    Raises:
        UsageError: No objective has that name.
    """
    return OBJECTIVES[noise.prediction](noise, scheduler, device)


def drop_labels(labels: Tensor | None, null: int, probability: float, generator: torch.Generator) -> Tensor | None:
    """Replace each label by the null class with the given probability, as guidance needs (arXiv:2207.12598)."""
    if labels is None or probability == 0:
        return labels
    dropped = torch.rand(labels.shape, generator=generator, device=labels.device) < probability
    return torch.where(dropped, torch.full_like(labels, null), labels)
