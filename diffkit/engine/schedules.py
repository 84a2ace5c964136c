"""Noise schedules by name: one registered row each, turned into diffusers scheduler arguments.

A row knows how the signal decays, nothing of how it is sampled. `abar` is the cumulative product of alpha = 1 - beta,
the fraction of the signal's variance that is left; the forward process is x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps
(Ho et al., arXiv:2006.11239, eq. 4).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from math import acos, cos, exp
from typing import Any, Protocol

from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from diffkit.errors import UsageError, did_you_mean
from diffkit.recipes.schema import DIFFUSION, ONE_STEP, NoiseSpec
from diffkit.registry import Registry

LOG = logging.getLogger("diffkit.engine.schedules")

PREDICTIONS = (*DIFFUSION, "flow", *ONE_STEP, "linear_mix")

# Nichol & Dhariwal cap beta here. At beta = 1 a single step would wipe out all signal, and the way back from it, which
# divides by sqrt(1 - beta), would not exist.
_MAX_BETA = 0.999


class Schedule(Protocol):
    """A row: its fields are its command-line arguments."""

    name: str

    def config(self, timesteps: int) -> dict[str, Any]:
        """Return scheduler arguments (`beta_schedule` and its range, or `trained_betas`) for T = `timesteps`."""


SCHEDULES: Registry[Schedule] = Registry("noise schedule")


def _betas(abar: Callable[[int], float], timesteps: int) -> list[float]:
    """Betas whose cumulative products are abar(0), ..., abar(T-1); the level before the first is 1."""
    # abar_t = (1 - beta_1) ... (1 - beta_t), so that one factor is abar_t / abar_{t-1}. diffusers wants the betas. A
    # beta below 0 would add signal, and rounding can ask for one where abar hardly falls.
    before, betas = 1.0, []
    for i in range(timesteps):
        now = abar(i)
        betas.append(min(max(1.0 - now / before, 0.0), _MAX_BETA))
        before = now
    return betas


def _range(name: str, start: float, end: float) -> None:
    if not 0 < start <= end < 1:
        raise UsageError(f"noise schedule {name}: beta runs from {start} to {end}; needed: 0 < start <= end < 1")


@SCHEDULES.register("linear")
@dataclass(frozen=True)
class Linear:
    """beta grows linearly. Ho et al., arXiv:2006.11239, section 4 (1e-4 to 0.02 at T = 1000)."""

    beta_start: float = 1e-4
    beta_end: float = 0.02

    def config(self, timesteps: int) -> dict[str, Any]:
        # abar = prod(1 - beta) falls about like exp(-t^2), so far that in the last fifth of the steps there is hardly
        # anything left to see: sampling may skip them (arXiv:2102.09672, section 3.2). Cosines spread the loss evenly.
        _range("linear", self.beta_start, self.beta_end)
        return {"beta_schedule": "linear", "beta_start": self.beta_start, "beta_end": self.beta_end}


@SCHEDULES.register("scaled_linear")
@dataclass(frozen=True)
class ScaledLinear:
    """sqrt(beta) grows linearly: latent diffusion. Rombach et al., arXiv:2112.10752, and its released configuration."""

    beta_start: float = 0.00085
    beta_end: float = 0.012

    def config(self, timesteps: int) -> dict[str, Any]:
        # Betas are variances, and their roots the standard deviations of the noise that the steps add. Where these grow
        # linearly, the first steps are gentler than in "linear".
        _range("scaled_linear", self.beta_start, self.beta_end)
        return {"beta_schedule": "scaled_linear", "beta_start": self.beta_start, "beta_end": self.beta_end}


@SCHEDULES.register("cosine")
@dataclass(frozen=True)
class Cosine:
    """abar(t) = f(t)/f(0), f(t) = cos^2((t + 0.008)/1.008 * pi/2). Nichol & Dhariwal, arXiv:2102.09672, eq. 17."""

    def config(self, timesteps: int) -> dict[str, Any]:
        # Signal variance cos^2 and noise variance sin^2 add to 1 by themselves. Both are flat at the ends and steep in
        # the middle, so that no step destroys much more than its neighbours. By the offset of 0.008 the first noise is
        # about a step of an 8-bit pixel, for less could not be predicted. diffusers makes the betas, capped as above.
        return {"beta_schedule": "squaredcos_cap_v2"}


@SCHEDULES.register("offset_cosine")
@dataclass(frozen=True)
class OffsetCosine:
    """sqrt(abar) = cos(angle), the angle growing linearly from arccos(max_signal_rate) to arccos(min_signal_rate).

    The first and the last of the T levels hold exactly these signal rates. Source: the variance-preserving cosine of
    Nichol & Dhariwal (arXiv:2102.09672) with offsets at both ends in place of the cap, as in the Keras DDIM example.
    """

    max_signal_rate: float = 0.95
    min_signal_rate: float = 0.02

    def config(self, timesteps: int) -> dict[str, Any]:
        if not 0 < self.min_signal_rate < self.max_signal_rate <= 1:
            raise UsageError(
                f"noise schedule offset_cosine: signal rates {self.max_signal_rate}, {self.min_signal_rate}; "
                "needed: 0 < min < max <= 1, the larger one first"
            )
        # Signal and noise rate are cosine and sine of one angle; equal steps of it change both most evenly. The signal
        # that is left at the end keeps the last step finite without a cap.
        start, end = acos(self.max_signal_rate), acos(self.min_signal_rate)
        betas = _betas(lambda i: cos(start + (end - start) * i / (timesteps - 1)) ** 2, timesteps)
        return {"trained_betas": betas}


@SCHEDULES.register("sigmoid")
@dataclass(frozen=True)
class Sigmoid:
    """beta is a sigmoid of t over [-6, 6]: diffusers' own "sigmoid". Xu et al. (GeoDiff), arXiv:2203.02923."""

    beta_start: float = 1e-4
    beta_end: float = 0.02

    def config(self, timesteps: int) -> dict[str, Any]:
        # Hardly any noise in the first steps, then a rise in the middle, and the largest beta for the rest.
        _range("sigmoid", self.beta_start, self.beta_end)
        return {"beta_schedule": "sigmoid", "beta_start": self.beta_start, "beta_end": self.beta_end}


@SCHEDULES.register("sigmoid_abar")
@dataclass(frozen=True)
class SigmoidAbar:
    """abar is a falling sigmoid of t, scaled to run from 1 to 0.

    Fields: the sigmoid's argument at t = 0 and t = 1, and the temperature that divides it.
    Source: Jabri et al., arXiv:2212.11972; Chen, arXiv:2301.10972.
    """

    start: float = -3.0
    end: float = 3.0
    tau: float = 1.0

    def config(self, timesteps: int) -> dict[str, Any]:
        if not (self.start < self.end and self.tau > 0):
            raise UsageError(
                f"noise schedule sigmoid_abar: start {self.start}, end {self.end}, tau {self.tau}; "
                "needed: start < end and tau > 0"
            )
        # Here the sigmoid is of abar itself and not of beta. A lower temperature makes it steeper: more levels near the
        # clean end and near pure noise. Larger pictures want more noise at the same t, since their pixels repeat each
        # other (arXiv:2301.10972, section 2).
        low, high = self._sigmoid(self.start), self._sigmoid(self.end)

        def abar(i: int) -> float:
            at = self._sigmoid(self.start + (self.end - self.start) * (i + 1) / timesteps)
            return max((high - at) / (high - low), 1e-9)  # exactly 0 at the end would be zero terminal SNR

        return {"trained_betas": _betas(abar, timesteps)}

    def _sigmoid(self, value: float) -> float:
        return 1.0 / (1.0 + exp(-value / self.tau))


def make_noise_scheduler(noise: NoiseSpec) -> DDPMScheduler | FlowMatchEulerDiscreteScheduler:
    """Make the scheduler that a model is trained with and saved with.

    `flow` and `linear_mix` lie on the straight line between image and noise, so they get flow matching's scheduler with
    T levels, and `schedule` plays no part. `one_step` and `pure_noise` have no chain; they get a DDPM scheduler that
    predicts x0, for the sake of the file layout. Sampling grids are "trailing", so that every number of steps starts at
    pure noise (Lin et al., arXiv:2305.08891, table 2).

    Raises:
        UsageError: Unknown prediction or schedule, arguments out of range; zero terminal SNR with prediction epsilon.
    """
    if noise.prediction not in PREDICTIONS:
        raise UsageError(f"unknown noise.prediction {noise.prediction!r}", did_you_mean(noise.prediction, PREDICTIONS))
    row = SCHEDULES.parse(noise.schedule)
    # A flow has no betas: its level is the place on the line from image (0) to noise (1).
    if noise.prediction in ("flow", "linear_mix"):
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=noise.timesteps)
    if noise.zero_terminal_snr and noise.prediction == "epsilon":
        raise UsageError(
            "noise.zero_terminal_snr with prediction epsilon divides by zero at T", "Use v_prediction or sample."
        )
    scheduler = DDPMScheduler(
        num_train_timesteps=noise.timesteps,
        prediction_type="sample" if noise.prediction in ONE_STEP else noise.prediction,
        clip_sample=noise.clip_sample,
        variance_type="learned_range" if noise.variance == "learned" else "fixed_small",
        rescale_betas_zero_snr=noise.zero_terminal_snr,
        timestep_spacing="trailing",
        **row.config(noise.timesteps),
    )
    # Training never shows the network more noise than at T, sampling starts from nothing but noise. What is left of the
    # image at T, above all its mean brightness, is then missing (Lin et al., arXiv:2305.08891, section 3.1).
    left = float(scheduler.alphas_cumprod[-1]) ** 0.5
    if left > 0.15 and noise.prediction not in ONE_STEP:
        LOG.info(
            "noise schedule %s keeps %.0f %% of the image's amplitude at its last level, T = %d; samples start from "
            "pure noise and may be off in brightness (a larger beta_end, or noise.zero_terminal_snr, closes the gap)",
            noise.schedule, 100 * left, noise.timesteps,
        )  # fmt: skip
    return scheduler
