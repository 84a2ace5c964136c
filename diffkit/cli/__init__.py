"""The command line: one file per command or group, and picture commands made from their jobs' fields.

The only room that prints and exits. These modules import typer and the standard library at module level, so that
`diffkit --help` answers at once; a command's body imports what it runs.
"""

from diffkit.cli.app import main, make_app

__all__ = ["main", "make_app"]
