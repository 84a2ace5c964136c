"""How CS180 counts the levels of noise, year by year, and what that is of the model that draws.

2024 and 2025 count by DDPM's timesteps; 2026 counts a flow's time from 0 (noise) to 1 (picture). A model of the other
kind is converted: by `velocity_from` and `timestep_at`, in one place each, and the report says so.
"""

from __future__ import annotations

from typing import Any

from diffkit.engine.levels import parameterization, timestep_at
from diffkit.engine.samplers import is_flow
from diffkit.lab.section import Lab

TIMES = (0.25, 0.5, 0.75)
_KINDS = {
    "epsilon": "the noise",
    "sample": "the clean picture",
    "v_prediction": "a mixture of both (v prediction)",
    "flow": "a velocity",
}


def flows(year: int | None) -> bool:
    """Say whether the year's course counts by a flow's time."""
    return year == 2026


def converted(lab: Lab) -> tuple[str, ...]:
    """Say how the report of a flow's course reads a model that predicts something else."""
    if is_flow(lab.info.scheduler):
        return ()
    return (
        f"`{lab.model}` predicts {_KINDS[parameterization(lab.info.scheduler)]}, and no velocity. Its noisy picture"
        " a x + b ε, divided by a + b, is a flow's at time t = a / (a + b); v is the estimate of x less that of ε"
        " (`engine.predictions.velocity_from`). In these coordinates a step of DDIM is one of Euler's.",
    )


def starts(lab: Lab, year: int | None) -> list[int]:
    """Return the three timesteps that pictures are noised to."""
    scheduler = lab.info.scheduler
    return [timestep_at(scheduler, t) for t in TIMES] if flows(year) else [lab.at(t) for t in (250, 500, 750)]


def named(lab: Lab, year: int | None) -> dict[str, str]:
    """Return what the three timesteps are called in the course, where it counts otherwise than the model."""
    if not flows(year):
        return {}
    return {str(t): f"{time:g}" for t, time in zip(starts(lab, year), TIMES, strict=True)}


def counted(lab: Lab, year: int | None, only: int | None = None) -> tuple[str, ...]:
    """Say which of the model's timesteps the course's times are; of `only` one timestep where it is given."""
    times = {t: time for t, time in named(lab, year).items() if only is None or t == str(only)}
    if not times:
        return ()
    word = "is" if len(times) == 1 else "are"
    found, asked = ", ".join(times), ", ".join(times.values())
    return (f"The pictures are marked by the model's timesteps: {found} {word} t = {asked}.",)


def sampler(lab: Lab, year: int | None) -> dict[str, Any]:
    """Return the steps and the sampler of the year: the strided grid, or Euler in 50 steps."""
    if is_flow(lab.info.scheduler):
        return {"steps": 50}
    if flows(year):
        return {"steps": 50, "scheduler": "ddim"}
    return {"timesteps": lab.grid(), "scheduler": "ddpm"}


def scale(year: int | None) -> float:
    """Return the course's guidance 7 in this package's convention: the formula of 2026 has one less."""
    return 8.0 if flows(year) else 7.0
