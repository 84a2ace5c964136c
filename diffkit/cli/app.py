"""The command line as a whole: which commands there are, and the way from arguments to an exit code.

Only the command that is asked for is imported: of the others the help has a line, read from their files as text.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from pkgutil import iter_modules
from typing import NoReturn

import typer

from diffkit.cli import runner
from diffkit.errors import UsageError
from diffkit.jobs import summaries


def _version(value: bool) -> None:
    if value:
        from diffkit import __version__

        typer.echo(f"diffkit {__version__}")
        raise typer.Exit()


def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    pass


def make_app(wanted: Sequence[str] | None = None) -> typer.Typer:
    """Make the application.

    Args:
        wanted: The picture commands that are complete; of the others there is a line of the help. All are complete
            when left out.
    """
    app = typer.Typer(
        name="diffkit",
        help="Train, fine-tune and play with diffusion models.",
        no_args_is_help=True,
        add_completion=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    folder = str(Path(__file__).parent)
    jobs = dict(summaries())
    others = {module.name: module.name for module in iter_modules([folder])}
    for name in sorted({*jobs, *others}):
        if name not in jobs:
            register = getattr(import_module(f"diffkit.cli.{name}"), "register", None)
            if register is not None:  # runner, options and other helpers have none
                register(app)
        elif wanted is None or name in wanted:
            from diffkit.cli.pictures import register_job

            register_job(app, name)
        else:
            app.command(name, help=jobs[name])(_nothing)
    return app


def _nothing() -> None:
    """Stands in the help for a command that was not asked for."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with the code of `diffkit.errors`.

    Args:
        argv: The arguments after the program's name; those of the process when left out.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    # Errors of the parsing itself come before a command has set these.
    options = args[: args.index("--")] if "--" in args else args
    runner.SESSION.as_json, runner.SESSION.debug = "--json" in options, "--debug" in options
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a file name need not be text in the terminal's encoding
            stream.reconfigure(errors="backslashreplace")
    completing = "_DIFFKIT_COMPLETE" in os.environ
    try:
        app = make_app(None if completing else [word for word in args if word in summaries()])
        code = app(args=args, prog_name="diffkit", standalone_mode=False)
    except (Exception, KeyboardInterrupt) as error:
        sys.exit(_failed(error))
    sys.exit(code if isinstance(code, int) else 0)


def _failed(error: BaseException) -> int:
    format_message = getattr(error, "format_message", None)
    if format_message is None:
        return runner.report(error)
    # typer's own errors about the arguments; its classes are private, so they are known by what they can do
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError" and not runner.SESSION.as_json:
        error.show()  # type: ignore[attr-defined]
        return UsageError.exit_code
    path = context.command_path if context is not None else "diffkit"
    message = " ".join(format_message().split())
    if wrong := re.fullmatch(r"Invalid value for '(.+?)': (.+?)\.?", message):  # typer's words, and in them pydantic's
        from diffkit.jobs.fields import plain_words

        name = wrong[1].replace("' / '", " / ")
        message = f"{name}: {plain_words(wrong[2])}"
    return runner.report(UsageError(message, f"`{path} --help` shows what there is."))
