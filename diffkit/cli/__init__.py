"""The command line: one file per command or group; the only room that prints and exits.

These modules import typer and the standard library at module level, so that `diffkit --help` answers at once; a
command's body imports the task it runs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper
from pkgutil import iter_modules
from typing import NoReturn

import typer

from diffkit.cli import runner
from diffkit.errors import UsageError

app = typer.Typer(
    name="diffkit",
    help="Train, fine-tune and play with diffusion models.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        from diffkit import __version__

        typer.echo(f"diffkit {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    pass


for _module in iter_modules(__path__):
    _register = getattr(import_module(f"diffkit.cli.{_module.name}"), "register", None)
    if _register is not None:  # runner, options and other helpers have none
        _register(app)


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
    try:
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
    return runner.report(UsageError(" ".join(format_message().split()), f"`{path} --help` shows what there is."))
