"""diffkit: train, fine-tune and play with diffusion models.

Importing this package imports no torch: the public names below are loaded when they are first used (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "Cond": "diffkit.types",
    "DiffkitError": "diffkit.errors",
    "Prediction": "diffkit.types",
    "Recipe": "diffkit.recipes.reading",
    "Settings": "diffkit.engine.settings",
    "Step": "diffkit.types",
    "cfg": "diffkit.engine.guidance",
    "denoise": "diffkit.engine.sampling",
    "evaluate": "diffkit.jobs.evaluate",
    "from_tensor": "diffkit.pictures.tensors",
    "generators": "diffkit.engine.sampling",
    "load": "diffkit.models",
    "load_recipe": "diffkit.recipes.reading",
    "multiview": "diffkit.engine.guidance",
    "parse_view": "diffkit.illusions.views",
    "pure_noise": "diffkit.engine.sampling",
    "scheduler_for": "diffkit.engine.grids",
    "to_tensor": "diffkit.pictures.tensors",
    "train": "diffkit.training",
}

__all__ = ["__version__", *sorted(_EXPORTS)]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    if (command := _jobs().get(name)) is not None:
        from diffkit.jobs import function

        return function(command)
    raise AttributeError(f"module 'diffkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS, *_jobs()})


def _jobs() -> dict[str, str]:
    """Picture commands as functions: the function's name, and the command's."""
    from diffkit.jobs import FUNCTIONS, summaries

    return {FUNCTIONS.get(command, command): command for command in summaries()}
