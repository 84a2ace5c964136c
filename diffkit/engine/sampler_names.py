"""Samplers by name, as rows of data: what can be checked of a name before diffusers or torch is imported.

What is made of a row is in `samplers.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from diffkit.errors import UsageError, did_you_mean

SPACINGS = ("leading", "trailing", "linspace")


@dataclass(frozen=True)
class Sampler:
    """A row: how a sampler is made.

    Attributes:
        cls: A diffusers class's name, or that of Adams' method in `adams.py`.
        options: Arguments that make it what its name says.
        flow: It integrates a flow's velocity, and fits flow models only.
        predicts: Prediction types that its arithmetic knows.
        steps: Default number of steps; None: every timestep of the training schedule.
        fresh: It draws fresh noise in its steps of itself; DDIM does so with `eta` alone.
        memoryless: Its step looks at nothing but x and t, so that it can be sent back up to a noisier level.
        larger: It is DDIM with fresh noise of the larger variance in every step.
    """

    cls: str
    options: dict[str, object] = field(default_factory=dict)
    flow: bool = False
    predicts: tuple[str, ...] = ("epsilon", "sample", "v_prediction")
    steps: int | None = 50
    fresh: bool = False
    memoryless: bool = False
    larger: bool = False


_NO_X0 = ("epsilon", "v_prediction")
_FLOW = ("flow", "sample")
_FLOW_DPM: dict[str, object] = {"algorithm_type": "dpmsolver++", "solver_order": 2, "use_flow_sigmas": True}

SAMPLERS: dict[str, Sampler] = {
    # Ho et al., arXiv:2006.11239, algorithm 2; with fewer steps the posterior between grid points.
    "ddpm": Sampler("DDPMScheduler", steps=None, fresh=True, memoryless=True),
    # Song et al., arXiv:2010.02502; eta 0 deterministic, 1 as noisy as DDPM.
    "ddim": Sampler("DDIMScheduler", memoryless=True),
    # The same with eta 1 and the larger sigma of appendix D.3: the stochastic steps of the Keras DDIM example.
    "ddim_large": Sampler("DDIMScheduler", steps=80, fresh=True, memoryless=True, larger=True),
    # Lu et al., arXiv:2211.01095: second-order multistep.
    "dpm++": Sampler("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}, steps=25),
    # The same in its stochastic form ("2M SDE"), one generator per image.
    "dpm++sde": Sampler("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, steps=25, fresh=True),
    # Lu et al., arXiv:2206.00927 and 2211.01095: single-step.
    "dpm++single": Sampler("DPMSolverSinglestepScheduler", {"lower_order_final": True}, steps=25),
    # Karras et al., arXiv:2206.00364, algorithm 2 without churn; with Heun's correction (two calls a step).
    "euler": Sampler("EulerDiscreteScheduler", memoryless=True),
    "heun": Sampler("HeunDiscreteScheduler", steps=25),
    # k-diffusion's ancestral Euler: down to less noise than needed, and fresh noise up again.
    "euler_a": Sampler("EulerAncestralDiscreteScheduler", predicts=_NO_X0, fresh=True, memoryless=True),
    # DPM-Solver-2 of k-diffusion, two calls a step; and ancestral.
    "kdpm2": Sampler("KDPM2DiscreteScheduler", predicts=_NO_X0, steps=25),
    "kdpm2_a": Sampler("KDPM2AncestralDiscreteScheduler", predicts=_NO_X0, steps=25, fresh=True),
    # Zhao et al., arXiv:2302.04867.
    "unipc": Sampler("UniPCMultistepScheduler", steps=25),
    # Liu et al., arXiv:2202.09778, without the Runge-Kutta start.
    "pndm": Sampler("PNDMScheduler", {"skip_prk_steps": True}, predicts=_NO_X0),
    # Zhang & Chen, arXiv:2204.13902.
    "deis": Sampler("DEISMultistepScheduler", steps=25),
    # Linear multistep, k-diffusion.
    "lms": Sampler("LMSDiscreteScheduler"),
    # Lipman et al., arXiv:2210.02747; Liu et al., arXiv:2209.03003: the straight line, by Euler or Heun.
    "flow_euler": Sampler("FlowMatchEulerDiscreteScheduler", flow=True, predicts=_FLOW, memoryless=True),
    "flow_heun": Sampler("FlowMatchHeunDiscreteScheduler", flow=True, predicts=_FLOW, steps=25),
    # Adams' second-order multistep method, one call a step; PixNerd's own, arXiv:2507.23268.
    "flow_adams": Sampler("FlowMatchAdamsScheduler", flow=True, predicts=_FLOW, steps=25),
    # The multistep solvers of diffusion, whose x0 and levels may as well be a flow's.
    "flow_dpm++": Sampler("DPMSolverMultistepScheduler", _FLOW_DPM, flow=True, predicts=_FLOW, steps=25),
    "flow_dpm++sde": Sampler(
        "DPMSolverMultistepScheduler", {**_FLOW_DPM, "algorithm_type": "sde-dpmsolver++"}, flow=True, predicts=_FLOW,
        steps=25, fresh=True,
    ),
    "flow_unipc": Sampler("UniPCMultistepScheduler", {"use_flow_sigmas": True}, flow=True, predicts=_FLOW, steps=25),
}  # fmt: skip

MEMORYLESS = tuple(name for name, row in SAMPLERS.items() if row.memoryless)

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


def adds_noise(name: str) -> bool:
    """Say whether a sampler of this name draws fresh noise of itself; a scheduler without a row is not known to."""
    return name in SAMPLERS and SAMPLERS[name].fresh


def check_spacing(spacing: str | None) -> None:
    """Refuse a spacing of timesteps that no scheduler knows."""
    if spacing is not None and spacing not in SPACINGS:
        raise UsageError(f"`spacing` {spacing!r} is not one of {', '.join(SPACINGS)}")


def default_steps(name: str, levels: int, suits: int | None = None) -> int:
    """Return how many steps are taken where nobody says: what suits the model, or the sampler, or T = `levels`."""
    return min(suits or SAMPLERS[canonical(name)].steps or levels, levels)
