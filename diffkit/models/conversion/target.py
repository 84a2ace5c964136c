"""Where a converted model goes: only a model may be replaced there, and only one that nothing else lies in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from diffkit.errors import UsageError
from diffkit.models.conversion.files import STEMS
from diffkit.models.conversion.parts import INDEX, LEGAL, ROOT, TABLE, components
from diffkit.models.repo import Repo

# The weights of a network that lies at the root: plain or a variant, whole or in shards, and the index of these.
_WEIGHTS = re.compile(
    rf"(?:{'|'.join(STEMS)})(?:\.[\w-]+|-\d{{5}}-of-\d{{5}})*\.(?:safetensors|bin)(?:\.index(?:\.[\w-]+)?\.json)?"
)


def check_target(target: Path, read: Mapping[str, str], overwrite: bool) -> None:
    """Refuse a target that would take something away that is no converted model.

    Args:
        target: The folder to write.
        read: What is read, by the argument that names it.
        overwrite: Replace a model that is there.

    Raises:
        UsageError: It is in the way, or cannot be made.
    """
    there = target.resolve()
    sources = {argument: Path(text).expanduser().resolve() for argument, text in read.items() if text}
    for argument, ours in sources.items():
        if ours.exists() and (there == ours or there in ours.parents):
            raise UsageError(f"`target` {target} holds {_called(argument)}", "Give another folder.")
    if there in (here := Path.cwd().resolve(), *here.parents):
        raise UsageError(f"`target` {target} is the folder that you are in", "Give a folder in it.")
    place = next(folder for folder in (there, *there.parents) if folder.exists())
    if not place.is_dir() and place != there:
        raise UsageError(f"`target` {target}: {place.name} is a file", "Choose another folder.")
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if target.is_file():
        raise UsageError(f"`target` {target} is a file", "Give a folder.")
    if not overwrite:
        raise UsageError(f"`target` {target} is there already", "Give another folder, or pass `overwrite`.")
    _check_replaced(target, sources)


def _check_replaced(target: Path, sources: Mapping[str, Path]) -> None:
    """Refuse to replace a folder that belongs to another model, or holds anything else."""
    there = target.resolve()
    for argument, ours in sources.items():
        if ours in there.parents:
            raise UsageError(f"`target` {target} lies in {_called(argument)}", "Give another folder.")
    if there.name in components(Repo(str(there.parent), None, there.parent)):
        raise UsageError(f"`target` {target} is a part of the model in {target.parent}", "Give another folder.")
    if strange := _strange_files(there):
        some = ", ".join(strange[:3]) + (f" and {len(strange) - 3} more" if len(strange) > 3 else "")
        raise UsageError(
            f"`target` {target} holds something else than a model ({some}): it is not replaced", "Give another folder."
        )


def _called(argument: str) -> str:
    return "the source" if argument == "source" else f"the `{argument}`"


def _strange_files(folder: Path) -> list[str]:
    """Return what lies in a folder and is no part of a model; all of it where there is none."""
    found = sorted(folder.iterdir())
    flat = (folder / "config.json").is_file() and any(_WEIGHTS.fullmatch(path.name) for path in found)
    if not flat and not (folder / INDEX).is_file():
        return [path.name for path in found]
    parts, strange = components(Repo(str(folder), None, folder)), []
    for path in found:
        if path.is_dir():  # the folder of a part holds files alone
            ours = path.name in parts
            strange += [f"{path.name}/{one.name}" for one in sorted(path.iterdir()) if ours and one.is_dir()]
        else:
            weights = flat and bool(_WEIGHTS.fullmatch(path.name))
            ours = weights or path.name in (*ROOT, TABLE, ".gitattributes") or path.name.startswith(LEGAL)
        strange += [] if ours else [path.name]
    return strange
