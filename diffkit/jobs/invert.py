"""DDIM inversion: the noise that an image comes from, the way back, and edits on that way.

Source: Song et al., arXiv:2010.02502, eq. 13 backwards; the fixed point: Pan et al., arXiv:2309.04907 (AIDI).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffkit.engine.levels import level, x0_of
from diffkit.engine.samplers import SAMPLERS, is_flow, make_sampler
from diffkit.engine.sampling import denoise, set_grid
from diffkit.errors import UsageError
from diffkit.jobs.edit import Edit, OnStep, pictures_of, psnr
from diffkit.jobs.sample import Settings, conditioned, finished, numbers
from diffkit.types import Cond, Denoiser, Step

REFINE = 3
# Above this level an epsilon says next to nothing of the image, and its error is divided by the signal.
LEAST_SIGNAL = 0.05


def exact_sampler(base: Any, settings: Settings) -> Any:
    """Make the sampler that can be walked backwards: DDIM (Euler for flows) without noise and without clipping.

    Raises:
        UsageError: Settings that ask for another one.
    """
    name = "flow_euler" if is_flow(base) else "ddim"
    if settings.scheduler not in (None, name) or settings.eta:
        raise UsageError(f"inversion goes with --scheduler {name} and --eta 0 only", "Leave both out.")
    options = {} if is_flow(base) else {"clip_sample": False, "thresholding": False}
    scheduler = make_sampler(name, base, spacing=settings.spacing, **options)
    levels = int(base.config.num_train_timesteps)
    steps = None if settings.timesteps else settings.steps or min(SAMPLERS[name].steps or levels, levels)
    set_grid(scheduler, steps, settings.timesteps)
    return scheduler


def top_of(scheduler: Any) -> int:
    """Return the index of the grid's first level that still holds some of the image: where inversion ends."""
    levels = [level(scheduler, t)[0] for t in scheduler.timesteps]
    return next((k for k, signal in enumerate(levels) if signal >= LEAST_SIGNAL), len(levels) - 1)


@torch.no_grad()
def invert_steps(
    net: Denoiser,
    x0: Tensor,
    scheduler: Any,
    cond: Cond,
    *,
    refine: int = REFINE,
    on_call: Any = None,
) -> Tensor:
    """Return the sample at the level `top_of` the grid from which DDIM comes to x0.

    Each step is solved by fixed-point iteration: DDIM goes from x_t to x_s by eps(x_t, t); x_t is not known yet, so the
    first guess is x_s, and every refinement uses the guess before.

    Args:
        net: The denoiser.
        x0: (B, C, H, W).
        scheduler: From `exact_sampler`.
        cond: The condition.
        refine: Further network calls per step; 0 is the classic inversion.
        on_call: Called with (place, total, t, x) after each step.

    Raises:
        UsageError: A negative number of refinements.
    """
    if refine < 0:
        raise UsageError(f"--refine {refine} is negative")
    last = getattr(scheduler, "final_alpha_cumprod", None)
    signal, share = (1.0, 0.0) if last is None else (float(last) ** 0.5, (1.0 - float(last)) ** 0.5)
    x, grid = x0, scheduler.timesteps[top_of(scheduler) :].flip(0)
    for place, t in enumerate(grid):
        above_signal, above_share = level(scheduler, t)
        guess = x
        for _ in range(refine + 1):
            clean = x0_of(net(guess, t, cond).out, guess, t, scheduler)
            eps = (guess - above_signal * clean) / above_share
            guess = above_signal / signal * (x - share * eps) + above_share * eps
        x, signal, share = guess, above_signal, above_share
        if on_call is not None:
            on_call(Step(place, len(grid), t, x))
    return x


def invert(
    model: Any,
    image: Tensor,
    seeds: Sequence[int],
    label: str | None = None,
    settings: Settings | None = None,
    *,
    edit: str | None = None,
    refine: int = REFINE,
    on_step: OnStep | None = None,
) -> Edit:
    """Invert an image, come back, and, if an edit is asked for, come back to something else.

    Args:
        model: A loaded model.
        image: (1, C, H, W) in [-1, 1], of the model's size.
        seeds: One number, for the file's name: nothing here is drawn.
        label: The class or prompt of the image, used on the way up and back with guidance 1.
        settings: How; the guidance is that of the edit.
        edit: The class or prompt to come back to.
        refine: See `invert_steps`.
        on_step: Called after each step of the ways back.

    Raises:
        UsageError: What does not fit the model.
    """
    settings = settings or Settings()
    plain = Settings(max_batch=settings.max_batch, guidance=1.0 if label else None)
    net, cond = conditioned(model, [label], plain)
    scheduler = exact_sampler(model.scheduler, settings)
    x0 = model.codec.encode(image)
    latent = invert_steps(net, x0, scheduler, cond, refine=refine)

    def back(net: Denoiser, cond: Cond) -> Tensor:
        x = latent
        for step in denoise(net, x, exact_sampler(model.scheduler, settings), cond, start=top_of(scheduler)):
            x = step.x
            if on_step is not None:
                on_step(step, range(1))
        return finished(model, x)

    again = back(net, cond)
    scores = {"round_trip_psnr": psnr(again, image.cpu()), "latent_std": float(latent.std())}
    rows = [("input", image.cpu()), (f"round trip {scores['round_trip_psnr']:.1f} dB", again)]
    if edit is not None:
        rows.append((edit, back(*conditioned(model, [edit], settings))))
    visited = visits(model, settings, refine, edit is not None)
    sheet = [(name, pictures_of(picture)[0]) for name, picture in rows]
    return Edit([sheet[-1][1]] * len(seeds), visited, len(visited), sheet=sheet, scores=scores)


def visits(model: Any, settings: Settings, refine: int, edited: bool) -> list[float]:
    """Return the timesteps of one image, one per network call."""
    scheduler = exact_sampler(model.scheduler, settings)
    grid = numbers(scheduler.timesteps)[top_of(scheduler) :]
    return [t for t in reversed(grid) for _ in range(refine + 1)] + grid * (2 if edited else 1)
