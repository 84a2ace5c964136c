"""How a job is run: what never stands in a picture's metadata, and who listens while it is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from diffkit.jobs.fields import opt

if TYPE_CHECKING:
    from diffkit.types import Model, ModelInfo, Step


class Run(BaseModel):
    """Where a job runs, and what is written."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: Annotated[Path | None, opt("out", "o")] = Field(
        None, description="The folder for the pictures, or FILE.png for one."
    )
    gif: bool = Field(False, description="Write an animation of the denoising, too.")
    animate: Literal["gif", "mp4"] | None = Field(None, description="Write an animation of each picture, too.")
    columns: int | None = Field(None, ge=1, description="Pictures per row of the grid.")
    sweep: Annotated[tuple[str, ...], opt(metavar="OPTION=V1,V2")] = Field(
        (), description="Try each value; twice makes a table. One labelled sheet."
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1 or mps.")
    allow_pickle: bool = Field(
        False, description="Read .bin weights, by torch's restricted unpickler, where nothing else is."
    )
    dry_run: bool = Field(False, description="Say what it would take, and do nothing.")
    files: bool = Field(True, description="Write files; else pictures are only returned.", exclude=True)


@dataclass(frozen=True)
class Again:
    """What of a run is to be drawn again: the batch that holds picture `index`, or all of it.

    Attributes:
        index: A picture's position among those that are drawn together; None for all.
        company: The seeds that were drawn together, where they are not counted on from the first.
    """

    index: int | None = None
    company: tuple[int, ...] = ()


class Watch:
    """A listener that does nothing: what a progress bar, a film or a page may override."""

    def loading(self, info: ModelInfo) -> None:
        """The model's libraries are imported, and its weights are about to be read."""

    def loaded(self, model: Model) -> None:
        """The model is there, its prompts are encoded."""

    def begin(self, title: str, steps: int) -> None:
        """So many steps are about to be taken."""

    def step(self, step: Step, positions: range) -> None:
        """One step was taken, of the pictures at these positions."""

    def end(self) -> None:
        """They were taken."""
