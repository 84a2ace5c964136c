"""`diffkit replay`: a picture again, from the recipe it carries.

What a file says of itself is not to be trusted: only known commands and known options of the right type are taken from
it, never where to write, and never leave to read pickles.
"""

from __future__ import annotations

import inspect
import logging
import tempfile
import time
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from diffkit.cli import options, pictures, sweep
from diffkit.cli.runner import Output, command
from diffkit.errors import DataError

LOG = logging.getLogger("diffkit")

Picture = Annotated[Path, typer.Argument(metavar="PICTURE", help="A PNG written by diffkit.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="The file to write; PICTURE-replay.png when left out.")]

VIEW_FILE = "view "
_REFUSED = {"out", "allow_pickle", "gif", "dry_run", "device"}


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    command(app, "replay")(replay)


def replay(picture: Picture, device: options.Device = "auto", out: Out = None) -> Output:
    """Draw a picture again from the recipe in its file, and say whether it is the same, bit for bit.

    On the same platform, device and versions it is; the model and the images that went in have to be where they were.
    """
    from diffkit.pictures.files import read_recipe, versions

    began = time.perf_counter()
    recipe = read_recipe(picture)
    target = out or picture.with_name(f"{picture.stem}-replay.png")
    call, given = _call(recipe, str(picture))
    _check_inputs(recipe, given, str(picture))
    if "device" in inspect.signature(call).parameters:
        given["device"] = device
    index = recipe.get("index")
    with tempfile.TemporaryDirectory() as folder:
        if isinstance(index, int):
            given, place = _one_batch(recipe["command"], call, given, index, _company(recipe, str(picture)))
        done = call(**given, out=Path(folder))
        made = Path(done.payload["images"][place] if isinstance(index, int) else _sheet(recipe, done.payload))
        if not made.is_file():
            raise DataError(f"{picture}: its recipe makes no such picture", "It may have been written by hand.")
        same = _same(made, picture)
        _copy(made, target)
    _check_model(recipe, done)
    now, then = versions(), recipe.get("versions")
    changed = {k: f"{then.get(k)} -> {v}" for k, v in now.items() if then.get(k) != v} if isinstance(then, dict) else {}
    if not same:
        why = ", ".join(f"{k} {v}" for k, v in changed.items()) or "another machine or device, or the file was changed"
        LOG.warning("the picture is not the same, bit for bit (%s)", why)
    payload = {
        "images": [str(target)], "identical": same, "command": recipe["command"], "model": done.payload.get("model"),
        "changed_versions": changed, "seconds": {"total": round(time.perf_counter() - began, 3)},
    }  # fmt: skip
    return Output(payload, [f"{'identical' if same else 'not identical'}: {target}"])


def _call(recipe: dict[str, Any], name: str) -> tuple[Callable[..., Output], dict[str, Any]]:
    """Return the command's function and what of the recipe's arguments it takes."""
    from diffkit.cli.sample import sample

    commands: dict[str, Callable[..., Output]] = {"sample": sample, **pictures.COMMANDS}
    call = commands.get(recipe["command"])
    if call is None:
        raise DataError(
            f"{name}: its recipe names the command {recipe['command'][:40]!r}, which cannot be replayed",
            f"Commands: {', '.join(sorted(commands))}.",
        )
    signature = inspect.signature(call, eval_str=True)
    arguments, given = recipe.get("arguments"), {}
    if not isinstance(arguments, dict):
        raise DataError(f"{name}: its recipe holds no arguments", "It was not written by diffkit.")
    for key, value in arguments.items():
        if key not in signature.parameters or key in _REFUSED:
            LOG.warning("%s: the recipe's %s is ignored", name, repr(key)[:60])
            continue
        given[key] = _value(key, value, signature.parameters[key].annotation, name)
    return call, given


def _sheet(recipe: dict[str, Any], payload: dict[str, Any]) -> str:
    """The file that stands for a sheet: the grid, or the candidates of a search."""
    if recipe.get("sheet") == "candidates":
        return str((payload.get("candidates") or [""])[0])
    return str(payload.get("grid") or "")


def _value(key: str, value: Any, annotation: Any, name: str) -> Any:
    kind = typing.get_args(annotation)[0] if typing.get_origin(annotation) is typing.Annotated else annotation
    many = any(typing.get_origin(a) is list for a in (kind, *typing.get_args(kind)))
    base = sweep.plain(annotation)
    if many:
        if isinstance(value, list) and all(type(v) is base or (base is float and type(v) is int) for v in value):
            return [base(v) for v in value]
    elif base is Path and isinstance(value, str):
        return Path(value)
    elif type(value) is int or (base is float and type(value) is float):
        if base in (int, float):
            return sweep.convert(str(value), annotation, f"{name}: {key}")
    elif base in (str, bool) and type(value) is base:
        return value
    raise DataError(f"{name}: the recipe's {key} is {str(value)[:60]!r}, of the wrong type", "The file was changed.")


def _check_inputs(recipe: dict[str, Any], given: dict[str, Any], name: str) -> None:
    """The images that went in must be there, and be the same."""
    inputs = recipe.get("inputs")
    files = {key: value for key, value in given.items() if isinstance(value, Path)}
    if isinstance(inputs, dict):  # a view's own file, named within an option
        files |= {key: Path(key.removeprefix(VIEW_FILE)) for key in inputs if key.startswith(VIEW_FILE)}
    for key, value in files.items():
        if not value.is_file():
            raise DataError(f"{name} was made of {value}, which is not there", "Put it back, or run from its folder.")
        if not isinstance(inputs, dict) or inputs.get(key) != pictures.digest(value):
            raise DataError(f"{name} was made of {value}, which has changed since", "Put the old file back.")


def _company(recipe: dict[str, Any], name: str) -> list[int]:
    """The seeds of the pictures that a search has found and drawn together, this one's at its index; else none."""
    seeds, index, call = recipe.get("company"), recipe["index"], pictures.COMMANDS.get(recipe["command"])
    parameters = inspect.signature(call).parameters if call else {}
    if seeds is None or not {"seed", "batch_size"} <= parameters.keys():
        return []
    if not isinstance(seeds, list) or any(type(seed) is not int for seed in seeds) or not 0 <= index < len(seeds):
        raise DataError(f"{name}: the recipe's company is {str(seeds)[:60]!r}", "The file was changed.")
    return [sweep.convert(str(seed), parameters["seed"].annotation, f"{name}: company") for seed in seeds]


def _one_batch(
    command: str, call: Callable[..., Output], given: dict[str, Any], index: int, company: list[int]
) -> tuple[dict[str, Any], int]:
    """Narrow a call down to the batch that holds picture `index`: its last bits may depend on its company."""
    parameters = inspect.signature(call).parameters
    if company:
        size = given.get("batch_size", parameters["batch_size"].default)
        first = index // size * size
        return {**given, "company": company[first : first + size]}, index - first
    if given.get("sweep"):
        return given, index
    if "num" not in parameters or "batch_size" not in parameters:
        if "num" not in parameters:
            return given, 0
        return {**given, "seed": given.get("seed", 0) + index, "num": 1}, 0
    size = given.get("batch_size", parameters["batch_size"].default)
    count = given.get("num") or 1
    first = index // size * size
    if not 0 <= index < count:
        raise DataError(f"picture {index} of {count}: the recipe contradicts itself", "The file was changed.")
    narrow = {**given, "seed": given.get("seed", 0) + first, "num": min(size, count - first)}
    for key in ("classes", "prompt") if command == "sample" else ():
        if names := given.get(key):
            narrow[key] = [names[(first + k) % len(names)] for k in range(narrow["num"])]
    return narrow, index - first


def _check_model(recipe: dict[str, Any], done: Output) -> None:
    from diffkit.jobs.album import fingerprint

    then, now = recipe.get("model"), done.payload.get("model")
    if isinstance(then, dict) and isinstance(now, dict):
        weights = fingerprint(now["id"]) if then.get("weights") else None
        if then.get("revision") != now["revision"] or then.get("weights") != weights:
            LOG.warning("the model %s has changed since the picture was made", now["id"])


def _same(one: Path, other: Path) -> bool:
    from PIL import Image

    with Image.open(one) as a, Image.open(other) as b:
        return a.size == b.size and a.mode == b.mode and a.tobytes() == b.tobytes()


def _copy(made: Path, target: Path) -> None:
    from diffkit.pictures.files import output_folder, write_whole

    output_folder(target.parent)
    write_whole(target, made.read_bytes())
