"""Adams' second-order multistep method for flows, on any grid: one network call a step, as Euler's.

Source: Bashforth & Adams (1883) with steps of different length; the sampler of PixNerd, arXiv:2507.23268.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput
from torch import Tensor


class FlowMatchAdamsScheduler(FlowMatchEulerDiscreteScheduler):
    """Integrates the line through the last two velocities; the first step, wherever it is, is Euler's.

    Everything else is of the stock class, `shift` among it: a flow's sample is (1 - sigma) x0 + sigma eps, its velocity
    eps - x0. Without `sigmas` or `timesteps` the grid is of equal steps down to 0, before the shift.
    """

    sigmas: Tensor
    # The place in the grid and the velocity of the last step. Replaced and never changed, so that a copy of a scheduler
    # goes its own way.
    _last: tuple[int, Tensor] | None = None

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """As the stock method, which in equal steps would end with one from 1 / T to 0."""
        self._last = None
        if sigmas is None and timesteps is None and num_inference_steps is not None:
            sigmas = np.linspace(1.0, 1.0 / num_inference_steps, num_inference_steps).tolist()
        super().set_timesteps(num_inference_steps, device=device, sigmas=sigmas, mu=mu, timesteps=timesteps)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> FlowMatchEulerDiscreteSchedulerOutput | tuple[Tensor]:
        """Go from a timestep of the grid to the next.

        Args:
            model_output: (B, C, H, W), the velocity at `timestep`.
            timestep: Where the sample is; looked up in the first step, which may be any of the grid.
            sample: (B, C, H, W).
            generator: Not used: nothing is random.
            return_dict: Return diffusers' output class, else a tuple.
        """
        if self.step_index is None:
            self._init_step_index(timestep)
        place = int(self.step_index)
        here, after = (float(self.sigmas[k]) for k in (place, place + 1))
        velocity = model_output.float()
        # The line through v at the sigmas s0 (before) and s1 (here) has its mean over the step from s1 to s2 in the
        # middle: v1 + (v1 - v0) / (s1 - s0) * (s2 - s1) / 2.
        mean = velocity
        if self._last is not None and self._last[0] == place - 1:
            before = float(self.sigmas[place - 1])
            mean = velocity + 0.5 * (after - here) / (here - before) * (velocity - self._last[1])
        reached = (sample.float() + (after - here) * mean).to(model_output.dtype)
        self._last, self._step_index = (place, velocity), place + 1
        return FlowMatchEulerDiscreteSchedulerOutput(prev_sample=reached) if return_dict else (reached,)
