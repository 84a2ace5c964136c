"""A progress bar on stderr for commands that draw; nothing where stderr is no terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from diffkit.cli.runner import SESSION, settle
from diffkit.jobs.options import Watch

if TYPE_CHECKING:
    from rich.progress import Progress

    from diffkit.types import Model, ModelInfo, Step


def shown_bar(*numbers: str) -> Progress | None:
    """Show a bar with its title, and further columns behind it; None where there is no terminal or nothing is told."""
    if not sys.stderr.isatty() or SESSION.quiet or SESSION.as_json:
        return None
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *map(TextColumn, numbers),
        TimeRemainingColumn(), console=Console(stderr=True),
    )  # fmt: skip
    bar.start()
    return bar


class Bar(Watch):
    """Shows the steps of a run."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None

    def loading(self, info: ModelInfo) -> None:
        """Import the family's libraries, and leave what they made to the garbage collector no more."""
        import diffusers

        getattr(diffusers, info.network.kind, None)
        settle()  # not later: of a text encoder nothing may stay

    def loaded(self, model: Model) -> None:
        """Keep freed memory from here on: that of a text encoder went back to the system."""
        from diffkit.models.devices import keep_memory

        if model.device.type == "cpu":
            keep_memory()

    def begin(self, title: str, steps: int) -> None:
        """Show a bar of so many steps."""
        self._bar = shown_bar()
        if self._bar is not None:
            self._task = self._bar.add_task(title, total=steps)

    def step(self, step: Step, positions: range) -> None:
        """One step is done."""
        if self._bar is not None:
            self._bar.advance(self._task)

    def end(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
