"""How pictures are drawn: what a command or a caller asks for, and what can be refused before a model is loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from diffkit.engine.sampler_names import adds_noise, canonical, check_spacing
from diffkit.errors import UsageError


@dataclass(frozen=True)
class Settings:
    """How pictures are drawn; None means the default of the model, or of the sampler.

    Attributes:
        scheduler: A sampler's name; DDIM, or Euler for flows, when left out.
        steps: Sampling steps; the sampler's default when left out.
        spacing: leading, trailing or linspace; when left out what the model's configuration says, and where it says
            nothing the sampler's own.
        eta: DDIM's share of fresh noise.
        timesteps: A custom grid in place of `steps`.
        shift: Of a flow's levels towards noise, s' = shift s / (1 + (shift - 1) s); the model's own when left out.
        stop_noise_after: Steps with fresh noise, before the rest go without.
        guidance: Guidance scale, or one per picture of a batch; when left out 2 for classes, for prompts 7.5 (Stable
            Diffusion), 7 (DeepFloyd) or 4 (diffkit's own).
        negative: Negative prompt, or one per picture, of models that take prompts.
        max_batch: Most rows in one network call.
        interval: From and up to which part of the way from noise (0) to picture (1) is guided, both ends included;
            elsewhere the prediction is conditional, by one network row in place of two (arXiv:2404.07724).
    """

    scheduler: str | None = None
    steps: int | None = None
    spacing: str | None = None
    eta: float = 0.0
    timesteps: tuple[int, ...] | None = None
    stop_noise_after: int | None = None
    guidance: float | tuple[float | None, ...] | None = None
    negative: str | tuple[str | None, ...] | None = None
    max_batch: int | None = None
    interval: tuple[float, float] = (0.0, 1.0)
    shift: float | None = None


def check_settings(settings: Settings) -> None:
    """Refuse what no model could do, before one is loaded.

    Raises:
        UsageError: Unknown scheduler, options that exclude each other or have no effect, or a broken grid.
    """
    # What depends on the model (its timesteps, what it predicts, whether it can be guided) is checked where it is
    # known.
    name = canonical(settings.scheduler) if settings.scheduler else None
    check_spacing(settings.spacing)
    for scale in settings.guidance if isinstance(settings.guidance, tuple) else (settings.guidance,):
        if scale is not None and not math.isfinite(scale):
            raise UsageError(f"`guidance` {scale:g} is no finite number", "Give 1 (no guidance) up to about 15.")
    check_interval(*settings.interval)
    if settings.shift is not None and not 0.0 < settings.shift < math.inf:
        raise UsageError(f"`shift` {settings.shift:g} is not above 0", "1 shifts nothing, 3 takes more steps in noise.")
    # A grid descends, from noise to picture: a step goes from one level to a lower one, and divides by the difference.
    if settings.timesteps is not None:
        if settings.steps is not None or settings.spacing is not None or settings.shift is not None:
            raise UsageError(
                "`timesteps` is the whole grid and excludes `steps`, `spacing` and `shift`", "Give one of them."
            )
        grid = settings.timesteps
        if not grid or list(grid) != sorted(set(grid), reverse=True) or grid[-1] < 0:
            raise UsageError(f"`timesteps` {','.join(map(str, grid))}: give descending whole numbers, 999,750,...,0")
    # Only DDIM leaves the amount of fresh noise open (eta, arXiv:2010.02502, eq. 16); every other sampler has its own,
    # or none. Stopped half way, what was drawn at random so far is only refined from there on.
    if settings.eta and name not in (None, "ddim"):
        raise UsageError(f"`eta` belongs to ddim, and `scheduler` is {name}", "Leave `eta` out.")
    if settings.stop_noise_after is not None and name != "ddpm" and not settings.eta:
        raise no_noise_to_stop(name)


def no_noise_to_stop(name: str | None) -> UsageError:
    """Return why a sampler's fresh noise cannot be stopped.

    Args:
        name: Its name in `SAMPLERS`; DDIM when left out.
    """
    if name is not None and adds_noise(name):
        said = f"{name} adds fresh noise in every step, which is a part of its formula and cannot be stopped"
    else:
        said = f"{'ddim with `eta` 0' if name in (None, 'ddim') else name} adds no noise that could be stopped"
    return UsageError(f"`stop_noise_after`: {said}", "Use `scheduler` ddpm, or ddim with `eta`.")


def interval(text: str | None) -> tuple[float, float]:
    """Read START:STOP, for `Settings.interval`; None is all of the way.

    Raises:
        UsageError: It is not written so.
    """
    if text is None:
        return 0.0, 1.0
    try:
        start, stop = map(float, text.split(":"))
    except ValueError:
        raise UsageError(f"`guidance_interval` {text!r}: give START:STOP, for example 0:0.6") from None
    return start, stop


def check_interval(start: float, stop: float) -> None:
    """Refuse a stretch of the way from noise (0) to picture (1) that is none.

    Raises:
        UsageError: start and stop are not 0 <= start <= stop <= 1.
    """
    if not 0.0 <= start <= stop <= 1.0:
        raise UsageError(
            f"`guidance_interval` {start:g}:{stop:g} is not a part of the way from 0 to 1",
            "Needed is 0 <= start <= stop <= 1; 0:1 is all of it.",
        )


def within(start: float, stop: float, timestep: float, levels: int) -> bool:
    """Say whether a step is guided: both ends count, and 0 and 1 hold whatever timesteps a sampler has."""
    # Guidance helps in the middle of the way. Where there is nearly only noise it throws all samples to the same few
    # pictures, and near the end it only costs (arXiv:2404.07724). The stretch is measured in timesteps and not in
    # steps, so that the same part of the way is guided whatever the number of steps.
    place = min(max((levels - timestep) / levels, 0.0), 1.0)
    return start <= place <= stop


def network_calls(settings: Settings, timesteps: Sequence[float], rows: int, levels: int, guided: bool) -> int:
    """Return how many network calls the steps of a batch take: one each, or as many as `max_batch` cuts it into.

    Args:
        settings: With `max_batch` and the interval.
        timesteps: Those of the steps.
        rows: Conditions of all pictures of the batch.
        levels: T, the number of timesteps of the noise schedule.
        guided: Whether each condition has a second row, without it, where the interval says so.
    """
    if settings.max_batch is None:
        return len(timesteps)
    often = (2 if guided and within(*settings.interval, t, levels) else 1 for t in timesteps)
    return sum(-(-rows * times // settings.max_batch) for times in often)


def check_shares(weights: Sequence[float] | None, count: int, reduce: str) -> list[float] | None:
    """Return weights of views scaled to the sum 1; None where all count the same.

    Raises:
        UsageError: An unknown reduction, not one weight per view, or weights of no sense.
    """
    # "mean" pulls every step to all prompts at once; "alternate" gives each step to one of them, which costs one
    # network row per picture and not one per view, and lets the prompts disagree from step to step.
    if reduce not in ("mean", "alternate"):
        raise UsageError(f"`reduce` {reduce!r} is not one of mean, alternate")
    if weights is None:
        return None
    text = ", ".join(f"{w:g}" for w in weights)
    if len(weights) != count:
        raise UsageError(f"`weights` needs one value per view, got {len(weights)} ({text}) for {count}")
    if reduce == "alternate":
        raise UsageError(f"`weights` {text}: views that take turns have no weights", "Leave it out, or `reduce` mean.")
    total = float(sum(weights))
    if not all(0.0 <= w < float("inf") for w in weights) or not 0.0 < total < float("inf"):
        raise UsageError(f"`weights` {text}: weights are finite, none is negative, and one is above 0")
    # Only their ratio counts: with the sum 1 the result stays a mean of predictions, of the size that a step expects.
    # Equal weights take the plain mean, whose rounding is that of no weights at all.
    return None if len(set(weights)) == 1 else [w / total for w in weights]


def seeds_from(first: int, count: int) -> list[int]:
    """Return `count` seeds from the first on.

    Raises:
        UsageError: They do not end below 2^63.
    """
    # Picture k has seed first + k, so that any one of a batch can be drawn again alone; torch's seeds have 63 bits.
    if not 0 <= first <= first + count - 1 < 2**63:
        raise UsageError(
            f"`seed` {first}: seeds lie in 0..2^63-1, and {count} of them do not fit from there on", "Give another one."
        )
    return list(range(first, first + count))


def without_effect(settings: Settings) -> str | None:
    """Say what has no effect because guidance is 1; None where there is nothing to say."""
    # uncond + 1 * (cond - uncond) is cond: the negative prompt and the interval drop out of the formula.
    given = ["`negative_prompt`"] if settings.negative else []
    given += ["`guidance_interval`"] if settings.interval != Settings.interval else []
    if settings.guidance != 1.0 or not given:
        return None
    have = "has" if len(given) == 1 else "have"
    return f"`guidance` 1 uses the prompt alone: {' and '.join(given)} {have} no effect; give another `guidance`"


def batch_settings(settings: Sequence[Settings]) -> Settings:
    """Return one batch's settings, made of its pictures': they differ in guidance and negative prompt only."""
    # What differs has to act on single rows, as the weight and the empty condition of guidance do. Another number of
    # steps or another sampler would be another loop.
    first = settings[0]
    if all(each == first for each in settings):
        return first
    return replace(
        first,
        guidance=tuple(each.guidance for each in settings),  # type: ignore[misc]
        negative=tuple(each.negative for each in settings),  # type: ignore[misc]
    )
