"""Samplers by name: diffusers schedulers built from a model's own, with the arithmetic put right where needed.

Holds which sampler fits which model, and two thin subclasses: DDIM that is right on every grid, and a DDPM that can be
told to add no noise. The loop is in `sampling.py`; noise schedules are in `schedules.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from inspect import signature
from typing import TYPE_CHECKING, Any

import diffusers
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from diffkit.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

LOG = logging.getLogger("diffkit.engine.samplers")

SPACINGS = ("leading", "trailing", "linspace")


class GridDDIM(DDIMScheduler):
    """DDIM whose every step goes to the next point of the actual grid.

    The stock step goes from t to t - T // N, which is not the next point of a linspace or custom grid, nor of any where
    N does not divide T. Source: Song et al., arXiv:2010.02502, eq. 12, with t-1 read as the next point.
    """

    timesteps: Tensor

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Any = None, timesteps: Sequence[int] | None = None
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
        generator: Any = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """As the stock method, from t to the next point of the grid."""
        t = int(timestep)
        steps = self.num_inference_steps
        # The stock step computes t - T // num_inference_steps; with this fraction that is the next point, exactly.
        self.num_inference_steps = Fraction(  # type: ignore[assignment]
            self.config.num_train_timesteps, t - self._next[t]
        )
        try:
            return super().step(
                model_output, t, sample, eta, use_clipped_model_output, generator, variance_noise, return_dict
            )
        finally:
            self.num_inference_steps = steps


class GridDDPM(DDPMScheduler):
    """DDPM that adds no fresh noise while `quiet` is set: a step then goes to the posterior's mean.

    The generators are used all the same, so that what comes before is not changed by what comes after.
    """

    quiet = False
    timesteps: Tensor

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Any = None, timesteps: Sequence[int] | None = None
    ) -> None:
        """As the stock method, without the timestep of -1 that its "trailing" grid can end with."""
        super().set_timesteps(num_inference_steps, device=device, timesteps=timesteps)
        self.timesteps = self.timesteps[self.timesteps >= 0]

    def _get_variance(self, t: Any, predicted_variance: Any = None, variance_type: Any = None) -> Tensor:
        variance = super()._get_variance(t, predicted_variance, variance_type)
        if not self.quiet:
            return variance
        log_of_variance = (variance_type or self.variance_type) == "learned_range"
        return torch.full_like(variance, -torch.inf if log_of_variance else 0.0)


class _StaticClip:
    """For solvers that know dynamic thresholding only: the clip to [-r, r] that the model's config asks for."""

    config: Any

    def _threshold_sample(self, sample: Tensor) -> Tensor:
        limit = self.config.sample_max_value
        return sample.clamp(-limit, limit)


@dataclass(frozen=True)
class Sampler:
    """A row: how a sampler is made.

    Attributes:
        cls: A diffusers class's name.
        options: Arguments that make it what its name says.
        flow: It integrates a flow's velocity, and fits flow models only.
        predicts: Prediction types that its arithmetic knows.
        steps: Default number of steps; None: every timestep of the training schedule.
    """

    cls: str
    options: dict[str, Any] = field(default_factory=dict)
    flow: bool = False
    predicts: tuple[str, ...] = ("epsilon", "sample", "v_prediction")
    steps: int | None = 50


_NO_X0 = ("epsilon", "v_prediction")

SAMPLERS: dict[str, Sampler] = {
    # Ho et al., arXiv:2006.11239, algorithm 2; with fewer steps the posterior between grid points.
    "ddpm": Sampler("DDPMScheduler", steps=None),
    # Song et al., arXiv:2010.02502; eta 0 deterministic, 1 as noisy as DDPM.
    "ddim": Sampler("DDIMScheduler"),
    # Lu et al., arXiv:2211.01095: second-order multistep.
    "dpm++": Sampler("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}, steps=25),
    # The same in its stochastic form ("2M SDE"), one generator per image.
    "dpm++sde": Sampler("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, steps=25),
    # Lu et al., arXiv:2206.00927 and 2211.01095: single-step.
    "dpm++single": Sampler("DPMSolverSinglestepScheduler", {"lower_order_final": True}, steps=25),
    # Karras et al., arXiv:2206.00364, algorithm 2 without churn; with Heun's correction (two calls a step).
    "euler": Sampler("EulerDiscreteScheduler"),
    "heun": Sampler("HeunDiscreteScheduler", steps=25),
    # k-diffusion's ancestral Euler: down to less noise than needed, and fresh noise up again.
    "euler_a": Sampler("EulerAncestralDiscreteScheduler", predicts=_NO_X0),
    # DPM-Solver-2 of k-diffusion, two calls a step; and ancestral.
    "kdpm2": Sampler("KDPM2DiscreteScheduler", predicts=_NO_X0, steps=25),
    "kdpm2_a": Sampler("KDPM2AncestralDiscreteScheduler", predicts=_NO_X0, steps=25),
    # Zhao et al., arXiv:2302.04867.
    "unipc": Sampler("UniPCMultistepScheduler", steps=25),
    # Liu et al., arXiv:2202.09778, without the Runge-Kutta start.
    "pndm": Sampler("PNDMScheduler", {"skip_prk_steps": True}, predicts=_NO_X0),
    # Zhang & Chen, arXiv:2204.13902.
    "deis": Sampler("DEISMultistepScheduler", steps=25),
    # Linear multistep, k-diffusion.
    "lms": Sampler("LMSDiscreteScheduler"),
    # Lipman et al., arXiv:2210.02747; Liu et al., arXiv:2209.03003: the straight line, by Euler or Heun.
    "flow_euler": Sampler("FlowMatchEulerDiscreteScheduler", flow=True),
    "flow_heun": Sampler("FlowMatchHeunDiscreteScheduler", flow=True, steps=25),
}

# Samplers whose step looks at nothing but x and t: the only ones that can be sent back up to a noisier level.
MEMORYLESS = ("ddpm", "ddim", "euler", "euler_a", "flow_euler")

_ALIASES = {"dpmsolver++": "dpm++", "dpm++2m": "dpm++", "dpm++2m_sde": "dpm++sde", "euler_ancestral": "euler_a"}


def canonical(name: str) -> str:
    """Return the sampler's name in `SAMPLERS`.

    Raises:
        UsageError: Unknown.
    """
    key = _ALIASES.get(name.lower().replace("-", "_"), name.lower().replace("-", "_"))
    if key not in SAMPLERS:
        raise UsageError(f"unknown scheduler {name!r}", did_you_mean(key, SAMPLERS))
    return key


def check_spacing(spacing: str | None) -> None:
    """Refuse a spacing of timesteps that no scheduler knows."""
    if spacing is not None and spacing not in SPACINGS:
        raise UsageError(f"--spacing {spacing!r} is not one of {', '.join(SPACINGS)}")


def is_memoryless(scheduler: SchedulerMixin) -> bool:
    """Say whether a scheduler's step depends on x and t alone."""
    names = {SAMPLERS[name].cls for name in MEMORYLESS}
    return any(cls.__name__ in names for cls in type(scheduler).__mro__)


def is_flow(scheduler: SchedulerMixin) -> bool:
    """Say whether a scheduler integrates a flow's velocity."""
    return any(cls.__name__.startswith("FlowMatch") for cls in type(scheduler).__mro__)


def default_sampler(base: Any) -> str:
    """Return the sampler used where none is named: DDIM, or Euler for flows."""
    return "flow_euler" if is_flow(base) else "ddim"


def default_steps(name: str, levels: int) -> int:
    """Return how many steps a sampler takes where nobody says: its own number, or every one of T = `levels`."""
    return min(SAMPLERS[canonical(name)].steps or levels, levels)


def make_sampler(name: str | None, base: Any, *, spacing: str | None = None, **options: Any) -> Any:
    """Build a fresh scheduler for sampling from the one a model was trained with.

    Args:
        name: A row of `SAMPLERS`; None: DDIM, or Euler for flows.
        base: The model's scheduler; not changed.
        spacing: leading, trailing or linspace; the model's own when left out.
        options: Further arguments of the diffusers class.

    Raises:
        UsageError: Unknown name or spacing, or a sampler that cannot work with this model, with the reason.
    """
    key = canonical(name or default_sampler(base))
    row = SAMPLERS[key]
    check_spacing(spacing)
    cls: Any = {"DDIMScheduler": GridDDIM, "DDPMScheduler": GridDDPM}.get(row.cls) or getattr(diffusers, row.cls)
    if row.flow != is_flow(base):
        kind = "flow" if is_flow(base) else "diffusion"
        fits = [n for n, r in SAMPLERS.items() if r.flow != row.flow]
        raise UsageError(
            f"--scheduler {key} does not fit: this is a {kind} model", f"Choose one of: {', '.join(fits)}."
        )
    takes = signature(cls.__init__).parameters
    if row.flow:
        if spacing is not None:
            raise UsageError("--spacing has no meaning for a flow model, whose steps are equal", "Leave it out.")
        return cls.from_config(base.config, **options)
    if spacing is not None and "timestep_spacing" not in takes:
        raise UsageError(f"--spacing: {key} has a grid of its own", "Leave it out.")
    _check_arithmetic(key, row, base, spacing, takes)
    changes = {**_translated(base, takes, row), **row.options, **options}
    if spacing is not None:
        changes["timestep_spacing"] = spacing
    if changes.pop("static_clip", False):
        cls = type(f"Clipped{cls.__name__}", (_StaticClip, cls), {})
    return cls.from_config(base.config, **changes)


def _check_arithmetic(key: str, row: Sampler, base: Any, spacing: str | None, takes: Any) -> None:
    kind = base.config.get("prediction_type", "epsilon")
    if kind not in row.predicts:
        raise UsageError(
            f"--scheduler {key} cannot step with a model that predicts {kind!r} (only {', '.join(row.predicts)})",
            "Use ddim, ddpm or dpm++.",
        )
    if not zero_terminal_snr(base):
        return
    if kind == "epsilon":
        raise UsageError(
            "the noise schedule has no signal left at T (zero terminal SNR), and an epsilon model divides by it there",
            "Use a model that predicts v or x0.",
        )
    if "rescale_betas_zero_snr" not in takes:
        raise UsageError(
            f"--scheduler {key} cannot start at zero terminal SNR", "Use ddim, ddpm, dpm++, euler or unipc."
        )
    if (spacing or base.config.get("timestep_spacing")) == "leading":
        raise UsageError(
            "timestep spacing leading does not start at T, which a schedule of zero terminal SNR needs",
            "Use --spacing trailing.",
        )


def zero_terminal_snr(base: Any) -> bool:
    """Say whether the last level of a diffusion scheduler holds no signal at all."""
    last = getattr(base, "alphas_cumprod", None)
    return bool(base.config.get("rescale_betas_zero_snr")) or (last is not None and float(last[-1]) <= 1e-12)


_MEANING = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type", "clip_sample",
    "clip_sample_range",
)  # fmt: skip


def _translated(base: Any, takes: Any, row: Sampler) -> dict[str, Any]:
    """Arguments that mean in the new class what the model's own configuration means."""
    config = base.config
    # from_config replaces values that equal the old class's defaults by the new class's own: Heun, for one, would
    # silently get another range of beta.
    changes = {key: config[key] for key in _MEANING if key in config and key in takes}
    # Only DDPM knows "sigmoid" and "laplace"; the betas themselves are known to all.
    if config.get("beta_schedule") in ("sigmoid", "laplace") and config.get("trained_betas") is None:
        plain = type(base).from_config(config, rescale_betas_zero_snr=False)
        changes["trained_betas"] = plain.betas.tolist()
        changes["beta_schedule"] = "linear"
    # A multistep solver cuts a learned variance off the output by itself; here the two never come packed.
    if row.cls != "DDPMScheduler" and "variance_type" in takes:
        changes["variance_type"] = None
    if config.get("clip_sample") and "thresholding" in takes and "clip_sample" not in takes:
        changes.update(thresholding=True, sample_max_value=config.get("clip_sample_range", 1.0), static_clip=True)
    # PNDM's own default would leave the first level's noise in the picture.
    if "set_alpha_to_one" in takes and "set_alpha_to_one" not in config:
        changes["set_alpha_to_one"] = True
    # The half-log-SNR of the cosine schedule falls too far at its end for these solvers (diffusers' own advice).
    if "lambda_min_clipped" in takes and config.get("beta_schedule") == "squaredcos_cap_v2":
        changes["lambda_min_clipped"] = -5.1
    return changes
