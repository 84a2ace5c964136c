"""Noise schedules as curves, for tables and plots: signal, noise, log signal-to-noise ratio and beta by level."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffkit.engine.flows import is_flow, noise_scale
from diffkit.engine.schedules import SCHEDULES, make_noise_scheduler
from diffkit.errors import UsageError
from diffkit.recipes.schema import NoiseSpec
from diffkit.registry import spell

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_utils import SchedulerMixin


@dataclass(frozen=True)
class Curve:
    """A noise schedule over its T levels, from the picture to the noise.

    Attributes:
        name: What it is called.
        about: One line: what it is, and where from.
        timesteps: The levels' timesteps: 0..T-1, and 1..T of a flow.
        signal: sqrt(abar), what is left of the picture.
        noise: sqrt(1 - abar), the share of the noise; of a flow sigma, where signal is 1 - sigma, times its scale.
        log_snr: log(signal^2 / noise^2); infinite where one of them is 0.
        beta: 1 - abar_t / abar_(t-1); empty for a flow, which has none.
    """

    name: str
    about: str
    timesteps: tuple[float, ...]
    signal: tuple[float, ...]
    noise: tuple[float, ...]
    log_snr: tuple[float, ...]
    beta: tuple[float, ...] = ()

    def at(self, points: int) -> Curve:
        """Return the curve at `points` of its levels, spread evenly, the first and the last among them.

        Raises:
            UsageError: Fewer than 2.
        """
        if points < 2:
            raise UsageError(f"`points` {points} is below 2", "The first and the last level are two.")
        last = len(self.timesteps) - 1
        places = sorted({round(k * last / (points - 1)) for k in range(points)})
        parts = (self.timesteps, self.signal, self.noise, self.log_snr, self.beta)
        return Curve(self.name, self.about, *(tuple(p[k] for k in places) if p else () for p in parts))


def curve_of(scheduler: SchedulerMixin, name: str, about: str = "") -> Curve:
    """Return the curve of a scheduler, as a model was trained with it.

    Args:
        scheduler: A diffusers scheduler; its timesteps must not have been set.
        name: What to call it.
        about: One line about it.
    """
    import torch

    levels = int(scheduler.config.num_train_timesteps)
    if is_flow(scheduler):
        # Every level that the model knows; a multistep solver's sigmas are not a flow's before a grid is set.
        grid = scheduler.sigmas.double()[:levels].flip(0) if "shift" in scheduler.config else None
        place = torch.arange(1, levels + 1).double() / levels if grid is None else grid
        signal, noise = 1 - place, noise_scale(scheduler) * place
        times, beta = place * levels, torch.zeros(0)
    else:
        abar = scheduler.alphas_cumprod.double()
        signal, noise = abar.sqrt(), (1 - abar).sqrt()
        times, beta = torch.arange(levels), scheduler.betas.double()
    ratio = 2 * (signal.log() - noise.log())
    return Curve(name, about, *(tuple(values.tolist()) for values in (times, signal, noise, ratio, beta)))


def named_curve(spec: str, timesteps: int) -> Curve:
    """Return the curve of a row of `SCHEDULES`, or of "flow", the straight line of flow matching.

    Args:
        spec: A name, with arguments or without: `linear:0.001,0.004`.
        timesteps: T.

    Raises:
        UsageError: Unknown name, or arguments out of range.
    """
    if spec == "flow":
        scheduler = make_noise_scheduler(NoiseSpec(prediction="flow", timesteps=timesteps))
        return curve_of(scheduler, "flow", "x = (1 - s) x0 + s eps. Liu et al., arXiv:2209.03003, eq. 1.")
    row = SCHEDULES.parse(spec)
    scheduler = make_noise_scheduler(NoiseSpec(schedule=spec, timesteps=timesteps))
    about = " ".join((inspect.getdoc(type(row)) or "").split("\n\n")[0].split())
    return curve_of(scheduler, spell(row), about)


def all_names() -> list[str]:
    """Return the names that `named_curve` takes."""
    return [*SCHEDULES, "flow"]


def finite(values: tuple[float, ...]) -> list[float | None]:
    """Return numbers as JSON has them: None for what is not finite."""
    return [value if math.isfinite(value) else None for value in values]
