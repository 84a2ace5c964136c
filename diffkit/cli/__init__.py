"""The command line: one file per command or group; the only room that prints and exits.

These modules import typer and the standard library at module level, so that `diffkit --help` answers at once; a
command's body imports the task it runs.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pkgutil import iter_modules

import typer

from diffkit.cli import runner

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


_HELPERS = {"runner", "options"}
for _module in iter_modules(__path__):
    if _module.name not in _HELPERS:
        import_module(f"diffkit.cli.{_module.name}").register(app)


def main() -> None:
    """Run the command line and exit with the code of `diffkit.errors`."""
    runner.SESSION.as_json = "--json" in sys.argv
    runner.SESSION.debug = "--debug" in sys.argv
    try:
        code = app(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except (Exception, KeyboardInterrupt) as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # typer's own usage errors
            if runner.SESSION.as_json:
                from diffkit.errors import UsageError

                sys.exit(runner.report(UsageError(error.format_message(), "See --help.")))  # type: ignore[union-attr]
            error.show()  # type: ignore[union-attr]
            sys.exit(error.exit_code)  # type: ignore[union-attr]
        sys.exit(runner.report(error))
