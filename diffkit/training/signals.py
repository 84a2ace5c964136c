"""Ending in order: the first SIGTERM or Ctrl-C ends the step and saves a checkpoint, a second Ctrl-C leaves at once.

Before the first step there is nothing to save, and the first signal leaves at once.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from diffkit.errors import Terminated


class Stop:
    """Context manager that catches SIGTERM and SIGINT.

    Attributes:
        code: The exit code asked for, or 0.
        training: Set when the first step begins; until then a signal raises `Terminated`.
    """

    def __init__(self) -> None:
        self.code = 0
        self.training = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._catch)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if not self.training:
            name = signal.Signals(number).name
            raise Terminated(f"stopped by {name} before the first step", 128 + number, "Run the same command again.")
        if number == signal.SIGINT and self.code:
            raise KeyboardInterrupt
        self.code = 128 + number
