"""The sampling loop, its grid of timesteps, and one random generator per image.

There is one loop, `denoise`, a generator: pictures, previews, progress bars and animations are made by whoever reads
it. Guidance and views are wrapped around the network, constraints are applied after each step, and the integrator is
the diffusers scheduler's `step`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from diffusers import DDPMScheduler
from torch import Tensor

from diffkit.engine.flows import noise_scale
from diffkit.engine.grids import set_grid as set_grid
from diffkit.engine.levels import level, level_after, unstep
from diffkit.engine.sampler_names import MEMORYLESS, adds_noise
from diffkit.engine.samplers import GridDDPM, is_flow, is_memoryless, name_of, takes_argument
from diffkit.engine.settings import no_noise_to_stop
from diffkit.errors import UsageError
from diffkit.model_info import NoiseKind
from diffkit.types import Cond, Denoiser, Prediction, Step

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput

# (x after the step, index of the step, its t, the next t or None after the last) -> x
Constraint = Callable[[Tensor, int, Tensor, Tensor | None], Tensor]

_LEARNED = ("learned", "learned_range")


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """Return one generator per image, so that image k depends on seed k alone, on every device.

    One generator for the batch would give image 2 other noise when image 1 leaves the batch. They are on the CPU
    because a GPU's generator gives other numbers from the same seed.
    """
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def draw_noise(
    shape: Sequence[int],
    generators: Sequence[torch.Generator],
    device: torch.device | str | None = None,
    kind: NoiseKind = "normal",
) -> Tensor:
    """Draw the noise that a model knows, one image per generator.

    Args:
        shape: (C, H, W) of one image.
        generators: One per image; each is used on its own device.
        device: Where the result shall be; the generators' device when left out.
        kind: normal, N(0, I), or uniform in [0, 1]; `ModelInfo.noise` says it.

    Returns:
        (len(generators), C, H, W) fp32.
    """
    # Each picture has a generator of its own, so that its noise does not depend on how many are drawn with it.
    draw = torch.rand if kind == "uniform" else torch.randn
    drawn = torch.cat([draw(1, *shape, generator=g, device=g.device) for g in generators])
    return drawn if device is None else drawn.to(device)


def fresh_noise(x: Tensor, generators: Sequence[torch.Generator], kind: NoiseKind = "normal") -> Tensor:
    """Draw noise of the shape, device and type of x (B, C, H, W), as `draw_noise` does, one image per generator."""
    return draw_noise(x.shape[1:], generators, kind=kind).to(x)


def pure_noise(scheduler: SchedulerMixin, noise: Tensor) -> Tensor:
    """Scale N(0, I) noise to what the scheduler starts from; its grid must be set.

    That is 1 where the variance is kept, the largest sigma where samples are x0 + sigma * eps, and a flow's own scale.
    """
    # At T the image's share of x is as good as nothing: noise of that level's variance can be drawn without an image.
    return noise * (noise_scale(scheduler) if is_flow(scheduler) else scheduler.init_noise_sigma)


def sdedit_start(scheduler: SchedulerMixin, x0: Tensor, noise: Tensor, strength: float) -> tuple[Tensor, int, int]:
    """Return where image to image starts: the noised image, the index of the first step, the number of steps.

    The number is strength times the steps of the grid, rounded, and at least one. Strength 1 is pure noise.

    Args:
        scheduler: Its grid must be set.
        x0: (B, C, H, W).
        noise: (B, C, H, W) ~ N(0, I).
        strength: In (0, 1].

    Raises:
        UsageError: Strength out of range, or a scheduler that cannot start in the middle.

    Source: Meng et al., arXiv:2108.01073, algorithm 1.
    """
    if not 0.0 < strength <= 1.0:
        raise UsageError(f"`strength` {strength:g} is not in (0, 1]", "1 is pure noise, 0.1 keeps nearly everything.")
    order = int(scheduler.order)  # network calls in a step; the last step of a solver of order 2 makes one only
    steps = -(-len(scheduler.timesteps) // order)
    taken = max(1, int(steps * strength + 0.5))  # rounded: 50 * 0.58 is 28.999... in binary, and 29 steps
    # Noise hides fine detail first and composition last. Started at a level in the middle of the way, the sample keeps
    # of the image what the noise of that level leaves, and the steps from there on invent the rest.
    if strength == 1.0:
        return pure_noise(scheduler, noise), 0, taken
    if name_of(scheduler) in ("pndm", "lms"):  # both build on steps before the first
        raise UsageError(f"{name_of(scheduler)} cannot start in the middle of its grid", "Use ddim or dpm++.")
    start = (steps - taken) * order
    signal, share = level(scheduler, scheduler.timesteps[start])
    return signal * x0 + share * noise, start, taken


def repaint_path(steps: int, jump: int, resample: int) -> list[int]:
    """Return the indices of a grid as RePaint visits them: every `jump` steps back up, each stretch `resample` times.

    Args:
        steps: Length of the grid.
        jump: Steps that are taken again.
        resample: How often each stretch is walked; 1 is the plain descent.

    Raises:
        UsageError: A number below 1.

    Source: Lugmayr et al., arXiv:2201.09865, section 4.2 and appendix B.
    """
    if jump < 1 or resample < 1:
        raise UsageError(f"`jump` {jump}, `resample` {resample}: both are at least 1")
    # What is painted in a step does not know of the pixels that are pasted beside it after the step. Noised up again by
    # `jump` levels and denoised once more, the two parts fit better each time.
    left = {steps - 1 - back: resample - 1 for back in range(0, steps - jump, jump)}
    path, index = [], 0
    while index < steps:
        path.append(index)
        again = left.get(index, 0) > 0
        if again:
            left[index] -= 1
        index += 1 - (jump if again else 0)
    return path


@torch.no_grad()
def denoise(
    net: Denoiser,
    x: Tensor,
    scheduler: SchedulerMixin,
    cond: Cond | None = None,
    *,
    steps: int | None = None,
    timesteps: Sequence[int] | None = None,
    start: int = 0,
    path: Sequence[int] | None = None,
    constrain: Constraint | None = None,
    generators: list[torch.Generator] | None = None,
    eta: float = 0.0,
    stop_noise_after: int | None = None,
) -> Iterator[Step]:
    """Denoise x step by step; each step is yielded after it was taken.

    Args:
        net: Predicts what the scheduler steps with.
        x: (B, C, H, W) fp32 at the grid's level `start`; for `start` = 0 that is `pure_noise`.
        scheduler: A diffusers scheduler; its grid is set here if `steps` or `timesteps` is given, else it must be set.
        cond: The condition; none for an unconditional network.
        steps: Number of steps.
        timesteps: A custom grid in place of `steps`.
        start: Index of the first step taken; above 0 for image to image.
        path: Indices of the grid in the order to visit them, in place of all from `start` on; where it turns back,
            the sample is noised up again. See `repaint_path`.
        constrain: Applied to x after each step.
        generators: One per image, for samplers that add noise.
        eta: DDIM's share of fresh noise, 0..1.
        stop_noise_after: Take this many steps with fresh noise, and the rest without.

    Yields:
        `Step`; the last one's `x` is the result.

    Raises:
        UsageError: A grid that the scheduler cannot take, noise to stop where there is none, or a path that turns back
            with a scheduler that remembers its earlier steps.
    """
    if steps is not None or timesteps is not None:
        set_grid(scheduler, steps, timesteps)
    cond = cond or Cond()
    grid = scheduler.timesteps
    arguments = _arguments(scheduler, generators, eta)
    _check_noise(scheduler, eta, stop_noise_after)
    path = range(start, len(grid)) if path is None else path
    _check_path(scheduler, path, generators)
    unused = copy.copy(scheduler)  # has not taken a step yet
    for place, index in enumerate(path, start):
        t = grid[index]
        # 1. What does the network say? Guidance, views and filters are inside of `net`. A scheduler that counts in
        #    sigma holds x0 + sigma * eps, and gives it to the network divided by sqrt(1 + sigma^2).
        taken = x if is_flow(scheduler) else scheduler.scale_model_input(x, t)
        out = _packed(net(taken, t, cond), scheduler)
        # 2. The scheduler goes from the level of t to that of the next timestep: it takes the x0 that the prediction
        #    stands for, and as much noise as belongs there: that which the network saw, or fresh one.
        silent = stop_noise_after is not None and place - start >= stop_noise_after
        result = _step(scheduler, out, t, x, arguments, silent)
        x = result.prev_sample
        # 3. What is known is put back, at the level that x has just reached, not at the one it came from.
        after = grid[index + 1] if index + 1 < len(grid) else None
        if constrain is not None:
            x = constrain(x, index, t, after)
        yield Step(place, start + len(path), t, x, _clean_estimate(result))
        # 4. Where the path turns back, x is noised up to the level of the step that is taken again.
        if place + 1 - start < len(path) and (target := path[place + 1 - start]) != index + 1:
            assert generators is not None
            reached, above = level_after(scheduler, after), level(scheduler, grid[target])
            x = unstep(x, reached, above, fresh_noise(x, generators))
            # A scheduler looks its first timestep up in the grid and counts its steps from there on. So every stretch
            # of the path gets one that has not begun.
            scheduler = copy.copy(unused)


def _check_path(scheduler: SchedulerMixin, path: Sequence[int], generators: Sequence[torch.Generator] | None) -> None:
    # To go back up is the forward process, and needs noise; a multistep solver would carry on as if it went down.
    if all(b == a + 1 for a, b in pairwise(path)):
        return
    if not is_memoryless(scheduler):
        raise UsageError(
            f"`resample` above 1 goes back up in time, and {name_of(scheduler)} builds on the steps before",
            f"Use `resample` 1, or one of the samplers {', '.join(MEMORYLESS)}.",
        )
    if generators is None:
        raise ValueError("a path that turns back needs generators for its noise")


def _clips_x0(scheduler: SchedulerMixin) -> bool:
    """Whether x0 is predicted and clipped, so that DDIM's noise direction has to be that of the clipped x0.

    Guidance pushes x0 beyond [-1, 1]; with the direction of the unclipped one each step adds to the error, and more
    steps make worse pictures. (diffusers' DDIMPipeline leaves it at that; without guidance the two hardly differ.)
    """
    config = scheduler.config
    return config.get("prediction_type") == "sample" and bool(config.get("clip_sample"))


def _arguments(scheduler: SchedulerMixin, generators: list[torch.Generator] | None, eta: float) -> dict[str, object]:
    """Return the arguments of `step` that this scheduler has, beyond the output, the timestep and the sample."""
    arguments: dict[str, object] = {}
    if takes_argument(scheduler.step, "generator"):
        arguments["generator"] = generators
    if takes_argument(scheduler.step, "eta"):
        arguments["eta"] = eta
    if takes_argument(scheduler.step, "use_clipped_model_output") and _clips_x0(scheduler):
        arguments["use_clipped_model_output"] = True
    return arguments


def _clean_estimate(result: SchedulerOutput) -> Tensor | None:
    """Return the estimate of x0 that a step was based on; only some schedulers' outputs hold one."""
    estimate: Tensor | None = result.get("pred_original_sample")
    return estimate


def _step(
    scheduler: SchedulerMixin, out: Tensor, t: Tensor, x: Tensor, arguments: dict[str, object], silent: bool
) -> SchedulerOutput:
    if silent and "eta" in arguments:
        return scheduler.step(out, t, x, **{**arguments, "eta": 0.0})
    if not silent or not isinstance(scheduler, GridDDPM):
        return scheduler.step(out, t, x, **arguments)
    scheduler.quiet = True  # only for this step: the scheduler belongs to the caller
    try:
        return scheduler.step(out, t, x, **arguments)
    finally:
        scheduler.quiet = False


def _check_noise(scheduler: SchedulerMixin, eta: float, stop_noise_after: int | None) -> None:
    if stop_noise_after is None:
        return
    if stop_noise_after < 0:
        raise UsageError(f"`stop_noise_after` {stop_noise_after} is negative")
    name = name_of(scheduler)
    leaves_open = takes_argument(scheduler.step, "eta") and not adds_noise(name)
    if not isinstance(scheduler, GridDDPM) and not (leaves_open and eta > 0):
        raise no_noise_to_stop(name)


def _packed(prediction: Prediction, scheduler: SchedulerMixin) -> Tensor:
    """What `step` takes: [out, var] only for a DDPM scheduler of learned variance, whatever other configs say."""
    # The network says between which bounds the variance of the step lies: v interpolates between the logarithms of the
    # posterior's and of beta (arXiv:2102.09672, eq. 15). Every other scheduler would take that second half of the
    # output for more channels of the picture.
    if not isinstance(scheduler, DDPMScheduler) or scheduler.variance_type not in _LEARNED:
        return prediction.out
    if prediction.var is None:
        raise UsageError(
            f"the scheduler takes a learned variance ({scheduler.variance_type}), and the network gives none",
            "Use `scheduler` ddim.",
        )
    return torch.cat([prediction.out, prediction.var], dim=1)
