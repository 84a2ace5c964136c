"""The command line of a job: what somebody types to have it drawn, alone."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffkit.jobs.base import Job
from diffkit.jobs.fields import MEMORY, Option

PROGRAM = "diffkit"


def command_line(job: Job, *, sweep: Sequence[str] = (), gif: bool = False) -> str:
    """Return the command that does a job: parsed again, it gives the same one.

    Args:
        job: Its fields that were given are written; what was left out stays so.
        sweep: The combinations to try.
        gif: Whether an animation is asked for.
    """
    arguments: list[str] = []
    options: list[str] = []
    given = job.given()
    for name in type(job).own_fields():
        if given.get(name) is None or given[name] is False or given[name] == ():
            continue
        option = next((m for m in type(job).model_fields[name].metadata if isinstance(m, Option)), Option())
        if option.argument:
            arguments.append(_argument(given[name]))
        else:
            flag = (option.names or (name.replace("_", "-"),))[0].partition("/")[0]
            options += option_words(flag, given[name])
    options += option_words("sweep", tuple(sweep))
    options += option_words("gif", True) if gif else []
    return words_line(job.name, *arguments, *options)


def words_line(*words: str) -> str:
    """Return a command of diffkit as it is typed: its name, its arguments and options."""
    return shlex.join([PROGRAM, *words])


def option_words(name: str, value: Any) -> list[str]:
    """Return an option with its value; one that takes several is repeated, a switch has none."""
    flag = "--" + name
    if value is True:
        return [flag]
    if isinstance(value, tuple):
        return [word for one in value for word in (flag, _text(one))]
    return [flag, _text(value)]


def _argument(value: Any) -> str:
    """An argument; a file whose name begins with a dash is no option."""
    text = _text(value)
    return "./" + text if text.startswith("-") else text


def _text(value: Any) -> str:
    if isinstance(value, (str, Path, int)):
        return str(value)
    return repr(value) if isinstance(value, float) else MEMORY  # of a picture in memory nothing can be typed
