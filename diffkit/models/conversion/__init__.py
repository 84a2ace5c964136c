"""Foreign checkpoints as diffusers folders in safetensors: one row per kind of source, and one door.

A row takes a file or a folder and plans the parts that are written; here they are written beside the target, opened
once as any model is, and moved into place, so that a result is whole or not there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffkit import models
from diffkit.errors import ModelError, ResourceError, UsageError
from diffkit.models.conversion import checkpoint, pipeline, pixnerd, single_file
from diffkit.models.conversion.parts import Plan, weights_type
from diffkit.models.conversion.source import SUFFIXES, File, Options, open_file, unknown
from diffkit.models.conversion.target import check_target
from diffkit.models.hub import open_repo
from diffkit.models.weights import load_component

if TYPE_CHECKING:
    from diffkit.types import ModelInfo

__all__ = ["ROWS", "Options", "Row", "convert", "plan_of"]


@dataclass(frozen=True)
class Row:
    """A kind of file.

    Attributes:
        name: What it is, in words.
        matches: Whether a file is of this kind, by the names of its tensors.
        plan: What is written of it.
    """

    name: str
    matches: Callable[[File], bool]
    plan: Callable[[File, Options], Plan]


ROWS = (
    Row("a checkpoint of PixNerd", pixnerd.matches, pixnerd.plan),
    Row("a Stable Diffusion, SDXL or SD3 checkpoint in one file", single_file.is_single_file, single_file.plan),
)  # fmt: skip


def plan_of(source: str, options: Options) -> Plan:
    """Say what converting a source would write; nothing is written, and of a Hub repository no weights are fetched.

    Args:
        source: A file of weights, a training's checkpoint, a folder, or a Hub id.
        options: How.

    Raises:
        UsageError: An option that is missing, or nothing to convert.
        ModelError: It is of no known kind, broken, or pickled and that is not allowed.
    """
    path = Path(source).expanduser()
    if path.is_file():
        file = open_file(path, options.allow_pickle)
        row = next((row for row in ROWS if row.matches(file)), None)
        if row is None:
            raise unknown(file, "; ".join(row.name for row in ROWS))
        if options.size and row.plan is not pixnerd.plan:
            raise UsageError(f"`size` is not asked for: {source} is {row.name}, which says it", "Leave `size` out.")
        return row.plan(file, options)
    if options.size:
        raise UsageError(f"`size` is for checkpoints of PixNerd; {source} says its own", "Leave `size` out.")
    if path.suffix in SUFFIXES and not path.exists():
        raise ModelError(f"{source}: no such file", "Check the path.")
    if path.is_dir():
        _refuse_training_state(path)
        if checkpoint.is_checkpoint(path):
            return checkpoint.plan(path, options)
    return pipeline.plan(open_repo(source, revision=options.revision), options)


def _refuse_training_state(path: Path) -> None:
    """Refuse folders that hold a training's state and no model that can be told from it."""
    names = {p.name for p in path.iterdir()}
    if {"manifest.json", "state.json"} <= names or ("manifest.json" in names and path.parent.name == "checkpoints"):
        raise ModelError(
            f"{path} is a checkpoint of `diffkit train`", "Run the same training to its end: its folder is a pipeline."
        )
    if {"model_index.json", "config.json"} & names or checkpoint.is_checkpoint(path):
        return
    if any("lora" in name and name.endswith((".safetensors", ".bin")) for name in names):
        raise ModelError(f"{path} holds a LoRA: changes to a model, no model", "Convert the model that it belongs to.")
    if "optimizer.bin" in names or "random_states_0.pkl" in names:
        raise ModelError(
            f"{path} holds the state of a training, and no network with its config.json",
            "Give the folder that the training writes at its end, or a checkpoint with unet/ in it.",
        )


def convert(
    source: str, target: Path, options: Options, *, overwrite: bool = False, dry_run: bool = False
) -> dict[str, Any]:
    """Write a foreign checkpoint as a diffusers folder in safetensors.

    Args:
        source: See `plan_of`.
        target: The folder to write; it is there whole afterwards, or as it was.
        options: How.
        overwrite: Replace a model that is there.
        dry_run: Write nothing.

    Returns:
        `source`, `output`, `kind`, `pipeline`, `family` (unless nothing was written), `dtype`, `parts` (name, from,
        bytes) and `bytes`, those on the disk where it was written; None for what is not fetched.

    Raises:
        UsageError: The target is in the way, or see `plan_of`.
        ModelError: See `plan_of`; or what was written is no whole model, and is gone.
        ResourceError: The disk has no room for it.
    """
    check_target(target, {"source": source, "config": options.config}, overwrite)
    plan = plan_of(source, options)
    parts = [{"name": p.name or ".", "from": p.origin, "bytes": p.bytes} for p in plan.parts]
    sizes = [p.bytes for p in plan.parts]
    facts: dict[str, Any] = {
        "source": source, "output": str(target), "kind": plan.kind, "pipeline": plan.class_name, "parts": parts,
        "bytes": None if None in sizes else sum(size or 0 for size in sizes), "dry_run": dry_run,
    }  # fmt: skip
    if dry_run:
        return facts
    _check_room(target, sum(size or 0 for size in sizes))
    with _whole(target) as folder:
        for part in plan.parts:
            part.write(folder)
        known = _check(source, folder)
        written = [p for p in folder.rglob("*") if p.is_file()]
        facts |= {"family": known.family, "bytes": sum(p.stat().st_size for p in written)}
        facts["dtype"] = weights_type(folder / known.network.folder)
    return facts


def _check(source: str, folder: Path) -> ModelInfo:
    """Open what was written as any model is opened, and load its network: every tensor has to be there."""
    from diffkit.models.devices import pick_dtype
    from diffkit.models.kinds import network_class

    try:
        repo = open_repo(folder)
        known = models.info(repo)
        stored = weights_type(folder / known.network.folder)
        kind = pick_dtype(stored if stored in ("fp16", "bf16") else "fp32")
        load_component(repo, network_class(known.network.kind), known.network.folder, dtype=kind)
    except ModelError as error:
        message = error.message.replace(str(folder), "the result")
        raise ModelError(
            f"{source} makes no whole model: {message}", "Nothing was written. Check the source."
        ) from None
    return known


def _check_room(target: Path, size: int) -> None:
    place = target.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if size > free:
        raise ResourceError(
            f"{target} needs {size / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free there", "Free some space."
        )


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """Context: a folder beside the target that becomes the target at the end, and is gone where anything went wrong."""
    from diffkit.pictures.files import sync

    given, target = target, target.resolve()  # of a link, what it leads to
    mark = f".{target.name}.{os.getpid()}"
    beside, old = target.with_name(f"{mark}.tmp"), target.with_name(f"{mark}.old")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
    except OSError as error:
        if error.errno == 28:
            raise
        raise UsageError(f"`target` {given} cannot be written: {error.strerror}", "Choose another folder.") from None
    try:
        yield beside
        for path in beside.rglob("*"):
            sync(path)
        if target.exists():
            target.rename(old)
        try:
            beside.rename(target)
        except BaseException:
            if old.exists():
                old.rename(target)
            raise
        sync(target.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
