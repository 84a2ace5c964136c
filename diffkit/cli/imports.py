"""What a command need not wait for: packages that diffusers imports whole and hardly uses, put off.

Of `diffusers.models.transformers` a UNet needs two files and gets forty, of `scipy.stats` a sampler needs one function.
What is in them comes when somebody asks for it, which spares a short command about a second of six. Only the command
line does this; who imports diffkit gets diffusers as it is.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

PACKAGES = ("diffusers.models.transformers", "diffusers.hooks", "scipy.stats")


def put_off() -> None:
    """Have `PACKAGES` executed when they are asked for a name, from here on; what is imported already stays."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Package(ModuleType):
    """A package whose own code runs when a name is asked for that is not there; its files import as ever."""

    def __getattr__(self, name: str) -> Any:
        run = self.__dict__.pop("_run", None) if name == "__all__" or not name.startswith("__") else None
        if run is None:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        run(self)
        return getattr(self, name)


class _Loader(importlib.abc.Loader):
    """A package's own loader, whose work is put off."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Package(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["_run"] = self._inner.exec_module

    def __getattr__(self, name: str) -> Any:  # `get_source` and the like, for tracebacks
        return getattr(self._inner, name)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        spec = importlib.machinery.PathFinder.find_spec(name, path) if name in PACKAGES else None
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec
