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
    "Step": "diffkit.types",
    "cfg": "diffkit.engine.guidance",
    "denoise": "diffkit.engine.sampling",
    "load": "diffkit.models",
    "load_recipe": "diffkit.recipes.reading",
    "train": "diffkit.training",
}

__all__ = ["__version__", *sorted(_EXPORTS)]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'diffkit' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
