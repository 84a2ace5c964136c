"""Sweeps: `OPTION=V1,V2,...`, every combination of up to two options, and where each stands on the contact sheet.

The values are texts, validated like the options themselves; a combination is a job of its own.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from diffkit.errors import UsageError, did_you_mean
from diffkit.jobs.base import PictureJob, build
from diffkit.jobs.fields import Option

# What a sweep may not change: the model is loaded once, and the files are named by the seed.
FIXED = {
    "model", "revision", "variant", "dtype", "memory", "num", "seed", "batch_size", "image", "image_b", "mask",
    "max_batch", "no_safety_checker", "best_of", "resolution",
}  # fmt: skip
MOST_CELLS = 1024


@dataclass(frozen=True)
class Cell:
    """One combination: what it changes, as it was written, what is written above its pictures, and its job."""

    values: Mapping[str, Any]
    label: str
    job: PictureJob

    @property
    def tag(self) -> str:
        """Part of its files' names."""
        return re.sub(r"[^\w.=+-]+", "_", self.label)[:80]


@dataclass(frozen=True)
class Table:
    """All combinations, row by row.

    Attributes:
        cells: The combinations.
        columns: How many stand in a row.
        sweeps: What was asked for.
        given: The first combination as it was asked for, before any default of the model's was filled in.
        groups: Which cells are drawn together, by their places: those that differ in `per_picture` fields only.
    """

    cells: list[Cell]
    columns: int = 1
    sweeps: tuple[str, ...] = ()
    given: Mapping[str, Any] = field(default_factory=dict)
    groups: list[list[int]] = field(default_factory=lambda: [[0]])

    def narrowed(self, group: Sequence[int]) -> list[str]:
        """Return the sweeps that make exactly the cells of one group: what their pictures are replayed by."""
        if len(group) < 2:
            return []
        job = self.cells[0].job
        options = sweepable(type(job))
        return [text for text in self.sweeps if options[_flag(text)] in job.batched()]

    def asked(self) -> dict[str, Any]:
        """Return what was asked for beside the sweeps, as metadata has it."""
        swept = {name for cell in self.cells for name in cell.values}
        return {key: value for key, value in self.given.items() if key not in swept}


def table(cls: type[PictureJob], values: Mapping[str, Any], sweeps: Sequence[str]) -> Table:
    """Make the jobs of all combinations.

    Args:
        cls: The job.
        values: What was given, by name.
        sweeps: `OPTION=V1,V2,...`; values that hold commas are parted by bars.

    Raises:
        UsageError: More than two, too many combinations, an unknown option, or a value that the option refuses.
    """
    if len(sweeps) > 2:
        raise UsageError(f"`sweep` was given {len(sweeps)} times; a sheet has rows and columns", "Give it twice.")
    axes = [_axis(cls, text) for text in sweeps]
    if len({axis[0][0] for axis in axes}) < len(axes):
        raise UsageError(f"`sweep` {sweeps[0]!r} and {sweeps[1]!r} are of the same option")
    if len(axes[0]) * len(axes[-1] if len(axes) > 1 else [0]) > MOST_CELLS:
        raise UsageError(f"`sweep`: more than {MOST_CELLS} combinations", "Give fewer values.")
    cells = []
    for cell in product(*axes):
        changes = {name: value for name, _, value in cell}
        # Prompts and classes of a sweep take the place of those that were given, whatever the option's name.
        cells.append(Cell(changes, " ".join(label for _, label, _ in cell), build(cls, {**values, **changes})))
    return Table(cells, len(axes[-1]), tuple(sweeps), cells[0].job.arguments(), _groups(cells))


def _groups(cells: Sequence[Cell]) -> list[list[int]]:
    found: dict[Any, list[int]] = {}
    for k, cell in enumerate(cells):
        shared = cell.job.batched()
        rest = tuple((name, str(value)) for name, value in cell.values.items() if name not in shared)
        found.setdefault(rest if shared else k, []).append(k)
    return list(found.values())


def _flag(text: str) -> str:
    return text.partition("=")[0].strip().removeprefix("--").replace("_", "-")


def _axis(cls: type[PictureJob], text: str) -> list[tuple[str, str, Any]]:
    """Read one sweep: (the field, what is written above the picture, the value) of each value."""
    _, equals, rest = text.partition("=")
    flag, options = _flag(text), sweepable(cls)
    if not equals or not rest.strip():
        raise UsageError(f"`sweep` {text!r} has no values", "For example strength=0.2,0.5,0.8.")
    if flag not in options:
        raise UsageError(f"`sweep` {text!r}: {flag!r} is no option that can be swept", did_you_mean(flag, options))
    name = options[flag]
    kind, many = value_type(cls, name)
    # A prompt may hold commas: a bar separates those.
    values = [v.strip() for v in rest.split("|" if "|" in rest else ",")]
    found: list[Any] = []
    for value in values:
        try:
            found.append(kind(value))
        except ValueError:
            raise UsageError(f"`sweep` {text!r}: {value!r} is not a {kind.__name__}") from None
    return [(name, f"{flag}={v}", [one] if many else one) for v, one in zip(values, found, strict=True)]


def sweepable(cls: type[PictureJob]) -> dict[str, str]:
    """Return the options that can be swept, by the name that the command line gives them: their fields or aliases."""
    found = {}
    for name, info in cls.model_fields.items():
        option = next((m for m in info.metadata if isinstance(m, Option)), Option())
        if name in FIXED or option.argument or value_type(cls, name)[0] not in (int, float, str):
            continue
        found[(option.names or (name.replace("_", "-"),))[0].partition("/")[0]] = name
    return found | {name.replace("_", "-"): name for name in cls.aliases()}


def value_type(cls: type[PictureJob], name: str) -> tuple[Any, bool]:
    """Return the type of a field's single values (int, float, str, bool, ...), and whether it holds several."""
    if name not in cls.model_fields:
        return str, False
    annotation: Any = cls.model_fields[name].annotation
    inner = [a for a in typing.get_args(annotation) if a is not type(None) and a is not Ellipsis]
    if typing.get_origin(annotation) is typing.Literal:
        return str, False
    if inner and typing.get_origin(annotation) is not tuple:  # X | None
        annotation = inner[0]
        inner = [a for a in typing.get_args(annotation) if a is not Ellipsis]
        if typing.get_origin(annotation) is typing.Literal:
            return str, False
    return (inner[0], True) if typing.get_origin(annotation) is tuple else (annotation, False)
