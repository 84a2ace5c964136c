"""What every command shares: the common options, the one place where results and errors are printed, and the exit.

A command's body takes its own options and returns an `Output`; it never prints. Library code reports through the
`diffkit` logger, which goes to stderr here; results go to stdout, as text or with `--json` as one object.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import inspect
import json
import logging
import math
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from diffkit.cli.foreign import translate

LOG = logging.getLogger("diffkit")


@dataclass
class Output:
    """A command's result: `payload` is what `--json` prints, `lines` what a person reads, `code` the exit code."""

    payload: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    code: int = 0


@dataclass
class Session:
    """How this invocation talks: set once per process by `command`, read by `run` and `progress`."""

    as_json: bool = False
    quiet: bool = False
    debug: bool = False


SESSION = Session()

_COLLECTING = gc.get_threshold()
_SELDOM = (100_000, 50, 100)

COMMON: dict[str, Any] = {
    "as_json": Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")],
    "quiet": Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notices.")],
    "debug": Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")],
    "offline": Annotated[bool, typer.Option("--offline", help="Never go to the network; use what is cached.")],
}


@contextlib.contextmanager
def session(*, as_json: bool, quiet: bool, debug: bool, offline: bool) -> Iterator[Callable[[Output], None]]:
    """Context: one command's work; it is given what shows the result at the end."""
    begin(as_json=as_json, quiet=quiet, debug=debug, offline=offline)
    shown: list[Output] = []
    # Libraries that print must not spoil the one object on stdout.
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        try:
            yield shown.append
        except KeyboardInterrupt as error:  # typer would leave without a word
            raise translate(error) from error
    for output in shown:
        show(output)
        if output.code:  # a result that could be shown, and is bad news
            raise typer.Exit(output.code)


def command(
    app: typer.Typer, name: str, shared: Mapping[str, tuple[Any, Any]] | None = None
) -> Callable[[Callable[..., Output]], Any]:
    """Register a command with the common options; its body returns an `Output`, and errors are raised, not printed.

    Args:
        app: What it is added to.
        name: Its name.
        shared: Further options, those that it has in common with other commands: by name the annotation and the
            default. The body takes them by its last parameter, `**fields`.
    """

    def decorate(body: Callable[..., Output]) -> Callable[..., Output]:
        @functools.wraps(body)
        def wrapper(*args: Any, as_json: bool, quiet: bool, debug: bool, offline: bool, **kwargs: Any) -> None:
            with session(as_json=as_json, quiet=quiet, debug=debug, offline=offline) as done:
                done(body(*args, **kwargs))

        own = [p for p in inspect.signature(body, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]
        more = {**(shared or {}), **{key: (kind, False) for key, kind in COMMON.items()}}
        params = own + [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
            for key, (kind, default) in more.items()
        ]
        wrapper.__signature__ = inspect.Signature(params)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in params}
        app.command(name)(wrapper)
        return body

    return decorate


def begin(*, as_json: bool, quiet: bool, debug: bool, offline: bool) -> None:
    """Set up logging and the environment before any heavy library is imported."""
    SESSION.as_json, SESSION.quiet, SESSION.debug = as_json, quiet, debug
    # Some hundred thousand objects are about to be imported, and all of them stay: looking for garbage among them takes
    # a third of the time.
    gc.set_threshold(*_SELDOM)
    if offline:  # huggingface_hub and datasets read these when they are imported
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ["HF_DATASETS_OFFLINE"] = "1"
    # transformers asks for progress bars at import, and the Hub's library then says that they are off.
    warnings.filterwarnings("ignore", message="Cannot enable progress bars")
    # Threads that wait for one another by spinning burn a core that others want: with two of them on two busy cores
    # a picture took ten times as long. Those that sleep at once cost a third more on idle cores; about 10 microseconds
    # of spinning, GNU's measure, are nearly as good as sleep on busy cores. OpenMP reads this when torch is imported.
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    if quiet or not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if quiet:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    for old in list(LOG.handlers):
        LOG.removeHandler(old)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Redacted("%(message)s"))
    LOG.addHandler(handler)
    LOG.propagate = False
    # Under a launcher every process runs this; the first one speaks for all, warnings excepted.
    LOG.setLevel(logging.WARNING if quiet or _follower() else logging.DEBUG if debug else logging.INFO)


def settle() -> None:
    """Say that the libraries are imported: what is there now stays, and the garbage collector leaves it alone for good.

    Called before weights are read, or what is dropped of them would stay too. Leaving the program no longer searches
    the libraries either, which took a second; where a command does not call this, it only collects less often.
    """
    gc.freeze()
    gc.set_threshold(*_COLLECTING)


def show(output: Output) -> None:
    """Print a result on stdout; the processes of a launcher other than the first stay silent."""
    if _follower():
        return
    if SESSION.as_json:
        lines = [json.dumps(_finite(output.payload), default=str, ensure_ascii=False)]
    else:
        lines = output.lines
    try:
        for line in lines:
            sys.stdout.write(redact(line) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough; the interpreter's last flush must not complain either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _follower() -> bool:
    return os.environ.get("RANK", "0") not in ("", "0")


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null stands for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


# Fields whose option has another name than theirs, and arguments.
_FLAGS = {
    "output.dir": "--out", "dataset.name": "--dataset", "dataset.resolution": "--resolution",
    "dataset.channels": "--channels",
    "label": "--class", "classes": "--class", "weights": "--weight", "views": "--view", "prompts": "--prompt",
    "image": "IMAGE", "mask": "MASK", "n": "-n", "methods": "--method", "source": "SOURCE", "target": "OUT",
    "guides": "--guide",
}  # fmt: skip


def flags(text: str) -> str:
    """Name options as the command line does: below it, messages name arguments in backquotes, `max_batch`.

    A recipe's field is named with its section and may have a value, `dataset.on_error=skip`.
    """

    def option(match: re.Match[str]) -> str:
        field, value = match["field"], match["value"]
        flag = _FLAGS.get(field) or ("" if value else "--" + field.rpartition(".")[2].replace("_", "-"))
        if not flag:
            return f"--set {field}={value}"
        return f"{flag} {value}" if value else flag

    sections = r"(?:dataset|model|noise|training|output)\."
    text = re.sub(rf"`(?P<field>{sections}[a-z_]+)=(?P<value>[^`]+)`", option, text)
    return re.sub(rf"`(?P<field>(?:{sections})?[a-z][a-z0-9_]*)(?P<value>)`", option, text)


def redact(text: str) -> str:
    """Replace every secret found in the environment, and whatever looks like one, by `[token]`."""
    for key, value in os.environ.items():
        if len(value) >= 6 and re.search(r"(TOKENS?|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", key.upper()):
            text = text.replace(value, "[token]")
    text = re.sub(r"\bhf_[A-Za-z0-9]{16,}", "[token]", text)
    text = re.sub(r"(?i)\b(bearer\s+)[\w.~+/-]{8,}=*", r"\1[token]", text)
    return re.sub(r"(://)[^/\s:@]+:[^/\s@]+@", r"\1[token]@", text)


class _Redacted(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact(flags(super().format(record)))


def report(error: BaseException) -> int:
    """Print an error in one line (and its hint) on stderr, or as JSON on stdout; return its exit code."""
    if SESSION.debug:
        sys.stderr.write(redact("".join(traceback.format_exception(error))))
    known = translate(error)
    message, hint = known.message, known.hint
    if known is error:  # our own words; another library's may quote its own arguments
        message, hint = flags(message), flags(hint)
    message, hint = redact(message), redact(hint)
    if SESSION.as_json and not _follower():
        error_object = {"error": {"code": known.exit_code, "message": message, "hint": hint}}
        sys.stdout.write(json.dumps(error_object, ensure_ascii=False) + "\n")
    else:
        sys.stderr.write(f"error: {message}\n" + (f"  {hint}\n" if hint else ""))
    return known.exit_code
