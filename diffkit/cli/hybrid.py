"""`diffkit hybrid`: a picture that shows one thing from afar and another from near."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diffkit.cli import illusions
from diffkit.cli.pictures import Plan, picture_command

P1 = Annotated[str | None, typer.Option("--p1", help="What the first part shows: from afar (low), in grey, ...")]
P2 = Annotated[str | None, typer.Option("--p2", help="What the second part shows: from near (high), in colour, ...")]
C1 = Annotated[str | None, typer.Option("--c1", help="Of models with classes: the first part.")]
C2 = Annotated[str | None, typer.Option("--c2", help="Of models with classes: the second part.")]
Split = Annotated[
    str, typer.Option("--split", help="How the picture is split: low_high:2, triple:1,2, grey_colour, ...")
]
Reference = Annotated[
    Path | None, typer.Option("--reference", help="A photo that one part is taken from; that part has no prompt.")
]
Fixed = Annotated[int, typer.Option("--fixed", min=0, help="Which part the reference gives: 0 is the first.")]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    picture_command(app, "hybrid", illusions.HUB, without=illusions.WITHOUT)(hybrid)


def hybrid(
    p1: P1 = None,
    p2: P2 = None,
    c1: C1 = None,
    c2: C2 = None,
    prompts: illusions.Prompts = None,
    classes: illusions.Classes = None,
    split: Split = "low_high:2",
    views: illusions.Views = None,
    reference: Reference = None,
    fixed: Fixed = 0,
    style: illusions.Style = None,
    latent: illusions.Latent = "auto",
    best_of: illusions.BestOf = None,
    scorer: illusions.Scorer = None,
    model_2: illusions.Second = None,
    model_3: illusions.Third = None,
    size: illusions.Size = None,
    animate: illusions.Animate = None,
) -> Plan:
    """Draw a picture that shows --p1 from afar and --p2 from near, or by another --split; 30 steps, guidance 10.

    More than two parts: repeat --prompt. With --reference one part is taken from a photo and has no prompt.
    """
    from diffkit.errors import UsageError
    from diffkit.tasks.hybrid import make_hybrid, read_reference

    words, by_class = illusions.said(((p1, p2), (c1, c2)), prompts, classes)
    if reference is None and fixed:
        raise UsageError(f"--fixed {fixed}: there is no --reference that the part could be taken from")
    illusion = make_hybrid(
        words, split, views or [], reference=None if reference is None else read_reference(reference),
        fixed=fixed, style=style or "", latent=latent,
    )  # fmt: skip
    return illusions.plan(
        illusion, classes=by_class, best_of=best_of, scorer=scorer, model_2=model_2, model_3=model_3, size=size,
        animate=animate, inputs={"reference": reference},
    )  # fmt: skip
