"""Three diffusers schedulers put right: DDIM on every grid, a DDPM that can go without noise, and the static clip.

Everything else is stock; which solver is made from which row is in `samplers.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.configuration_utils import FrozenDict
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from diffkit.engine.predictions import clean_from, noise_from


class GridDDIM(DDIMScheduler):
    """DDIM whose every step goes to the next point of the actual grid.

    The stock step goes from t to t - T // N, which is not the next point of a linspace or custom grid, nor of any where
    N does not divide T. Source: Song et al., arXiv:2010.02502, eq. 12, with t-1 read as the next point.
    """

    timesteps: Tensor

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """As the stock method, and with a custom descending grid."""
        if timesteps is None:
            super().set_timesteps(num_inference_steps, device=device)
            # Rounding errors in the stock "trailing" grid can append a timestep of -1 (61 steps of 1000).
            self.timesteps = self.timesteps[self.timesteps >= 0]
        else:
            self.timesteps = torch.tensor(list(timesteps), dtype=torch.int64, device=device)
        self.num_inference_steps = len(self.timesteps)
        grid = self.timesteps.tolist()
        self._next = dict(zip(grid, [*grid[1:], -1], strict=True))

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[Tensor, Tensor]:
        """As the stock method, from t to the next point of the grid."""
        t, after = int(timestep), self._next[int(timestep)]
        abar = self.alphas_cumprod[t]
        spread = (1 - abar).clamp(min=1e-20)  # a schedule may begin without any noise, and two lines divide by this
        abar_after = self.alphas_cumprod[after] if after >= 0 else self.final_alpha_cumprod
        kind, signal, noise = self.config.prediction_type, abar**0.5, spread**0.5
        # What is the picture, and what the noise, if the network is right? The two together are x again.
        x0 = clean_from(kind, model_output, sample, signal, noise)
        eps = noise_from(kind, model_output, sample, signal, noise)
        if self.config.thresholding:
            x0 = dynamic_threshold(x0, self.config.dynamic_thresholding_ratio, self.config.sample_max_value)
        elif self.config.clip_sample:
            x0 = x0.clamp(-self.config.clip_sample_range, self.config.clip_sample_range)
        if use_clipped_model_output:  # the noise that leads from the clipped x0 to x
            eps = (sample - signal * x0) / noise
        # Equation 16: how much of the noise of the new level is drawn afresh. eta 0 draws none: each start has one
        # picture. eta 1 draws what DDPM does, sigma being that of the posterior q(x_after | x, x0).
        sigma = eta * ((1 - abar_after) / spread * (1 - abar / abar_after)) ** 0.5
        # Equation 12 in three terms: the clean estimate at the signal of the new level; the noise that the network
        # found, pointing from x0 to x; and fresh noise. The variances of the last two add up to 1 - abar_after, so that
        # x has the noise that the network expects there, whatever eta is. From a level without signal, with eta 1,
        # sigma^2 is all of it, and rounding may leave a difference just below 0, which has no root: hence the clamp.
        kept = (1 - abar_after - sigma**2).clamp(min=0) ** 0.5
        x = abar_after**0.5 * x0 + kept * eps
        if eta > 0:
            if variance_noise is None:
                variance_noise = randn_tensor(
                    model_output.shape, generator=generator, device=model_output.device, dtype=model_output.dtype
                )
            x = x + self.fresh_rate(sigma, abar, abar_after) * variance_noise
        return DDIMSchedulerOutput(prev_sample=x, pred_original_sample=x0) if return_dict else (x, x0)

    def fresh_rate(self, sigma: Tensor, abar: Tensor, abar_after: Tensor) -> Tensor:
        """Return the standard deviation of the fresh noise: what was taken from the predicted one."""
        return sigma


class LargerDDIM(GridDDIM):
    """DDIM with eta 1 whose fresh noise has the larger standard deviation, sqrt(1 - abar / abar_after).

    What is taken from the predicted noise stays sigma's, so that a sample holds a little more noise than its level has.
    Source: Song et al., arXiv:2010.02502, appendix D.3; the stochastic steps of the Keras DDIM example.
    """

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        eta: float = 1.0,
        use_clipped_model_output: bool = False,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[Tensor, Tensor]:
        """As DDIM's with eta 1, whatever `eta` says."""
        return super().step(
            model_output, timestep, sample, 1.0, use_clipped_model_output, generator, variance_noise, return_dict
        )

    def fresh_rate(self, sigma: Tensor, abar: Tensor, abar_after: Tensor) -> Tensor:
        """Return the larger standard deviation; none after the last step, which ends in a picture."""
        return torch.zeros_like(sigma) if float(sigma) == 0 else (1 - abar / abar_after) ** 0.5


def dynamic_threshold(x0: Tensor, ratio: float, largest: float) -> Tensor:
    """Clip every image (C, H, W) of a batch to [-s, s] and divide by s, a quantile of its absolute values.

    Args:
        x0: (B, C, H, W), a clean estimate.
        ratio: Which quantile, 0.995 for the largest half per cent.
        largest: s is held to [1, largest].

    Source: Imagen, arXiv:2205.11487, section 2.3.
    """
    # Strong guidance drives pixels beyond [-1, 1], more in each step. A plain clip saturates them to flat patches;
    # divided by a high quantile the picture keeps its contrasts, and only the largest values are cut.
    wide = x0 if x0.dtype in (torch.float32, torch.float64) else x0.float()  # quantiles need one of the two
    flat = wide.flatten(1)
    s = torch.quantile(flat.abs(), ratio, dim=1).clamp(min=1, max=largest).unsqueeze(1)
    return (flat.clamp(-s, s) / s).reshape(x0.shape).to(x0.dtype)


class GridDDPM(DDPMScheduler):
    """DDPM that adds no fresh noise while `quiet` is set: a step then goes to the posterior's mean.

    The generators are used all the same, so that what comes before is not changed by what comes after. The stock step
    takes its variance from a private method and has no other switch; tests/engine/test_diffusers.py watches over it.
    """

    quiet = False
    timesteps: Tensor

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """As the stock method, without the timestep of -1 that its "trailing" grid can end with."""
        super().set_timesteps(num_inference_steps, device=device, timesteps=timesteps)
        self.timesteps = self.timesteps[self.timesteps >= 0]

    def _get_variance(
        self, t: Tensor | int, predicted_variance: Tensor | None = None, variance_type: str | None = None
    ) -> Tensor:
        variance: Tensor = super()._get_variance(t, predicted_variance, variance_type)
        if not self.quiet:
            return variance
        # The step adds exp(log variance / 2) * noise, or sqrt(variance) * noise: the root of 0 in either form.
        log_of_variance = (variance_type or self.variance_type) == "learned_range"
        return torch.full_like(variance, -torch.inf if log_of_variance else 0.0)


class StaticClip:
    """For solvers that know dynamic thresholding only: the clip to [-r, r] that the model's config asks for.

    They clip x0 in a private method, the only place where it can be changed; tests/engine/test_diffusers.py watches.
    """

    config: FrozenDict

    def _threshold_sample(self, sample: Tensor) -> Tensor:
        limit = self.config.sample_max_value
        return sample.clamp(-limit, limit)
