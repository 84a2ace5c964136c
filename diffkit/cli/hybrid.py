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
    str | None,
    typer.Option(
        "--split",
        help="How the picture is split: low_high:2 (left out, but for the small model inside the package), triple:1,2,"
        " grey_colour, ...",
    ),
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
    split: Split = None,
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
    noise_2: illusions.NoiseSecond = None,
    noise_3: illusions.NoiseThird = 0,
    steps_3: illusions.StepsThird = None,
    mode_3: illusions.ModeThird = "multiview",
    animate: illusions.Animate = None,
) -> Plan:
    """Draw a picture that shows --p1 from afar and --p2 from near, or by another --split; 30 steps.

    Guidance is 10 when left out; 4 for classes and for models that diffkit trained on captions, 8 for the small model.

    More than two parts: repeat --prompt. With --reference one part is taken from a photo and has no prompt.
    """
    from diffkit.errors import UsageError
    from diffkit.jobs.hybrid import USUAL_SPLIT, make_hybrid, read_reference

    words, by_class = illusions.said(((p1, p2), (c1, c2)), prompts, classes)
    if reference is None and fixed:
        raise UsageError(f"--fixed {fixed}: there is no --reference that the part could be taken from")
    illusion = make_hybrid(
        words, split or USUAL_SPLIT, views or [], reference=None if reference is None else read_reference(reference),
        fixed=fixed, style=style or "", latent=latent,
    )  # fmt: skip
    return illusions.plan(
        illusion, classes=by_class, best_of=best_of, scorer=scorer, animate=animate,
        upper=illusions.Upper(model_2, model_3, size, noise_2, noise_3, steps_3, mode_3),
        inputs={"reference": reference}, free=split is None,
    )  # fmt: skip
