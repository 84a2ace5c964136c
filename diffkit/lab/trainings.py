"""Trainings as pieces of a report: a recipe with its changes, its curve and its pictures; and jobs on what it gives."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffkit.errors import UsageError
from diffkit.jobs.command import option_words, words_line
from diffkit.lab.code import code_digest
from diffkit.lab.pieces import Bench, Drawing, Shown
from diffkit.lab.section import Cannot, Lab
from diffkit.recipes.reading import load_recipe

if TYPE_CHECKING:
    from diffkit.recipes.schema import Recipe

_MOST_PREVIEWS = 4
# What a laptop trains in place of larger pictures: the network of the embedded digits, and a short memory of averages.
SIXTEEN = ("model.preset=digits16", "dataset.resolution=16", "training.ema_decay=0.98")


@dataclass(frozen=True)
class Training:
    """A training: `diffkit train RECIPE --set ... --out FOLDER`.

    Attributes:
        recipe: Its name.
        sets: What differs from it, FIELD=VALUE.
        root: Where the runs lie.
        caption: What stands above its pictures.
        epochs: After which previews are shown; the first and the last where none is named.
    """

    recipe: str
    sets: tuple[str, ...]
    root: Path
    caption: str = ""
    epochs: tuple[int, ...] = ()

    @cached_property
    def folder(self) -> Path:
        """The run's folder, which another recipe, or other code, never gets."""
        text = json.dumps([code_digest(), self._plain.model_dump(mode="json")], sort_keys=True)
        return self.root / f"{self.recipe}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"

    @cached_property
    def _plain(self) -> Recipe:
        return load_recipe(self.recipe, sets=self.sets, environ={})

    @cached_property
    def resolved(self) -> Recipe:
        """The whole recipe."""
        return load_recipe(self.recipe, sets=self.sets, environ={}, flags={"output.dir": self.folder})

    @property
    def line(self) -> str:
        """See `Piece`."""
        options = option_words("set", self.sets) + option_words("out", self.folder)
        return words_line("train", self.recipe, *options)

    @property
    def key(self) -> Mapping[str, Any]:
        """See `Piece`."""
        return {"train": self.resolved.model_dump(mode="json"), "epochs": self.epochs}

    @property
    def needs(self) -> Path:
        """See `Piece`: the model that came of it."""
        return self.folder / "model_index.json"

    @property
    def mark(self) -> str:
        """What tells its model from others: the recipe."""
        return str(self.folder)

    def make(self, folder: Path, bench: Bench) -> tuple[list[Shown], Mapping[str, Any]]:
        """See `Piece`: train, or go on; show previews and the loss."""
        from diffkit.models import info, open_repo
        from diffkit.models.memory import count_parameters
        from diffkit.training import fit

        done = fit(self.resolved)
        bench.forget(str(self.folder))
        shown = []
        for path, label in self._previews(done):
            shutil.copy(path, folder / path.name)
            shown.append(Shown(path.name, label))
        shutil.copy(self.folder / "loss.png", folder / "loss.png")
        size = count_parameters(info(open_repo(str(self.folder))).network)
        facts = {**done, "curve": self._curve(), "parameters": size}
        return [*shown, Shown("loss.png", "loss by update")], facts

    def _previews(self, done: Mapping[str, Any]) -> list[tuple[Path, str]]:
        """The pictures of the averaged weights, or of the last ones, after some epochs."""
        found = sorted((self.folder / "samples").glob("step-*-ema.png"))
        found = found or sorted((self.folder / "samples").glob("step-*-raw.png"))
        per_epoch = done["step"] / max(done["epoch"], 1e-9)
        named = [(path, int(path.stem.split("-")[1])) for path in found]
        wanted = [one for one in named if any(abs(one[1] / per_epoch - e) < 0.05 for e in self.epochs)]
        if not wanted:
            wanted = named if len(named) <= _MOST_PREVIEWS else [named[0], named[len(named) // 2], named[-1]]
        return [(path, f"update {step}, epoch {step / per_epoch:.2g}") for path, step in wanted]

    def _curve(self) -> list[dict[str, Any]]:
        rows = [json.loads(row) for row in (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        return [{key: row.get(key) for key in ("step", "epoch", "loss", "lr")} for row in rows if row.get("loss")]


def train(
    lab: Lab, recipe: str, caption: str = "", *, sets: Sequence[str] = (), quick: Sequence[str] = (),
    epochs: Sequence[int] = (),
) -> Training:  # fmt: skip
    """Plan a training on the lab's data.

    Args:
        lab: Whose data, whether in full.
        recipe: Its name.
        caption: What stands above its pictures.
        sets: What always differs from it.
        quick: What differs from it on a laptop.
        epochs: After which previews are shown.

    Raises:
        UsageError: The recipe, or a field of it, is unknown.
    """
    name, _ = lab.data
    asked = [f"dataset.name={name}", f"training.seed={lab.seed}", *sets, *(() if lab.full else quick)]
    last = {one.partition("=")[0]: one for one in asked}
    if "training.steps" in last:
        last.pop("training.epochs", None)
    made = Training(recipe, tuple(last.values()), lab.folder / "runs", caption, tuple(epochs))
    _ = made.resolved
    return made


def instead(lab: Lab, what: str) -> tuple[str, ...]:
    """Say that the lab's data stand in for a course's own."""
    return (f"Trained on {lab.data_name} in place of {what}.", *stood_in(lab))


def stood_in(lab: Lab) -> tuple[str, ...]:
    """Say what stands in for MNIST, where that is not at hand."""
    return (lab.data[1],) if lab.data[1] else ()


def on(training: Training, job: str, caption: str = "", **values: Any) -> Drawing:
    """Plan a picture command by what a training gives.

    Args:
        training: It comes before this piece.
        job: The command's name.
        caption: What stands above its pictures.
        values: The job's fields, and `gif`, `sweep`, `labels`.
    """
    options = {key: values.pop(key) for key in ("gif", "sweep", "labels") if key in values}
    return Drawing.of(job, {"model": str(training.folder), **values}, caption, None, training.mark, **options)


def examples(lab: Lab, count: int = 3) -> list[Path]:
    """Return pictures of the data as files, of its test part where it has one, no two of the same class.

    Raises:
        Cannot: The data are streamed.
    """
    from diffkit.data import open_dataset
    from diffkit.errors import DataError
    from diffkit.lab.setup import write_input
    from diffkit.recipes.schema import DatasetSpec

    name, _ = lab.data
    try:
        found = open_dataset(DatasetSpec(name=name, split="test"), seed=0)
    except (DataError, UsageError):
        found = open_dataset(DatasetSpec(name=name), seed=0)
    if found.source is None or found.length is None:
        raise Cannot("the data are streamed, and no pictures of them can be named")
    files: list[Path] = []
    seen: set[int] = set()
    for index in range(found.length):
        label = index if found.source.labels is None else int(found.source.labels[index])
        if label not in seen:
            seen.add(label)
            image = found.source.read(index)
            files.append(write_input(lab.folder / "inputs", f"test-{len(files)}", image))
        if len(files) == count:
            break
    return files
