"""Whether a run may go on from a checkpoint: the same recipe, the same number of processes, the same data.

What differs ends in an error, or in one warning where the resume is forced. A checkpoint of an earlier version, which
lacks some of these facts, goes on without a word.
"""

from __future__ import annotations

import logging
from pathlib import Path

from diffkit.data import Dataset, fingerprint
from diffkit.errors import UsageError
from diffkit.recipes import reading as recipes
from diffkit.recipes.schema import Recipe
from diffkit.training.checkpoint import Checkpoint

LOG = logging.getLogger(__name__)


def same_recipe(found: Checkpoint, recipe: Recipe, world: int, folder: Path) -> None:
    """Refuse to go on from a checkpoint of another recipe, or of another number of processes.

    Raises:
        UsageError: It is; the message lists the fields with both values.
    """
    different = recipes.differences(found.state["recipe"], recipe.model_dump(mode="json"))
    if found.state["world"] != world:
        different.append(f"processes: {found.state['world']} -> {world}")
    if different:
        raise UsageError(
            f"{folder} holds a run of another recipe: {'; '.join(different)}",
            "Give another folder, `output.dir`, or `force_resume` to go on all the same.",
        )


def data_marks(recipe: Recipe, dataset: Dataset) -> dict[str, str]:
    """Return what a checkpoint keeps of the dataset, as far as the recipe trains on it."""
    return dataset.fingerprint(captions=recipe.model.text != "none", classes=recipe.model.class_conditioning != "none")


def same_data(found: Checkpoint, marks: dict[str, str], name: str, folder: Path, *, force: bool) -> None:
    """Refuse to go on with other data than a checkpoint's; under force say so once.

    Args:
        found: The checkpoint.
        marks: Of today's dataset.
        name: The dataset's.
        folder: The run's.
        force: Go on all the same.

    Raises:
        UsageError: The images, or captions or classes that the recipe uses, are others.
    """
    different = fingerprint.changes(found.state.get("dataset") or {}, marks)
    if different:
        since = f"the checkpoint of step {found.step} in {folder}"
        _other(f"dataset {name} has changed since {since}: {', '.join(different)}", force)


def same_length(found: Checkpoint, length: int | None, name: str, folder: Path, *, force: bool) -> None:
    """The same for the number of training images, which also changes where other images cannot be read.

    Raises:
        UsageError: It is another one.
    """
    before = found.state["length"]
    said = force and found.state.get("dataset")  # `same_data` warned of what made the difference
    if before != length and not said:
        _other(f"{folder}: dataset {name} had {before} training images, now {length}", force)


def _other(text: str, force: bool) -> None:
    if not force:
        raise UsageError(
            text,
            "Put the data back as it was, give another folder, `output.dir`, or `force_resume` to go on all the same.",
        )
    LOG.warning("%s; going on", text)
