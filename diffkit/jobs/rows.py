"""What a run is about to draw: its jobs, checked and filled in, their pictures, and how these are cut into batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diffkit.jobs.base import PictureJob
from diffkit.jobs.batch import Row
from diffkit.jobs.sweep import Table

if TYPE_CHECKING:
    from diffkit.models import LoadOptions, Repo
    from diffkit.types import ModelInfo


@dataclass(frozen=True)
class Place:
    """One picture's place in a run: its cell's number in the table, and its row."""

    cell: int
    row: Row


@dataclass(frozen=True)
class Prepared:
    """A run that may begin: checked jobs, with the defaults that suit the model, and the model's files.

    Attributes:
        table: The combinations; their jobs are filled in.
        repo: The model's files.
        info: What it is, at the size that is drawn.
        native: What it is at its own size, as it is loaded.
        loading: How it is loaded, as far as the jobs say.
        jobs: The jobs of all combinations.
        words: Their prompts, each once.
        strange: Words of these that the model was never told.
        timesteps: Of each group of the table.
        stages: Likewise, the further models.
    """

    table: Table
    repo: Repo
    info: ModelInfo
    native: ModelInfo
    loading: LoadOptions
    jobs: list[PictureJob]
    words: list[str]
    strange: list[str]
    timesteps: list[list[float]]
    stages: list[list[dict[str, Any]]]

    def calls(self, group: int, pictures: int) -> int:
        """Return how many network calls a batch of a group takes, those of searches and further stages left out."""
        from diffkit.engine.settings import network_calls

        jobs = [self.table.cells[k].job for k in self.table.groups[group]]
        scales = {job.settings.guidance for job in jobs}  # those that differ are guided together, by one weight per row
        guided = len(scales) > 1 or not scales <= {None, 0.0, 1.0}
        settings, rows = jobs[0].settings, pictures * jobs[0].conditions(self.info)
        return network_calls(settings, self.timesteps[group], rows, self.info.timesteps, guided)


def batches_of(count: int, size: int) -> list[range]:
    """Cut positions 0..count-1 into batches; processes are dealt whole ones, so that their number changes no bit."""
    return [range(first, min(first + size, count)) for first in range(0, count, max(1, size))]
