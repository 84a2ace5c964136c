"""Picture commands: one file each, and the way from a command to files.

A file whose first line says "`diffkit NAME`: ..." holds the job of that command. The names and their sentences are read
from the files as text, so that they can be listed without importing any of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffkit.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from PIL import Image

    from diffkit.jobs.base import Job

# The Python name of a job where its own is taken: `diffkit.denoise` is the loop.
FUNCTIONS = {"denoise": "compare_denoisers"}


@lru_cache(maxsize=1)
def summaries() -> dict[str, str]:
    """Return every job's name and its sentence, sorted by name."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        with path.open(encoding="utf-8") as file:
            match = re.match(r'"""`diffkit ([\w-]+)`: (.*?)\.?(""")?$', file.readline().rstrip())
        if match:
            found[match[1]] = match[2][0].upper() + match[2][1:] + "."
    return found


def job_class(name: str) -> type[Job]:
    """Return the job of a command.

    Raises:
        UsageError: There is no such command.
    """
    if name not in summaries():
        raise UsageError(f"unknown picture command {name!r}", did_you_mean(name, summaries()))
    module = import_module(f"diffkit.jobs.{name}")
    found: type[Job] = next(v for v in vars(module).values() if isinstance(v, type) and vars(v).get("name") == name)
    return found


def function(name: str) -> Callable[..., list[Image.Image]]:
    """Return the Python function of a job: its fields are the arguments, the command's own first and in their order.

    It returns PIL images; `image.info["diffkit"]` is what a PNG of the command would remember. Nothing is printed, and
    no file is written unless `out` names a folder.
    """
    import inspect

    cls = job_class(name)
    own = cls.own_fields()
    keyword, either = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    first = cls.first_fields()
    parameters = [
        inspect.Parameter(
            key, either if key in first else keyword, default=cls.model_fields[key].default,
            annotation=cls.model_fields[key].annotation,
        )
        for key in own
    ]  # fmt: skip
    parameters += [inspect.Parameter(key, keyword, default=None) for key in (*sorted(cls.offers), "watch")]

    def call(*args: Any, **given: Any) -> list[Image.Image]:
        from diffkit.jobs.options import Run
        from diffkit.jobs.run import run

        if len(args) > len(first):
            raise UsageError(f"{call.__name__} takes {len(first)} positional arguments, got {len(args)}")
        values = {**dict(zip(first, args, strict=False)), **given}
        watch = values.pop("watch", None)
        options = {key: values.pop(key) for key in cls.offers if key in values}
        if isinstance(options.get("sweep"), (str, list)):
            options["sweep"] = tuple([options["sweep"]] if isinstance(options["sweep"], str) else options["sweep"])
        return run(cls, values, Run(**options, files="out" in options), watch=watch).pictures

    call.__name__ = call.__qualname__ = FUNCTIONS.get(name, name)
    call.__doc__ = f"{cls.__doc__}\n\nReturns PIL images; `info['diffkit']` of each is its metadata."
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return call
