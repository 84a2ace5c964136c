"""What every command shares: the common options, the one place where results and errors are printed, and the exit.

A command's body takes its own options and returns an `Output`; it never prints. Library code reports through the
`diffkit` logger, which goes to stderr here; results go to stdout, as text or with `--json` as one object.
"""

from __future__ import annotations

import functools
import inspect
import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from diffkit.errors import DiffkitError

LOG = logging.getLogger("diffkit")


@dataclass
class Output:
    """A command's result: `payload` is what `--json` prints, `lines` is what a person reads."""

    payload: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)


@dataclass
class Session:
    """How this invocation talks: set once per process by `command`, read by `run` and `progress`."""

    as_json: bool = False
    quiet: bool = False
    debug: bool = False


SESSION = Session()

_COMMON: dict[str, Any] = {
    "as_json": Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")],
    "quiet": Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notices.")],
    "debug": Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")],
    "offline": Annotated[bool, typer.Option("--offline", help="Never go to the network; use what is cached.")],
}


def command(app: typer.Typer, name: str | None = None, **options: Any) -> Callable[[Callable[..., Output]], Any]:
    """Register a command with the common options; its body returns an `Output`, and errors are raised, not printed."""

    def decorate(body: Callable[..., Output]) -> Callable[..., None]:
        @functools.wraps(body)
        def wrapper(*args: Any, as_json: bool, quiet: bool, debug: bool, offline: bool, **kwargs: Any) -> None:
            begin(as_json=as_json, quiet=quiet, debug=debug, offline=offline)
            show(body(*args, **kwargs))

        signature = inspect.signature(body, eval_str=True)
        extra = [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
            for key, kind in _COMMON.items()
        ]
        params = [*signature.parameters.values(), *extra]
        wrapper.__signature__ = signature.replace(parameters=params, return_annotation=None)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in params}
        app.command(name, **options)(wrapper)
        return body  # type: ignore[return-value]

    return decorate


def begin(*, as_json: bool, quiet: bool, debug: bool, offline: bool) -> None:
    """Set up logging and the environment before any heavy library is imported."""
    SESSION.as_json, SESSION.quiet, SESSION.debug = as_json, quiet, debug
    if offline:  # huggingface_hub and datasets read these when they are imported
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ["HF_DATASETS_OFFLINE"] = "1"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    for handler in list(LOG.handlers):
        LOG.removeHandler(handler)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Redacted("%(message)s"))
    LOG.addHandler(handler)
    LOG.propagate = False
    # Under a launcher every process runs this; the first one speaks for all, warnings excepted.
    follower = os.environ.get("RANK", "0") not in ("", "0")
    LOG.setLevel(logging.WARNING if quiet or follower else logging.DEBUG if debug else logging.INFO)


def show(output: Output) -> None:
    """Print a result on stdout; the processes of a launcher other than the first stay silent."""
    if os.environ.get("RANK", "0") not in ("", "0"):
        return
    if SESSION.as_json:
        print(json.dumps(output.payload, default=str, ensure_ascii=False))
    else:
        for line in output.lines:
            print(line)


def redact(text: str) -> str:
    """Replace every access token found in the environment, and whatever looks like one, by `[token]`."""
    for key, value in os.environ.items():
        if re.search(r"TOKEN|API_KEY|SECRET|PASSWORD", key) and len(value) >= 6:
            text = text.replace(value, "[token]")
    return re.sub(r"\bhf_[A-Za-z0-9]{16,}\b", "[token]", text)


class _Redacted(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def translate(error: BaseException) -> DiffkitError:
    """Turn any exception into the `DiffkitError` that names its exit code."""
    from diffkit.errors import ModelError, ResourceError, Terminated

    if isinstance(error, DiffkitError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return Terminated("stopped by Ctrl-C", 130)
    kind, text = type(error).__name__, str(error).strip() or type(error).__name__
    if "OutOfMemory" in kind or isinstance(error, MemoryError) or "can't allocate memory" in text:
        return ResourceError(f"out of memory: {text.splitlines()[0]}", "Lower the batch size or the resolution.")
    if getattr(error, "errno", None) == 28 or "No space left on device" in text:
        return ResourceError(f"the disk is full: {text.splitlines()[0]}", "Free some space, then run the same command again.")
    if kind in ("LocalEntryNotFoundError", "OfflineModeIsEnabled", "HfHubHTTPError", "GatedRepoError",
                "RepositoryNotFoundError", "RevisionNotFoundError", "EntryNotFoundError"):  # fmt: skip
        return ModelError(text.splitlines()[0], "Check the name and the network, or run `hf download` beforehand.")
    bug = DiffkitError(f"{kind}: {text.splitlines()[0]}", "This is a bug in diffkit; run again with --debug and report it.")
    bug.exit_code = 1
    return bug


def report(error: BaseException) -> int:
    """Print an error in one line (and its hint) on stderr, or as JSON on stdout; return its exit code."""
    if SESSION.debug:
        sys.stderr.write(redact("".join(traceback.format_exception(error))))
    known = translate(error)
    message, hint = redact(known.message), redact(known.hint)
    if SESSION.as_json:
        print(json.dumps({"error": {"code": known.exit_code, "message": message, "hint": hint}}, ensure_ascii=False))
    else:
        sys.stderr.write(f"error: {message}\n" + (f"  {hint}\n" if hint else ""))
    return known.exit_code
