from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


def commands() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every registered command: its words and its typer object."""
    import typer

    from diffkit.cli import make_app

    def walk(group: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from walk(command, (*path, name))
            else:
                yield (*path, name), command

    return walk(typer.main.get_command(make_app()), ())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `words` and `registered` runs once for every command there is."""
    if "words" in metafunc.fixturenames:
        found = sorted(commands(), key=lambda pair: pair[0])
        metafunc.parametrize(("words", "registered"), found, ids=[" ".join(words) for words, _ in found])
