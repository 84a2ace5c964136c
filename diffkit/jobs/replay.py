"""A picture again, from what its file remembers.

What a file says of itself is not to be trusted: only known commands and fields of the right type are taken from it,
never where to write, and never leave to read pickles.
"""

from __future__ import annotations

import logging
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffkit.errors import DataError, UsageError
from diffkit.jobs import job_class, summaries
from diffkit.jobs.base import Job, build
from diffkit.jobs.fields import MEMORY
from diffkit.jobs.guides import GUIDE_FILE
from diffkit.jobs.illusion import VIEW_FILE
from diffkit.jobs.options import Again, Run, Watch
from diffkit.jobs.output import Result
from diffkit.jobs.run import run
from diffkit.models.bundled import BUNDLED
from diffkit.models.hub import no_folder
from diffkit.pictures.files import Destination, file_digest, write_whole
from diffkit.pictures.metadata import read_recipe, versions

LOG = logging.getLogger("diffkit.jobs")

# What a file may not decide, whatever it says.
_REFUSED = {"out", "allow_pickle", "gif", "dry_run", "device", "animate", "columns"}


@dataclass(frozen=True)
class Remembered:
    """What a picture's file says of how it was made, checked.

    Attributes:
        cls: The job.
        values: Its fields.
        sweep: The combinations it was drawn among.
        again: The batch that it was drawn in; all of a run for a sheet.
        recipe: All that the file says.
    """

    cls: type[Job]
    values: dict[str, Any]
    sweep: tuple[str, ...]
    again: Again
    recipe: dict[str, Any]


def replay(picture: Path, *, device: str = "auto", out: Path | None = None, watch: Watch | None = None) -> Result:
    """Draw a picture again from what its file remembers, and say whether it is the same, bit for bit.

    On the same platform, device and versions it is; the model and the images that went in have to be where they were.

    Args:
        picture: A PNG written by diffkit.
        device: Where to draw.
        out: FILE.png or a folder; PICTURE-replay.png when left out.
        watch: A listener.

    Raises:
        DataError: No usable memory in the file, or an input that is not there or has changed.
        UsageError: As `Destination.of`.
        DiffkitError: As of the job.
    """
    began = time.perf_counter()
    kept = remembered(picture)
    name = f"{picture.stem}-replay.png"
    target = Destination.of(picture.with_name(name) if out is None else out, "replay").named(name)
    index = kept.again.index
    with tempfile.TemporaryDirectory() as folder:
        options = Run(out=Path(folder), device=device, sweep=kept.sweep)
        done = run(kept.cls, kept.values, options, watch=watch, again=kept.again)
        made = _sheet(kept.recipe, done.payload) if index is None else _picture(kept, done)
        if made is None or not made.is_file():
            raise DataError(f"{picture}: what it remembers makes no such picture", "It may have been written by hand.")
        same = _same(made, picture)
        write_whole(target, made.read_bytes())
    _check_model(kept.recipe, made_by=done)
    now, then = versions(), kept.recipe.get("versions")
    changed = {k: f"{then.get(k)} -> {v}" for k, v in now.items() if then.get(k) != v} if isinstance(then, dict) else {}
    if not same:
        why = ", ".join(f"{k} {v}" for k, v in changed.items()) or "another machine or device, or the file was changed"
        LOG.warning("the picture is not the same, bit for bit (%s)", why)
    payload = {
        "images": [str(target)], "identical": same, "command": kept.cls.name, "model": done.payload.get("model"),
        "changed_versions": changed, "seconds": {"total": round(time.perf_counter() - began, 3)},
    }  # fmt: skip
    return Result(payload, [f"{'identical' if same else 'not identical'}: {target}"], done.pictures)


def remembered(picture: Path) -> Remembered:
    """Read and check what a picture remembers.

    Raises:
        DataError: Nothing usable, or an input that is not there or has changed.
    """
    recipe, name = read_recipe(picture), str(picture)
    command = recipe["command"]
    if command not in summaries():
        raise DataError(
            f"{name}: its recipe names the command {command[:40]!r}, which cannot be replayed",
            f"Commands: {', '.join(sorted(summaries()))}.",
        )
    cls, arguments = job_class(command), recipe.get("arguments")
    if not isinstance(arguments, dict):
        raise DataError(f"{name}: its recipe holds no arguments", "It was not written by diffkit.")
    values, sweep = _values(cls, arguments, name)
    _check_folder(recipe, values)
    _check_inputs(recipe, values, name)
    if not sweep:
        _try(cls, values, name)
    index = recipe.get("index")
    again = Again() if type(index) is not int else Again(index, _company(recipe, index, name))
    if again.index is not None and not again.company and not sweep:
        _check_index(values, again.index, name)
    return Remembered(cls, values, sweep, again, recipe)


def _values(cls: type[Job], arguments: dict[str, Any], name: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The fields that a file may decide, validated as if they had been given."""
    known = {*cls.model_fields, *cls.aliases(), *cls.renamed, "sweep", "label"}
    values = {}
    for key, value in arguments.items():
        if key not in known or key in _REFUSED:
            LOG.warning("%s: the recipe's %s is ignored", name, repr(key)[:60])
        elif value is None:
            raise DataError(f"{name}: the recipe's {key} is empty", "The file was changed.")
        elif key in ("classes", "prompts") and not _is_text(value):
            raise DataError(
                f"{name}: the recipe's {key} is {str(value)[:60]}; each of them: it must be a valid string",
                "The file was changed.",
            )
        else:
            values[key] = value
    sweep = values.pop("sweep", [])
    if not isinstance(sweep, list) or not all(isinstance(text, str) for text in sweep):
        raise DataError(f"{name}: the recipe's sweep is {str(sweep)[:60]!r}", "The file was changed.")
    if isinstance(values.get("image"), str) and values["image"].startswith(MEMORY):
        raise DataError(
            f"{name} was drawn from an image in memory, which no file holds", "Draw it again by the Python function."
        )
    return values, tuple(sweep)


def _is_text(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _try(cls: type[Job], values: dict[str, Any], name: str) -> None:
    """Validate what a file says; what a user would be told as a wrong option is a changed file here."""
    try:
        build(cls, values)
    except UsageError as error:
        raise DataError(f"{name}: the recipe is refused: {error.message}", "The file was changed.") from None


def _check_inputs(recipe: dict[str, Any], values: dict[str, Any], name: str) -> None:
    """The images that went in must be there, and be the same."""
    inputs = recipe.get("inputs")
    digests = inputs if isinstance(inputs, dict) else {}
    files = {key: Path(values[key]) for key in digests if isinstance(values.get(key), str)}
    for prefix in (VIEW_FILE, GUIDE_FILE):
        files |= {key: Path(key.removeprefix(prefix)) for key in digests if key.startswith(prefix)}
    for key in ("image", "image_b", "mask", "reference"):
        if isinstance(values.get(key), str) and key not in files:
            files[key] = Path(values[key])
    for key, path in files.items():
        if not path.is_file():
            raise DataError(f"{name} was made of {path}, which is not there", "Put it back, or run from its folder.")
        if digests.get(key) != file_digest(path):
            raise DataError(f"{name} was made of {path}, which has changed since", "Put the old file back.")


def _check_folder(recipe: dict[str, Any], values: dict[str, Any]) -> None:
    """A model that was a folder is looked for as a folder, and not on the Hub."""
    model = recipe.get("model")
    source = model.get("id") if isinstance(model, dict) and model.get("revision", "") is None else None
    if not isinstance(source, str) or source != values.get("model") or source == BUNDLED:
        return
    if not Path(source).expanduser().exists():
        raise no_folder(source)


def _company(recipe: dict[str, Any], index: int, name: str) -> tuple[int, ...]:
    """The seeds of the pictures that a search has found and drawn together, this one's at its index; else none."""
    seeds = recipe.get("company")
    if seeds is None:
        return ()
    good = isinstance(seeds, list) and all(type(seed) is int and 0 <= seed < 2**63 for seed in seeds)
    if not good or not 0 <= index < len(seeds):
        raise DataError(f"{name}: the recipe's company is {str(seeds)[:60]!r}", "The file was changed.")
    return tuple(seeds)


def _check_index(values: dict[str, Any], index: int, name: str) -> None:
    count = values.get("num")
    if index < 0 or (isinstance(count, int) and index >= count):
        raise DataError(f"picture {index} of {count}: the recipe of {name} contradicts itself", "The file was changed.")


def _picture(kept: Remembered, done: Result) -> Path | None:
    """The picture among those of its batch."""
    for path in map(Path, done.payload["images"]):
        if path.is_file() and read_recipe(path).get("index") == kept.again.index:
            return path
    return None


def _sheet(recipe: dict[str, Any], payload: dict[str, Any]) -> Path | None:
    """The file that stands for a sheet: the grid, or the candidates of a search."""
    found = (payload.get("candidates") or [None])[0] if recipe.get("sheet") == "candidates" else payload.get("grid")
    return Path(found) if found else None


def _check_model(recipe: dict[str, Any], made_by: Result) -> None:
    then, now = recipe.get("model"), made_by.payload.get("model")
    if not isinstance(then, dict) or not isinstance(now, dict) or not made_by.pictures:
        return
    weights = made_by.pictures[0].info["diffkit"]["model"].get("weights")
    if then.get("revision") != now["revision"] or (then.get("weights") and then["weights"] != weights):
        LOG.warning("the model %s has changed since the picture was made", now["id"])


def _same(one: Path, other: Path) -> bool:
    from PIL import Image

    with Image.open(one) as a, Image.open(other) as b:
        return a.size == b.size and a.mode == b.mode and a.tobytes() == b.tobytes()
