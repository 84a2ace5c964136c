"""Torch's own files (`.bin`, `.pt`, `.ckpt`), read by its restricted unpickler alone: nothing in them is ever run.

What it refuses stays refused; there is no way round it here. Whether such a file may be read at all is asked before.
"""

from __future__ import annotations

import pickle
import re
import struct
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffkit.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
_UNREADABLE = re.compile(r"WeightsUnpickler error: (.+?)(?: Check the documentation|$)")
_BROKEN = (
    pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError, struct.error,
)  # fmt: skip


def unpickle(path: Path, what: str, hint: str, *, mapped: bool = False) -> Any:
    """Return what one of torch's own files holds: tensors, numbers, texts, and lists and dicts of them.

    Args:
        path: The file.
        what: What it is called in an error.
        hint: What to do where it is refused.
        mapped: Leave the tensors on the disk until they are used, where the file is of torch's newer form.

    Raises:
        ModelError: It holds anything else, which is not executed, or is broken.
    """
    import torch

    on_disk = mapped and zipfile.is_zipfile(path)
    try:
        with warnings.catch_warnings():  # of how it was pickled: what matters is whether it can be read
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, **({"mmap": True} if on_disk else {}))
    except _BROKEN as error:
        reason = _reason(error)
        raise ModelError(f"{what} is refused, it holds more than tensors or is broken: {reason}", hint) from None


def _reason(error: Exception) -> str:
    """Say why a file was refused, without torch's advice to read it by the unpickler that runs what is in it."""
    text = " ".join(str(error).split())
    if found := _GLOBAL.search(text):
        return f"it asks for {found[1]}, which is no part of a tensor and is not run"
    if found := _UNREADABLE.search(text):
        return f"the restricted unpickler does not read it ({found[1].rstrip('.')})"
    if not isinstance(error, RuntimeError) or "weights_only" in text:
        return "it is no whole file of torch's"
    return text.partition(". ")[0]


def read_pickle(path: Path, what: str, hint: str, *, mapped: bool = False) -> dict[str, Tensor]:
    """Return the tensors of one of torch's own files by name.

    Raises:
        ModelError: It holds anything but tensors; see `unpickle`, whose arguments these are.
    """
    import torch

    state = unpickle(path, what, hint, mapped=mapped)
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ModelError(f"{what} is refused, it holds no tensors by name", hint)
    return {str(key): value for key, value in state.items()}
