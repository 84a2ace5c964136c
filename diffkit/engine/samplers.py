"""Samplers: diffusers schedulers built by name from a model's own, with the same meaning in the new class.

Holds which sampler fits which model; the names are in `sampler_names.py`. What had to be put right in the classes
themselves is in `solvers.py`, the loop in `sampling.py`; noise schedules are in `schedules.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from inspect import signature
from typing import TYPE_CHECKING

import diffusers

from diffkit.engine.flows import is_flow as is_flow
from diffkit.engine.flows import make_flow
from diffkit.engine.sampler_names import MEMORYLESS, SAMPLERS, Sampler, canonical, check_spacing
from diffkit.engine.solvers import GridDDIM as GridDDIM
from diffkit.engine.solvers import GridDDPM as GridDDPM
from diffkit.engine.solvers import LargerDDIM, StaticClip
from diffkit.errors import UsageError

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

LOG = logging.getLogger("diffkit.engine.samplers")


def is_memoryless(scheduler: SchedulerMixin) -> bool:
    """Say whether a scheduler's step depends on x and t alone."""
    return name_of(scheduler) in MEMORYLESS


def name_of(scheduler: SchedulerMixin) -> str:
    """Return a scheduler's name in `SAMPLERS`; its class's name where it has none."""
    flow = is_flow(scheduler)
    for cls in type(scheduler).__mro__:  # the nearest class that has a row: Adams' method is built on Euler's
        rows = [(name, row) for name, row in SAMPLERS.items() if row.cls == cls.__name__ and row.flow == flow]
        for name, row in rows:  # two rows may share a class, and differ in its options
            alike = all(scheduler.config.get(key) == value for key, value in row.options.items())
            if alike and row.larger == isinstance(scheduler, LargerDDIM):
                return name
        if rows:
            return rows[0][0]
    return type(scheduler).__name__


def takes_argument(function: Callable[..., object], name: str) -> bool:
    """Say whether a scheduler's method has a parameter of that name.

    diffusers' schedulers share names, not signatures: `step` takes a generator here and not there, `set_timesteps` a
    custom grid here and not there, and no attribute tells. This is the one place that looks.
    """
    return name in signature(function).parameters


def spacing_notice(made: SchedulerMixin, base: SchedulerMixin) -> str:
    """Say that a sampler spreads its timesteps otherwise than the model's own scheduler would; "" where it does not."""
    own, models = (one.config.get("timestep_spacing") for one in (made, base))
    if not own or not models or own == models:
        return ""
    return f"{name_of(made)} spreads its timesteps by {own}, its default; the model's own scheduler would by {models}"


@cache
def _say_once(notice: str) -> None:
    LOG.info("%s (`spacing`)", notice)


def default_sampler(base: SchedulerMixin) -> str:
    """Return the sampler used where none is named: DDIM, or Euler for flows."""
    return "flow_euler" if is_flow(base) else "ddim"


def make_sampler(
    name: str | None,
    base: SchedulerMixin,
    *,
    spacing: str | None = None,
    shift: float | None = None,
    **options: object,
) -> SchedulerMixin:
    """Build a fresh scheduler for sampling from the one a model was trained with.

    Args:
        name: A row of `SAMPLERS`; None: DDIM, or Euler for flows.
        base: The model's scheduler; not changed.
        spacing: leading, trailing or linspace. When left out, what the model's configuration says; where it says
            nothing, the new class's own default (linspace for Euler and most solvers), as in diffusers. A flow's is
            trailing or linspace; see `flows.make_flow`.
        shift: Of a flow's levels towards noise, in place of the model's own.
        options: Further arguments of the diffusers class.

    Raises:
        UsageError: Unknown name or spacing, or a sampler that cannot work with this model, with the reason.
    """
    key = canonical(name or default_sampler(base))
    row = SAMPLERS[key]
    check_spacing(spacing)
    # The weights do not know how they are sampled: whatever integrates from noise to image may step with them, as long
    # as it takes their noise schedule and their kind of prediction over.
    if row.flow != is_flow(base):
        kind = "flow" if is_flow(base) else "diffusion"
        fits = [n for n, r in SAMPLERS.items() if r.flow != row.flow]
        raise UsageError(
            f"`scheduler` {key} does not fit: this is a {kind} model", f"Choose one of: {', '.join(fits)}."
        )
    if row.flow:
        if spacing == "leading":
            raise UsageError(
                "`spacing` leading does not start at pure noise, which a flow needs", "Use trailing or linspace."
            )
        return make_flow(row, base, spacing=spacing, shift=shift, **options)
    if shift is not None:
        raise UsageError(f"`shift` {shift:g} belongs to flow models, and this is a diffusion model", "Leave it out.")
    ours: dict[str, type[SchedulerMixin]] = {"DDIMScheduler": GridDDIM, "DDPMScheduler": GridDDPM}
    cls = LargerDDIM if row.larger else ours.get(row.cls) or getattr(diffusers, row.cls)
    takes = frozenset(signature(cls.__init__).parameters)
    if spacing is not None and "timestep_spacing" not in takes:
        raise UsageError(f"`spacing`: {key} has a grid of its own", "Leave it out.")
    _check_arithmetic(key, row, base, spacing, takes)
    changes = {**_translated(base, takes, row), **row.options, **options}
    if spacing is not None:
        changes["timestep_spacing"] = spacing
    if changes.pop("static_clip", False):
        cls = type(f"Clipped{cls.__name__}", (StaticClip, cls), {})
    made = cls.from_config(base.config, **changes)
    if spacing is None and (notice := spacing_notice(made, base)):
        _say_once(notice)
    return made


def _check_arithmetic(key: str, row: Sampler, base: SchedulerMixin, spacing: str | None, takes: frozenset[str]) -> None:
    # A solver turns the prediction into x0 or eps by a formula of its own for each kind, and some lack the one for x0.
    kind = base.config.get("prediction_type", "epsilon")
    if kind not in row.predicts:
        raise UsageError(
            f"`scheduler` {key} cannot step with a model that predicts {kind!r} (only {', '.join(row.predicts)})",
            "Use ddim, ddpm or dpm++.",
        )
    if not zero_terminal_snr(base):
        return
    # x0 = (x - noise * eps) / signal, and the signal is 0 (Lin et al., arXiv:2305.08891, section 3.2).
    if kind == "epsilon":
        raise UsageError(
            "the noise schedule has no signal left at T (zero terminal SNR), and an epsilon model divides by it there",
            "Use a model that predicts v or x0.",
        )
    if "rescale_betas_zero_snr" not in takes:
        raise UsageError(
            f"`scheduler` {key} cannot start at zero terminal SNR", "Use ddim, ddpm, dpm++, euler or unipc."
        )
    if (spacing or base.config.get("timestep_spacing")) == "leading":
        raise UsageError(
            "timestep spacing leading does not start at T, which a schedule of zero terminal SNR needs",
            "Use `spacing` trailing.",
        )


def zero_terminal_snr(base: SchedulerMixin) -> bool:
    """Say whether the last level of a diffusion scheduler holds no signal at all."""
    if is_flow(base):
        return False
    # Then sampling starts from what training ended with, noise alone; else a rest of the image's brightness is missing.
    # Where the flag is set, some classes write 2^-24 in the place of the last 0.
    return bool(base.config.get("rescale_betas_zero_snr")) or float(base.alphas_cumprod[-1]) <= 1e-12


_WITHOUT_SIGMA = ("DDPMScheduler", "DDIMScheduler")

_MEANING = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type", "clip_sample",
    "clip_sample_range",
)  # fmt: skip


def _translated(base: SchedulerMixin, takes: frozenset[str], row: Sampler) -> dict[str, object]:
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
    # A multistep solver cuts a learned variance off the output by itself; here the two never come packed. It has no use
    # for it: an ODE's step has no variance.
    if row.cls != "DDPMScheduler" and "variance_type" in takes:
        changes["variance_type"] = None
    if config.get("clip_sample") and "thresholding" in takes and "clip_sample" not in takes:
        changes.update(thresholding=True, sample_max_value=config.get("clip_sample_range", 1.0), static_clip=True)
    # At zero SNR sigma = sqrt((1 - abar) / abar) is infinite. With this flag diffusers puts 2^-24 in the place of the
    # last abar; a schedule that ends at 0 by its own betas needs it as well. DDPM and DDIM have no sigma.
    if zero_terminal_snr(base) and "rescale_betas_zero_snr" in takes and row.cls not in _WITHOUT_SIGMA:
        changes["rescale_betas_zero_snr"] = True
    # PNDM's own default would leave the first level's noise in the picture.
    if "set_alpha_to_one" in takes and "set_alpha_to_one" not in config:
        changes["set_alpha_to_one"] = True
    # The half-log-SNR of the cosine schedule falls too far at its end for these solvers (diffusers' own advice).
    if "lambda_min_clipped" in takes and config.get("beta_schedule") == "squaredcos_cap_v2":
        changes["lambda_min_clipped"] = -5.1
    return changes
