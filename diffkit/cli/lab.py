"""`diffkit lab`: every exercise of a course, made, measured and pictured, as one HTML report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diffkit.cli import options
from diffkit.cli.runner import Output, command

Course = Annotated[str, typer.Argument(metavar="COURSE", help="cs180, hf-course or keras-ddim.")]
Year = Annotated[int | None, typer.Option("--year", help="Of cs180: 2024, 2025 or 2026.")]
Images = Annotated[
    list[Path] | None,
    typer.Option("--image", help="A picture of your own, the photo first; may be repeated. Drawings when left out."),
]
Prompts = Annotated[
    list[str] | None,
    typer.Option("--prompts", "--prompt", "-p", help="What to draw: a prompt, or a class; two or more, repeated."),
]
Data = Annotated[
    str | None, typer.Option("--data", help="What part B trains on; MNIST, or the embedded digits, when left out.")
]
Full = Annotated[
    bool, typer.Option("--full/--quick", help="The course's numbers (a GPU), or reduced trainings (a laptop).")
]
Only = Annotated[list[str] | None, typer.Option("--only", metavar="SECTION", help="This section; may be repeated.")]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="FILE.html or a folder; outputs/lab-COURSE.html when left out.")
]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    command(app, "lab")(lab)


def lab(
    course: Course,
    year: Year = None,
    model: options.Model = None,
    image: Images = None,
    prompts: Prompts = None,
    data: Data = None,
    full: Full = False,
    only: Only = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    allow_pickle: options.AllowPickle = False,
    out: Out = None,
) -> Output:
    """Make a whole course's report: every exercise with its formula, its pictures, its numbers and its commands.

    Interrupted, the same command goes on where it stopped. A section that the model cannot do says why.
    """
    from diffkit.cli.progress import Bar
    from diffkit.lab import sections
    from diffkit.lab.pieces import Bench
    from diffkit.lab.run import chosen, report
    from diffkit.lab.setup import Asked, set_up

    asked = Asked(
        course=course, year=year, model=model, images=tuple(image or ()), prompts=tuple(prompts or ()), data=data,
        full=full, only=tuple(only or ()), seed=seed, out=out,
    )  # fmt: skip
    wanted = chosen(sections(course, year), asked.only)
    if device != "auto":
        from diffkit.models.devices import pick_device

        pick_device(device)
    shared, file = set_up(asked)
    done, code = report(shared, wanted, file, Bench(device=device, allow_pickle=allow_pickle, watch=Bar))
    return Output(done.payload, done.lines, code)
