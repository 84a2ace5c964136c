"""A run's output folder, and one run in each: a lock that the operating system releases when its holder dies."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffkit.errors import BusyError, UsageError
from diffkit.recipes.schema import Recipe

try:
    import fcntl
except ImportError:  # Windows: the pid in the file decides
    fcntl = None  # type: ignore[assignment]


def run_folder(recipe: Recipe) -> Path:
    """Return the run's folder: the recipe's own, or runs/NAME."""
    return Path(recipe.output.dir or f"runs/{recipe.name}")


def prepare_folder(folder: Path) -> None:
    """Make the output folder and prove that it can be written.

    Raises:
        UsageError: It cannot be made or written.
    """
    probe = folder / f".write-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UsageError(
            f"the output folder {folder} cannot be written: {reason}", "Give another: `output.dir`."
        ) from None


def _holder(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _alive(holder: dict[str, Any]) -> bool:
    if holder.get("host") != socket.gethostname():
        return bool(holder)
    try:
        os.kill(int(holder["pid"]), 0)
    except (ProcessLookupError, KeyError, ValueError, OSError):
        return False
    return True


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold the folder's lock for the length of the block; a lock whose holder is gone is taken over.

    Raises:
        BusyError: Another process holds it; the message names its pid and host.
    """
    path = folder / ".lock"
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        holder = _holder(os.read(handle, 4096).decode("utf-8", "replace"))
        if fcntl is not None:
            try:  # a record lock: unlike flock's, it does not live on in the data loader's forked workers
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                busy = False
            except OSError:
                busy = True
        else:
            busy = _alive(holder)
        if busy:
            raise BusyError(
                f"{folder} is in use by process {holder.get('pid', '?')} on {holder.get('host', '?')}",
                "Wait for it, or give another folder: `output.dir`.",
            )
        os.lseek(handle, 0, os.SEEK_SET)
        os.ftruncate(handle, 0)
        os.write(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        yield
        with contextlib.suppress(OSError):
            os.ftruncate(handle, 0)
    finally:
        os.close(handle)
