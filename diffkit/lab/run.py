"""From a course to its report: plan every section, make what is not there yet, write the page.

All sections are planned before anything is loaded, so that what cannot be done is known first. What was made is kept
piece by piece: interrupted, the same command goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffkit.errors import DataError, ModelError, NumericalError, UsageError, did_you_mean
from diffkit.jobs.output import Result
from diffkit.lab.pieces import Bench, Made, kept, make
from diffkit.lab.section import Cannot, Lab, Plan, Section, Table
from diffkit.pictures.files import write_whole
from diffkit.training.lock import hold

LOG = logging.getLogger("diffkit.lab")

_OWN = (UsageError, DataError, ModelError, NumericalError)  # of one section; the others concern all of them


@dataclass
class Outcome:
    """What became of a section.

    Attributes:
        section: Which.
        plan: Its work; None where it cannot be done.
        made: What the pieces gave.
        measured: Tables and sentences.
        why: Why it was not made; "" if it was.
        code: The exit code of the error that stopped it; 0 where the model cannot do it, which is no error.
        shared: Folders of pieces that an earlier section has, too, with its name: shown and counted there.
    """

    section: Section
    plan: Plan | None = None
    made: list[Made] = field(default_factory=list)
    measured: list[Table | str] = field(default_factory=list)
    why: str = ""
    code: int = 0
    shared: dict[Path, str] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether it was made."""
        return not self.why

    @property
    def seconds(self) -> float:
        """How long its own pieces took, now or earlier."""
        return round(sum(one.seconds for one in self.made if one.folder not in self.shared), 2)


def chosen(sections: Sequence[Section], only: Sequence[str]) -> list[Section]:
    """Return the sections that are asked for, in the course's order; all where none is named.

    Raises:
        UsageError: There is no such section.
    """
    names = [one.name for one in sections]
    for name in only:
        if name not in names:
            raise UsageError(f"`only` {name!r}: the course has no such section", did_you_mean(name, names))
    return [one for one in sections if not only or one.name in only]


def planned(lab: Lab, sections: Sequence[Section]) -> list[Outcome]:
    """Plan sections; nothing is loaded or drawn."""
    found = []
    for one in sections:
        try:
            found.append(Outcome(one, one.plan(lab)))
        except Cannot as error:
            found.append(Outcome(one, why=str(error)))
        except UsageError as error:
            found.append(Outcome(one, why=_said(error)))
    return found


def work(lab: Lab, outcomes: Sequence[Outcome], bench: Bench) -> None:
    """Make what is planned; what an earlier run has made is found again.

    Raises:
        DiffkitError: Of what would stop the other sections, too: a full disk, Ctrl-C.
    """
    root = lab.folder / "pieces"
    first: dict[Path, str] = {}
    for number, outcome in enumerate(outcomes, 1):
        if outcome.plan is None:
            LOG.info("%d of %d, %s: not made: %s", number, len(outcomes), outcome.section.name, outcome.why)
            continue
        there = all(kept(piece, root) is not None for piece in outcome.plan.pieces)
        LOG.info("%d of %d, %s%s", number, len(outcomes), outcome.section.name, ": found" if there else "")
        try:
            with _quiet():
                outcome.made += [make(piece, root, bench) for piece in outcome.plan.pieces]
            outcome.shared = {one.folder: first[one.folder] for one in outcome.made if one.folder in first}
            first |= {one.folder: outcome.section.name for one in outcome.made if one.folder not in first}
            outcome.measured = outcome.plan.measured(outcome.made)
        except _OWN as error:
            outcome.why, outcome.code = _said(error), error.exit_code
            LOG.warning("%s: not made: %s", outcome.section.name, outcome.why)


def report(lab: Lab, sections: Sequence[Section], path: Path, bench: Bench) -> tuple[Result, int]:
    """Make a course's report.

    Args:
        lab: What all sections share.
        sections: Those that are asked for.
        path: The HTML file.
        bench: What pieces are made with.

    Returns:
        The numbers for `--json` and for people, and the exit code: that of the first section that an error stopped.

    Raises:
        BusyError: Another report is being made with these pieces.
        DiffkitError: As of `work`.
    """
    from diffkit.lab.report import page

    outcomes = planned(lab, sections)
    with hold(lab.folder):
        work(lab, outcomes, bench)
        write_whole(path, page(lab, outcomes).encode(), durable=True)
    rows: list[dict[str, Any]] = [
        {"name": one.section.name, "made": one.whole, "why": one.why or None, "seconds": one.seconds}
        for one in outcomes
    ]
    lines = [f"{row['name']:<22}{row['seconds']:>8.1f} s" if row["made"] else f"{row['name']:<22}not made: {row['why']}"
             for row in rows]  # fmt: skip
    count = sum(row["made"] for row in rows)
    lines += [f"{count} of {len(rows)} sections", f"report  {path}"]
    return Result({"report": str(path), "sections": rows}, lines), next((one.code for one in outcomes if one.code), 0)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Context: the notices of single commands are left out; what they are for stands in the report."""
    log = logging.getLogger("diffkit")
    rooms = [logging.getLogger(f"diffkit.{name}") for name in ("jobs", "models", "data", "training")]
    before = [room.level for room in rooms]
    for room in rooms:
        room.setLevel(max(log.getEffectiveLevel(), logging.WARNING))
    try:
        yield
    finally:
        for room, was in zip(rooms, before, strict=True):
            room.setLevel(was)


def _said(error: UsageError | DataError | ModelError | NumericalError) -> str:
    """An error and its hint as sentences."""
    return f"{error.message}. {error.hint}".removesuffix(" ") if error.hint else error.message
