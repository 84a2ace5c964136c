"""Checkpoints: whole or not there at all.

A checkpoint is a folder `checkpoints/step-N`. It is written into a temporary folder beside it, every file is synced,
`manifest.json` with sizes and SHA-256 sums comes last, and one rename makes it appear; older ones are pruned only then.
Reading verifies the manifest first and falls back to the newest whole checkpoint. Tensors are safetensors, all else is
JSON: nothing that is loaded can run code.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from diffkit.errors import ModelError, ResourceError
from diffkit.pictures.files import file_digest, sync

LOG = logging.getLogger(__name__)
MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d+)$")


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: its folder, its step, and the JSON part of its state."""

    folder: Path
    step: int
    state: dict[str, Any]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """Load `name`.safetensors, as copies: nothing keeps the file mapped."""
        from safetensors.torch import load_file

        return {key: value.clone() for key, value in load_file(self.folder / f"{name}.safetensors").items()}


def write_json(path: Path, value: Any) -> None:
    """Write JSON and sync it."""
    path.write_text(json.dumps(value, indent=1, sort_keys=True, default=str) + "\n", encoding="utf-8")
    sync(path)


def save(
    root: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], *, keep: int = 2
) -> Path:
    """Commit a checkpoint and prune the older ones.

    Args:
        root: The run's `checkpoints` folder.
        step: Optimizer updates done.
        tensors: Tensor files by name; each is a flat mapping.
        state: The JSON part.
        keep: How many checkpoints stay, this one included (at least two).

    Raises:
        ResourceError: The disk is full, or cannot be written; the earlier checkpoints are untouched.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    target, temporary = root / f"step-{step:07d}", root / f".tmp-{step}-{os.getpid()}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        for name, values in tensors.items():
            path = temporary / f"{name}.safetensors"
            save_file({key: value.detach().contiguous().cpu() for key, value in values.items()}, path)
            sync(path)
        write_json(temporary / "state.json", dict(state))
        files = {p.name: {"size": p.stat().st_size, "sha256": file_digest(p)} for p in sorted(temporary.iterdir())}
        write_json(temporary / MANIFEST, {"step": step, "files": files, "versions": _versions()})
        sync(temporary)
        if target.exists():  # the same step again, after a forced resume
            shutil.rmtree(target)
        temporary.rename(target)
        sync(root)
    except (OSError, SafetensorError, RuntimeError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ResourceError(
            f"the checkpoint of step {step} could not be written to {root}: {reason}",
            "Free some space and run the same command again; the earlier checkpoints are intact.",
        ) from error
    for old in find(root)[max(2, keep) :]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    import diffkit

    return {"diffkit": diffkit.__version__, **{name: version(name) for name in ("torch", "diffusers", "accelerate")}}


def find(root: Path) -> list[Path]:
    """Return the checkpoint folders, newest first, unverified."""
    if not root.is_dir():
        return []
    named = [(int(match[1]), p) for p in root.iterdir() if (match := _NAME.match(p.name)) and p.is_dir()]
    return [path for _, path in sorted(named, reverse=True)]


def clean(root: Path) -> None:
    """Remove what a killed save left behind; call it while holding the run's lock."""
    if root.is_dir():
        for leftover in root.glob(".tmp-*"):
            LOG.debug("removing the leftovers of an unfinished checkpoint: %s", leftover.name)
            shutil.rmtree(leftover, ignore_errors=True)


def verify(folder: Path) -> str:
    """Return what is wrong with a checkpoint, naming the file, or "" if it is whole."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST} is unreadable ({type(error).__name__})"
    extra = {p.name for p in folder.iterdir()} - set(files) - {MANIFEST}
    if extra:
        return f"{sorted(extra)[0]} is not in the manifest"
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["size"]:
            return f"{name} has {path.stat().st_size} bytes, not {expected['size']}"
        if file_digest(path) != expected["sha256"]:
            return f"{name} has another checksum"
    return ""


def newest(root: Path) -> Checkpoint | None:
    """Return the newest whole checkpoint, warning of each broken one passed over; None if there is none at all.

    Raises:
        ModelError: There are checkpoints, and all are broken.
    """
    folders = find(root)
    broken = ""
    for folder in folders:
        problem = verify(folder)
        if problem:
            broken = broken or f"{folder / problem.split()[0]}: {problem}"
            LOG.warning("checkpoint %s is not used: %s", folder.name, problem)
            continue
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        if broken:
            LOG.warning("falling back to checkpoint %s", folder.name)
        return Checkpoint(folder, int(state["step"]), state)
    if folders:
        raise ModelError(f"no checkpoint in {root} can be used: {broken}", "Remove the folder to start again.")
    return None
