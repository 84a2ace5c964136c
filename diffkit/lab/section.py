"""What a report is made of: sections, each a plan of pieces of work with what was measured on them.

A section is a function from the `Lab` (the model, the pictures, the words) to its `Plan`; it draws nothing itself. It
says `raise Cannot(...)` where there is nothing to be done, and any `UsageError` of a job is said in its place, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffkit.lab.pieces import Drawing, Made, Piece
from diffkit.lab.words import Words

if TYPE_CHECKING:
    from diffkit.types import ModelInfo


class Cannot(Exception):
    """A section that cannot be made, and why, in one sentence."""


@dataclass(frozen=True)
class Table:
    """Numbers that were measured: a header and rows of as many cells."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Plan:
    """What a section does.

    Attributes:
        pieces: In the order of the report.
        measured: From what they made to tables and sentences.
        notes: What is to be said of the method.
    """

    pieces: Sequence[Piece]
    measured: Callable[[list[Made]], list[Table | str]] = lambda made: []
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Section:
    """A row of a course.

    Attributes:
        name: What `only` takes.
        title: Its heading.
        asks: What the course asks, in a sentence.
        formula: In plain letters, `_{...}` below and `^{...}` above the line.
        source: Paper and equation.
        plan: Its work.
    """

    name: str
    title: str
    asks: str
    formula: str
    source: str
    plan: Callable[[Lab], Plan]


def section(
    name: str, title: str, *, asks: str, source: str, formula: str = ""
) -> Callable[[Callable[[Lab], Plan]], Section]:
    """Make a section of a function that plans it."""

    def made(plan: Callable[[Lab], Plan]) -> Section:
        return Section(name, title, asks, formula, source, plan)

    return made


@dataclass(frozen=True)
class Lab:
    """What all sections share.

    Attributes:
        course: Its name, with the year where it has several.
        model: What draws, as the command line takes it.
        info: What it is.
        images: Pictures to work on: the photo first.
        drawings: Crude ones: where `image` was not given, drawn in code.
        words: Prompts or classes.
        folder: Where the pieces lie.
        asked_data: What is trained on, where somebody says so.
        full: The course's numbers, in place of those that suit a laptop.
        seed: Of the first picture.
        mark: What tells the model's weights from others.
    """

    course: str
    model: str
    info: ModelInfo
    images: tuple[Path, ...]
    drawings: tuple[Path, ...]
    words: Words
    folder: Path
    asked_data: str | None = None
    full: bool = False
    seed: int = 0
    mark: str = ""

    @cached_property
    def data(self) -> tuple[str, str]:
        """What is trained on, as a recipe's `dataset.name`, and how that was chosen; looked for when first needed."""
        from diffkit.lab.data import find_data

        return find_data(self.asked_data)

    @property
    def data_name(self) -> str:
        """What the data are called in a sentence: MNIST wherever it lies."""
        name, stand_in = self.data
        return name if self.asked_data is not None else "the embedded digits" if stand_in else "MNIST"

    def draw(
        self, job: str, caption: str = "", *, sweep: tuple[str, ...] = (), gif: bool = False,
        labels: Sequence[str] = (), before: bool = False, **values: Any,
    ) -> Drawing:  # fmt: skip
        """Plan a picture command by the lab's model, and check that the model can do it.

        Args:
            job: The command's name.
            caption: What stands above its pictures.
            sweep: Combinations to try.
            gif: Show the animation, too.
            labels: What stands under the pictures, in place of what they are.
            before: Show the picture that goes in, too.
            values: The job's fields.

        Raises:
            UsageError: The model cannot.
        """
        if "steps" in values:
            values["steps"] = self.steps(values["steps"])
        values = {"model": self.model, "seed": self.seed, **values}
        return Drawing.of(
            job, values, caption, self.info, self.mark, sweep=sweep, gif=gif, labels=labels, before=before
        )

    def told(self, word: str | None, name: str = "label") -> dict[str, Any]:
        """Return the field that tells the model a prompt or a class; nothing for an unconditional model.

        Args:
            word: The prompt, or the class.
            name: The field of classes.
        """
        if word is None or self.info.conditioning == "none":
            return {}
        return {"prompt" if self.info.text else name: word}

    def told_each(self, word: str | None) -> dict[str, Any]:
        """Return the same for `sample`, whose prompts and classes are several: this one alone."""
        return {name: (value,) for name, value in self.told(word, "classes").items()}

    def needs_words(self) -> None:
        """Refuse a model that cannot be told what to draw.

        Raises:
            Cannot: It cannot.
        """
        if self.info.conditioning == "none":
            raise Cannot(f"{self.model} is unconditional: it cannot be told what to draw")

    def needs_guidance(self) -> None:
        """Refuse a model that cannot be guided.

        Raises:
            Cannot: It cannot be told what to draw, or knows no empty condition.
        """
        self.needs_words()
        if not self.info.null:
            raise Cannot(f"{self.model} does not know the empty condition, which guidance needs")

    def at(self, t: int) -> int:
        """Return a timestep of 0..999 on the scale of the model's own T."""
        return min(t * self.info.timesteps // 1000, self.info.timesteps - 1)

    def steps(self, count: int) -> int:
        """Return a number of steps that the model has timesteps for."""
        return min(count, self.info.timesteps)

    def grid(self) -> list[int]:
        """Return the course's strided timesteps, from 990 down to 0 by 30 of 1000, none twice."""
        return list(dict.fromkeys(self.at(t) for t in range(990, -1, -30)))


def numbers(values: Sequence[float], digits: int = 2) -> tuple[str, ...]:
    """Return numbers as the cells of a table."""
    return tuple(f"{value:.{digits}f}" for value in values)
