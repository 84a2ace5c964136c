"""`diffkit replay`: a picture again, from what its file remembers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diffkit.cli import options
from diffkit.cli.runner import Output, command

Picture = Annotated[Path, typer.Argument(metavar="PICTURE", help="A PNG written by diffkit.")]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="FILE.png or a folder; PICTURE-replay.png when left out.")
]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    command(app, "replay")(replay)


def replay(picture: Picture, device: options.Device = "auto", out: Out = None) -> Output:
    """Draw a picture again from the recipe in its file, and say whether it is the same, bit for bit.

    On the same platform, device and versions it is; the model and the images that went in have to be where they were.
    """
    from diffkit.cli.progress import Bar
    from diffkit.jobs import replay as jobs

    done = jobs.replay(picture, device=device, out=out, watch=Bar())
    return Output(done.payload, done.lines)
