"""Pieces of work: what is drawn, trained or printed, each by a command of its own, kept where it was made.

A piece knows its key, from which and from the code its folder is named: made once, it is found again, until either
changes. The folder is written beside and renamed, so that it is there whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from diffkit.jobs import job_class
from diffkit.jobs.base import Job, PictureJob, build
from diffkit.jobs.command import command_line
from diffkit.jobs.options import Run, Watch
from diffkit.lab.code import code_digest
from diffkit.pictures.files import file_digest, write_whole

if TYPE_CHECKING:
    from diffkit.jobs.run import Models
    from diffkit.types import ModelInfo

RECORD = "made.json"


@dataclass
class Bench:
    """What pieces are made with: models that stay from one to the next, a device, somebody who watches."""

    device: str = "auto"
    allow_pickle: bool = False
    models: Models = field(default_factory=dict)
    watch: Callable[[], Watch] = Watch

    def forget(self, model: str) -> None:
        """Drop a model, whose files have changed."""
        for key in [key for key in self.models if key[0] == model]:
            del self.models[key]


@dataclass(frozen=True)
class Shown:
    """A picture of a piece: its file, and what stands under it."""

    file: str
    label: str = ""


@dataclass(frozen=True)
class Made:
    """What a piece gave.

    Attributes:
        folder: Where its files lie.
        pictures: In order.
        payload: The command's numbers, as `--json` prints them.
        seconds: It took so long.
        fresh: It was made now, and not found.
    """

    folder: Path
    pictures: tuple[Shown, ...]
    payload: Mapping[str, Any]
    seconds: float
    fresh: bool = False


class Piece(Protocol):
    """Work that one command does alone."""

    @property
    def caption(self) -> str:
        """What stands above its pictures."""
        ...

    @property
    def line(self) -> str:
        """The command."""
        ...

    @property
    def key(self) -> Mapping[str, Any]:
        """All that its result depends on, for JSON."""
        ...

    @property
    def needs(self) -> Path | None:
        """A file of its own without which what is kept of it does not count."""
        ...

    def make(self, folder: Path, bench: Bench) -> tuple[list[Shown], Mapping[str, Any]]:
        """Do the work; write pictures into the folder, and return them with the numbers."""
        ...


def digest(piece: Piece) -> str:
    """Return what a piece's folder is named by: its key and the code that makes it, hashed."""
    text = json.dumps({"code": code_digest(), **piece.key}, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def kept(piece: Piece, root: Path) -> Made | None:
    """Return what an earlier run made of a piece; None where it did not, or not wholly."""
    folder = root / digest(piece)
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        pictures = tuple(Shown(**one) for one in record["pictures"])
        files = [folder / one.file for one in pictures] + ([piece.needs] if piece.needs else [])
        if not all(file.is_file() for file in files):
            return None
        return Made(folder, pictures, record["payload"], float(record["seconds"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def make(piece: Piece, root: Path, bench: Bench) -> Made:
    """Return what a piece gives: what is kept of it, or made now."""
    if (found := kept(piece, root)) is not None:
        return found
    final = root / digest(piece)
    beside = root / f".{final.name}-{os.getpid()}"
    began = time.perf_counter()
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        pictures, payload = piece.make(beside, bench)
        seconds = round(time.perf_counter() - began, 3)
        record = {"line": piece.line, "seconds": seconds, "payload": payload, "pictures": [vars(p) for p in pictures]}
        write_whole(beside / RECORD, json.dumps(record, default=str, ensure_ascii=False).encode())
        shutil.rmtree(final, ignore_errors=True)  # what was not whole
        os.replace(beside, final)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    whole = kept(piece, root)
    assert whole is not None, "it was just written"
    return Made(whole.folder, whole.pictures, whole.payload, whole.seconds, fresh=True)


@dataclass(frozen=True)
class Drawing:
    """A picture command: a job.

    Attributes:
        job: Checked.
        caption: What stands above its pictures.
        sweep: Combinations to try.
        gif: Whether the animation is shown.
        mark: What tells the model's weights from others.
        labels: What stands under the combinations of a sweep, or under the pictures, in place of what they are.
        before: Whether the picture that goes in is shown, too, and its mask.
    """

    job: Job
    caption: str = ""
    sweep: tuple[str, ...] = ()
    gif: bool = False
    mark: str = ""
    labels: tuple[str, ...] = ()
    before: bool = False
    needs: Path | None = None

    @classmethod
    def of(
        cls, name: str, values: Mapping[str, Any], caption: str, info: ModelInfo | None, mark: str = "", *,
        sweep: Sequence[str] = (), gif: bool = False, labels: Sequence[str] = (), before: bool = False,
    ) -> Drawing:  # fmt: skip
        """Make a job of values and check it, all combinations of a sweep included.

        Args:
            name: The command's.
            values: Its fields; those that it does not have among `model` and `seed` are left out.
            caption: What stands above its pictures.
            info: The model; None where it is yet to be trained, or where none is needed.
            mark: What tells its weights from others.
            sweep: Combinations to try.
            gif: Whether the animation is shown.
            labels: What stands under the pictures.
            before: Whether what goes in is shown, too.

        Raises:
            UsageError: The model cannot.
        """
        kind = job_class(name)
        free = {"model", "seed"} - set(kind.model_fields)
        values = {key: value for key, value in values.items() if key not in free}
        job = build(kind, values)
        if info is not None and issubclass(kind, PictureJob):
            from diffkit.jobs.sweep import table

            jobs = [cell.job for cell in table(kind, values, sweep).cells] if sweep else [job]
            for one in jobs:
                assert isinstance(one, PictureJob)
                one.fitted(info).check(info)
        return cls(job, caption, tuple(sweep), gif, mark, tuple(labels), before)

    @cached_property
    def line(self) -> str:
        """See `Piece`."""
        return command_line(self.job, sweep=self.sweep, gif=self.gif)

    @cached_property
    def key(self) -> Mapping[str, Any]:
        """See `Piece`; an image counts by what it shows."""
        return {
            "command": self.job.name, "values": {k: str(v) for k, v in self.job.given().items()}, "sweep": self.sweep,
            "gif": self.gif, "mark": self.mark, "labels": self.labels, "before": self.before,
            "inputs": {name: file_digest(path) for name, path in self.job.inputs().items()},
        }  # fmt: skip

    def make(self, folder: Path, bench: Bench) -> tuple[list[Shown], Mapping[str, Any]]:
        """See `Piece`."""
        from diffkit.jobs.run import run

        offered = type(self.job).offers
        options: dict[str, Any] = {"out": folder, "device": bench.device, "allow_pickle": bench.allow_pickle}
        options |= {"gif": self.gif, "sweep": self.sweep}
        options = {name: value for name, value in options.items() if name in offered}
        done = run(type(self.job), self.job.given(), Run(**options), watch=bench.watch(), models=bench.models)
        return self._shown(folder, done.payload), _without_paths(done.payload)

    def _shown(self, folder: Path, payload: Mapping[str, Any]) -> list[Shown]:
        """The pictures with their labels: combination, prompt or class, or seed."""
        from diffkit.pictures.metadata import read_recipe

        shown = self._inputs(folder, Path(payload["images"][0])) if self.before else []
        names = iter(self.labels)
        for cell in payload.get("sweep") or [{"values": "", "images": payload["images"]}]:
            recipes = [read_recipe(path) for path in map(Path, cell["images"])]
            words = [cell["values"] or one.get("prompt") or one.get("class") or "" for one in recipes]
            same = len(words) > 1 and len(set(words)) == 1  # then it stands above, or is what is tried
            for path, recipe, word in zip(map(Path, cell["images"]), recipes, words, strict=True):
                label = f"{cell['values']} seed {recipe['seed']}".strip() if same else word
                shown.append(Shown(path.name, next(names, label)))
        laid_out = self.job.name in ("anagram", "hybrid", "invert") or self.job.given().get("states")
        if not payload.get("sweep") and laid_out and payload.get("grid"):
            shown = [Shown(Path(payload["grid"]).name)]  # every view, or both ways, side by side
        if payload.get("gif"):
            shown.append(Shown(Path(payload["gif"]).name, "on the way"))
        return shown

    def _inputs(self, folder: Path, like: Path) -> list[Shown]:
        """Copies of the picture and the mask that go in, cut as the model takes them."""
        from PIL import Image

        from diffkit.pictures.images import cut, open_image

        with Image.open(like) as drawn:
            width, height = drawn.size
        found = []
        for name, path in self.job.inputs().items():
            cut(open_image(path), width, height).save(folder / f"input-{name}.png")
            found.append(Shown(f"input-{name}.png", {"image": "the picture", "mask": "white is new"}.get(name, name)))
        return found


def _without_paths(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers alone: the folder of the files is yet to be renamed."""
    paths = {"images", "grid", "gif", "animations", "candidates"}
    found = {key: value for key, value in payload.items() if key not in paths}
    if payload.get("sweep"):
        found["sweep"] = [{k: v for k, v in cell.items() if k != "images"} for cell in payload["sweep"]]
    return found
