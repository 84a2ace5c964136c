"""Rows by name: the one way in which views, filters, losses, schedules, objectives and datasets are registered.

A row is a frozen dataclass; its fields, in order, are its command-line arguments: `offset_cosine:0.95,0.02`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any, Generic, TypeVar, get_type_hints

from diffkit.errors import UsageError, did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """Named rows of one kind.

    Args:
        kind: What a row is called in an error message ("schedule", "view").
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._rows: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[type[Any]], type[Any]]:
        """Class decorator: add a frozen dataclass under `name`, which it also gets as its class attribute `name`."""

        def add(row: type[Any]) -> type[Any]:
            if name in self._rows:
                raise ValueError(f"two rows named {name!r} among the {self.kind}s")
            self._rows[name] = row
            row.name = name
            return row

        return add

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __getitem__(self, name: str) -> type[T]:
        """Return the row's class.

        Raises:
            UsageError: No row has that name; the hint names the nearest.
        """
        if name not in self._rows:
            raise UsageError(f"unknown {self.kind} {name!r}", did_you_mean(name, self._rows))
        return self._rows[name]

    def parse(self, spec: str) -> T:
        """Make a row from `name` or `name:arg1,arg2`, the arguments in the order of the dataclass's fields.

        Raises:
            UsageError: Unknown name, too many arguments, or an argument of the wrong type.
        """
        name, _, rest = spec.partition(":")
        row = self[name.strip()]
        values = [v.strip() for v in rest.split(",")] if rest else []
        params = [f for f in fields(row) if f.init]  # type: ignore[arg-type]
        if len(values) > len(params):
            raise UsageError(f"{self.kind} {spec!r} has {len(values)} arguments; {name!r} takes {len(params)}")
        hints = get_type_hints(row)
        args: dict[str, Any] = {}
        for param, text in zip(params, values, strict=False):
            kind = hints[param.name]
            try:
                args[param.name] = kind(text)
            except (TypeError, ValueError):
                raise UsageError(f"{self.kind} {spec!r}: {param.name} is {text!r}, not a {kind.__name__}") from None
        return row(**args)


def spell(row: Any) -> str:
    """Return what `Registry.parse` makes this row from, with every argument: `skew:1.5`, `patch_permute:8,0`."""
    values = [getattr(row, f.name) for f in fields(row) if f.init]
    words = [f"{v:g}" if isinstance(v, float) and float(f"{v:g}") == v else str(v) for v in values]
    return f"{row.name}:{','.join(words)}" if words else str(row.name)
