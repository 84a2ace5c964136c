"""Training: the loop as a generator (`train`), whole runs (`fit`), and what they need.

This room holds no network definitions (`diffkit.models`), no datasets (`diffkit.data`), and prints nothing. Its names
are loaded when they are first used, so that checkpoints can be read without the network's libraries.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffkit.training.lock import run_folder
    from diffkit.training.loop import Plan, TrainState, TrainStep, train
    from diffkit.training.run import Progress, fit

__all__ = ["Plan", "Progress", "TrainState", "TrainStep", "fit", "run_folder", "train"]
_HOMES = dict.fromkeys(__all__, "loop") | {"Progress": "run", "fit": "run", "run_folder": "lock"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'diffkit.training' has no attribute {name!r}")
    return getattr(import_module(f"diffkit.training.{_HOMES[name]}"), name)
