"""Flows: what their schedulers' configurations say, their samplers put right, and the grids that stock pipelines take.

A flow's sample is x = (1 - s) x0 + s k eps, s going from 1 (noise) to 0 (picture) and a timestep being s * T. Fields
of a scheduler's configuration that diffusers' classes of flows do not have say what a family's stock pipeline does:

    prediction_type   "sample" where the network gives x0; else it gives the velocity eps - x0
    noise_scale       k, how much noise its samples start from; 1 where left out
    least_sigma       the least s that x0 is made a velocity with, (x - x0) / max(s, least_sigma)
    timestep_spacing  "linspace": the stock class's own grid; else equal steps down to 0
    mu                the time shift of the model's picture size, where `use_dynamic_shifting` is set

A family sets them by `register_to_config`. Sources: Lipman et al., arXiv:2210.02747; Liu et al., arXiv:2209.03003; the
shift: Esser et al., arXiv:2403.03206, eq. 23.
"""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.configuration_utils import FrozenDict
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from diffkit.engine.adams import FlowMatchAdamsScheduler
from diffkit.engine.sampler_names import Sampler
from diffkit.errors import UsageError

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

FLOW_FIELDS = ("prediction_type", "noise_scale", "least_sigma", "timestep_spacing", "mu")

# A multistep solver counts in log((1 - s) / s), which is infinite at 1: there it takes the last level this far below.
_BELOW_ONE = 1e-6


def is_flow(scheduler: SchedulerMixin) -> bool:
    """Say whether a scheduler integrates a flow's velocity."""
    if scheduler.config.get("use_flow_sigmas"):
        return True
    return any(cls.__name__.startswith("FlowMatch") for cls in type(scheduler).__mro__)


def predicts_clean(scheduler: SchedulerMixin) -> bool:
    """Say whether the network of a flow gives x0, and not the velocity."""
    return bool(scheduler.config.get("prediction_type") == "sample")


def noise_scale(scheduler: SchedulerMixin) -> float:
    """Return k of a flow whose samples are (1 - s) x0 + s k eps.

    Raises:
        UsageError: Other than 1 for a network that gives the velocity, which may be eps - x0 or k eps - x0.
    """
    scale = float(scheduler.config.get("noise_scale") or 1.0)
    if scale != 1.0 and not predicts_clean(scheduler):
        raise UsageError(
            f"the scheduler has noise_scale {scale:g}, and its network predicts the velocity",
            "Put prediction_type sample into the scheduler's configuration, or leave noise_scale out.",
        )
    return scale


class CleanStep:
    """Before a solver of velocities: makes one of the x0 that the network gives, where the configuration says so."""

    config: FrozenDict

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> Any:
        """As the solver's, which takes the velocity."""
        if self.config.get("prediction_type") == "sample":
            # The line through x that ends in x0 at s = 0. Heun's second call of a step comes with the sample and the
            # timestep of the step's end, and so with the right s.
            share = torch.as_tensor(timestep).to(sample.device).float() / self.config.num_train_timesteps
            least = float(self.config.get("least_sigma") or 0.0)
            model_output = (sample.float() - model_output.float()) / share.clamp(min=least)
            # Below the least s that is nearly 0, and Heun's mean with it would take half a step: there it is Euler's.
            first = getattr(self, "prev_derivative", None)  # of Heun's method, between the calls of a step
            if first is not None and share < least:
                model_output = first
        return super().step(  # type: ignore[misc]
            model_output, timestep, sample, generator=generator, return_dict=return_dict
        )


class FlowEuler(CleanStep, FlowMatchEulerDiscreteScheduler):
    """Euler's method, whose stochastic form draws from each picture's own generator.

    Before diffusers 0.38 the stock class drew `stochastic_sampling`'s noise from the global generator, whatever it was
    given: no picture could be drawn again. Here the noise is given by hand, and is that of later versions bit for bit.
    """

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> Any:
        """Go to the next level; with `stochastic_sampling` straight to x0, and up to it with fresh noise."""
        if not self.config.stochastic_sampling:
            return super().step(model_output, timestep, sample, generator, return_dict)
        if self.step_index is None:
            self._init_step_index(timestep)
        here, after = (self.sigmas[self.step_index + k] for k in (0, 1))
        x = sample.float()
        x0 = model_output.float() if predicts_clean(self) else x - here * model_output
        noise = noise_scale(self) * randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        reached = ((1.0 - after) * x0 + after * noise).to(model_output.dtype)
        self._step_index += 1
        return FlowMatchEulerDiscreteSchedulerOutput(prev_sample=reached) if return_dict else (reached,)


class FlowHeun(CleanStep, FlowMatchHeunDiscreteScheduler):
    """Heun's method, on any grid."""

    grid_of: FlowMatchEulerDiscreteScheduler | None = None  # makes grids as the model's own configuration says


class FlowAdams(CleanStep, FlowMatchAdamsScheduler):
    """Adams' method."""


class FloatGrid:
    """Of multistep solvers: timesteps that are s * T, where the stock ones are cut to whole numbers.

    The stock classes step with s and tell the network the whole number below s * T: two levels for one sample.
    """

    config: FrozenDict
    sigmas: Tensor
    timesteps: Tensor
    grid_of: FlowMatchEulerDiscreteScheduler | None = None  # makes grids as the model's own configuration says

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """As the stock method, with the level of every step for its timestep."""
        super().set_timesteps(num_inference_steps, device=device)  # type: ignore[misc]
        _put(self, self.sigmas[:-1].clone())


class FlowDPM(FloatGrid, DPMSolverMultistepScheduler):
    """DPM-Solver++ on flows; its stochastic form adds noise of the model's own scale."""

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """As the stock method."""
        scale = noise_scale(self)
        if scale != 1.0 and variance_noise is None and self.config.algorithm_type.startswith("sde"):
            # Ratios of levels, all that the deterministic part knows, are the same for every k; fresh noise is not.
            variance_noise = scale * randn_tensor(
                sample.shape, generator=generator, device=sample.device, dtype=torch.float32
            )
        return super().step(model_output, timestep, sample, generator, variance_noise, return_dict)


class FlowUniPC(FloatGrid, UniPCMultistepScheduler):
    """UniPC on flows."""


_OURS: dict[str, type[SchedulerMixin]] = {
    "FlowMatchEulerDiscreteScheduler": FlowEuler,
    "FlowMatchHeunDiscreteScheduler": FlowHeun,
    "FlowMatchAdamsScheduler": FlowAdams,
    "DPMSolverMultistepScheduler": FlowDPM,
    "UniPCMultistepScheduler": FlowUniPC,
}


def make_flow(
    row: Sampler, base: SchedulerMixin, *, spacing: str | None = None, shift: float | None = None, **options: Any
) -> SchedulerMixin:
    """Build a flow's sampler from the scheduler that a model was trained with.

    Args:
        row: The sampler, which integrates flows.
        base: The model's scheduler; not changed.
        spacing: trailing, equal steps down to 0, or linspace, the stock class's own grid, which ends with a step from
            the last level of training. When left out what the configuration says, else the sampler's own.
        shift: How far levels are moved towards noise, in place of the model's own shift.
        options: Further arguments of the class, and fields of flows.
    """
    stated = _stated(base)
    if shift is not None:
        stated.update(shift=shift, use_dynamic_shifting=False)
    fields = {key: base.config[key] for key in FLOW_FIELDS if base.config.get(key) is not None}
    if not isinstance(base, (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler)):
        fields.pop("timestep_spacing", None)  # a default that means something else there
    fields.update({key: options.pop(key) for key in FLOW_FIELDS if key in options})
    if spacing is not None:
        fields["timestep_spacing"] = spacing
    cls, euler = _OURS[row.cls], FlowMatchEulerDiscreteScheduler(**stated)
    common = {"num_train_timesteps": stated["num_train_timesteps"], **row.options, **options}
    if issubclass(cls, FlowMatchEulerDiscreteScheduler):
        made = cls(**{**stated, **row.options, **options})
    elif issubclass(cls, FlowHeun):
        made = cls(shift=euler.shift, **common)
        made.grid_of = euler
        fields.setdefault("timestep_spacing", "linspace")
    else:
        kind = "sample" if fields.get("prediction_type") == "sample" else "flow_prediction"
        made = cls(flow_shift=euler.shift, prediction_type=kind, **common)
        made.grid_of = euler
        fields.update(prediction_type=kind, timestep_spacing=fields.get("timestep_spacing", "trailing"))
    made.register_to_config(**fields)
    noise_scale(made)
    return made


def _stated(base: SchedulerMixin) -> dict[str, Any]:
    """Arguments of the stock Euler class that mean what a flow's configuration means."""
    # Read from the configuration itself: `from_config` drops what was registered after a scheduler was made, where it
    # had been left to the class's default.
    config = base.config
    if "shift" not in config:  # a multistep solver's
        return {"num_train_timesteps": config["num_train_timesteps"], "shift": config.get("flow_shift", 1.0)}
    known = set(signature(FlowMatchEulerDiscreteScheduler.__init__).parameters) - {"self"}
    return {key: config[key] for key in known if key in config}


def _euler(scheduler: SchedulerMixin) -> FlowMatchEulerDiscreteScheduler:
    """The stock class that makes a sampler's grids, as the model's own configuration says."""
    made: FlowMatchEulerDiscreteScheduler | None = None
    if isinstance(scheduler, FloatGrid | FlowHeun):
        made = scheduler.grid_of
    return FlowMatchEulerDiscreteScheduler(**_stated(scheduler)) if made is None else made


def needs_mu(scheduler: SchedulerMixin) -> bool:
    """Say whether the time shift depends on the size of the picture, and its configuration does not say how far."""
    return bool(_euler(scheduler).config.use_dynamic_shifting) and scheduler.config.get("mu") is None


def spread_flow(scheduler: SchedulerMixin, steps: int) -> None:
    """Set a grid of so many steps, as the spacing of the configuration says.

    "linspace" is the stock class's, its shift and its Karras, exponential or beta levels among it; "trailing" begins
    with equal steps down to 0, where the stock grid ends with one from 1/T.
    """
    euler, config = _euler(scheduler), scheduler.config
    shifted = {"mu": config["mu"]} if euler.config.use_dynamic_shifting else {}
    default = "linspace" if isinstance(scheduler, FlowMatchHeunDiscreteScheduler) else "trailing"
    if config.get("timestep_spacing", default) == "linspace":
        euler.set_timesteps(steps, **shifted)
    else:
        euler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / steps, steps).tolist(), **shifted)
    set_levels(scheduler, euler.sigmas[:-1].clone())


def set_levels(scheduler: SchedulerMixin, levels: Tensor | Sequence[float]) -> None:
    """Set a flow's grid to levels s as they are, after every shift.

    Args:
        scheduler: Of a flow.
        levels: Descending, in (0, 1]; 0 is added behind the last.
    """
    sigmas = torch.as_tensor(levels, dtype=torch.float32)
    # The scheduler's own method first, for what it forgets of the picture before.
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        mu = {"mu": 0.0} if scheduler.config.use_dynamic_shifting else {}
        scheduler.set_timesteps(sigmas=sigmas.tolist(), **mu)
    else:
        scheduler.set_timesteps(len(sigmas))
    _put(scheduler, sigmas)


def _put(scheduler: SchedulerMixin, sigmas: Tensor) -> None:
    times = sigmas * scheduler.config.num_train_timesteps
    if int(scheduler.order) == 2:  # both calls of a step
        times = torch.cat([times[:1], times[1:].repeat_interleave(2)])
        sigmas = torch.cat([sigmas[:1], sigmas[1:].repeat_interleave(2)])
    elif not isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        sigmas = sigmas.clamp(max=1.0 - _BELOW_ONE)
    scheduler.timesteps, scheduler.sigmas = times, torch.cat([sigmas, torch.zeros(1)])
