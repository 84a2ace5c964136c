"""Whole courses as reports: every exercise made, measured and pictured by one command.

A course is a list of sections; a section plans pieces of work, each of which one command of diffkit does alone. This
room holds no drawing and no training of its own, and nothing of the command line.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from diffkit.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from diffkit.lab.section import Section

# The courses, the years of each, and the rows of what they ask, in order: the sections of the report.
_PART_A = (
    "setup", "forward", "classical", "one-step", "iterative", "sampling", "guidance", "sdedit", "inpaint",
    "text-sdedit", "anagrams", "hybrids", "extras",
)  # fmt: skip
_PART_B = (
    "noising", "one-step-training", "out-of-distribution", "pure-noise", "time-conditioned", "lr-decay",
    "class-conditioned", "without-scheduler", "part-b-extras",
)  # fmt: skip
_BEFORE_2025 = tuple(name for name in _PART_B if name not in ("pure-noise", "without-scheduler"))
_FLOW_A = (
    "setup", "forward", "classical", "one-step", "velocity", "iterative", "sampling", "guidance", "sdedit",
    "text-sdedit", "inpaint", "anagrams", "hybrids", "extras",
)  # fmt: skip
ROWS: dict[str, dict[int | None, tuple[str, ...]]] = {
    "cs180": {2024: _PART_A + _BEFORE_2025, 2025: _PART_A + _PART_B, 2026: _FLOW_A + _PART_B},
    "hf-course": {
        None: (
            "1.1-schedules", "1.1-noise", "1.1-train", "1.2-corruption", "1.2-train", "1.2-sampling", "2.1-sampling",
            "2.1-finetune", "2.1-color", "2.1-clip", "2.2-class", "3-generate", "3-guidance", "3-parts", "3-loop",
            "3-img2img", "3-inpaint", "4.1-round-trip", "4.1-edit",
        )
    },
    "keras-ddim": {None: ("schedule", "train", "kid", "steps", "interpolation", "stochastic")},
}  # fmt: skip
ALL_TRAINED = frozenset({"keras-ddim"})  # every picture is by a network that the course trains
_MODULES = {
    "cs180": ("cs180", "cs180_edits", "cs180_training"),
    "hf-course": ("hf_course", "hf_pipelines"),
    "keras-ddim": ("keras_ddim",),
}


def rows(course: str, year: int | None = None) -> tuple[str, ...]:
    """Return the names of a course's rows.

    Raises:
        UsageError: There is no such course, or no such year of it.
    """
    if course not in ROWS:
        raise UsageError(f"unknown course {course!r}", did_you_mean(course, ROWS))
    years = ROWS[course]
    if year in years:
        return years[year]
    if None in years:
        raise UsageError(f"`year` {year}: {course} has no years", "Leave it out.")
    known = ", ".join(map(str, years))
    what = f"{course} differs from year to year, and none is named" if year is None else f"`year` {year} of {course}"
    raise UsageError(what, f"Give `year`, one of {known}.")


def sections(course: str, year: int | None = None) -> list[Section]:
    """Return a course's sections in the order of its rows.

    Raises:
        UsageError: As of `rows`.
    """
    names = rows(course, year)
    found: dict[str, Section] = {}
    for module in _MODULES[course]:
        found |= import_module(f"diffkit.lab.{module}").sections(year)
    return [found[name] for name in names]
