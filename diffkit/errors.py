"""The errors a user can meet, each with its exit code, and nothing else.

A `DiffkitError` is raised where bad input meets the code; only `diffkit.cli` formats and exits. Its message names the
argument or file, the value got and the values allowed; its hint is the next step.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class DiffkitError(Exception):
    """Base of every error that is reported in one line.

    Args:
        message: What is wrong: the argument or file, the value got, the values allowed.
        hint: The next step, as an imperative sentence; printed on its own line.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(DiffkitError):
    """A wrong argument, option, recipe or output folder (exit code 2)."""

    exit_code = 2


class DataError(DiffkitError):
    """Input data that is missing, broken or unusable (exit code 3)."""

    exit_code = 3


class ModelError(DiffkitError):
    """A model, checkpoint or network that cannot be used (exit code 4)."""

    exit_code = 4


class ResourceError(DiffkitError):
    """The disk is full or the memory is not enough (exit code 5)."""

    exit_code = 5


class NumericalError(DiffkitError):
    """The arithmetic broke down: NaN or infinity that does not go away (exit code 6)."""

    exit_code = 6


class BusyError(DiffkitError):
    """Another run holds the output folder (exit code 7)."""

    exit_code = 7


class Terminated(DiffkitError):
    """The process was asked to stop and did so in order (exit code 143 for SIGTERM, 130 for Ctrl-C)."""

    def __init__(self, message: str, exit_code: int, hint: str = "") -> None:
        super().__init__(message, hint)
        self.exit_code = exit_code


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return a hint that names the nearest of `choices`, or lists them (the first 40) when none is near."""
    choices = sorted(choices)
    near = get_close_matches(name, choices, n=1, cutoff=0.6)
    if near:
        return f"Did you mean {near[0]!r}?"
    more = f", ... ({len(choices)} in all)" if len(choices) > 40 else ""
    return f"Choose one of: {', '.join(choices[:40])}{more}."
