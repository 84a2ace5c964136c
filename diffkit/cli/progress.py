"""A progress bar on stderr for commands that draw; nothing where stderr is no terminal."""

from __future__ import annotations

import sys
from typing import Any

from diffkit.cli.runner import SESSION


class Bar:
    """Context: `advance` it once per step.

    Args:
        title: What is going on.
        total: How many steps there will be.
    """

    def __init__(self, title: str, total: int) -> None:
        self.title, self.total = title, total
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Bar:
        if sys.stderr.isatty() and not (SESSION.quiet or SESSION.as_json):
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total)
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, *_: object) -> None:
        """One step is done."""
        if self._bar is not None:
            self._bar.advance(self._task)
