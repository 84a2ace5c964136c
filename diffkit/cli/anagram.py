"""`diffkit anagram`: a picture that changes its meaning with the view."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from diffkit.cli import illusions
from diffkit.cli.pictures import Plan, picture_command

P1 = Annotated[str | None, typer.Option("--p1", help="What the picture shows as it is.")]
P2 = Annotated[str | None, typer.Option("--p2", help="What it shows in the view.")]
C1 = Annotated[str | None, typer.Option("--c1", help="Of models with classes: as it is.")]
C2 = Annotated[str | None, typer.Option("--c2", help="Of models with classes: in the view.")]
Weights = Annotated[
    list[float] | None, typer.Option("--weight", help="How much a view counts; once per view, in order.")
]
Reduce = Annotated[
    Literal["mean", "alternate"], typer.Option("--reduce", help="Average the views, or take turns step by step.")
]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    picture_command(app, "anagram", illusions.HUB, without=illusions.WITHOUT)(anagram)


def anagram(
    p1: P1 = None,
    p2: P2 = None,
    c1: C1 = None,
    c2: C2 = None,
    prompts: illusions.Prompts = None,
    classes: illusions.Classes = None,
    views: illusions.Views = None,
    weights: Weights = None,
    reduce: Reduce = "mean",
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
    """Draw a picture that shows --p1 as it is and --p2 in the --view (flipped when left out); 30 steps.

    Guidance is 10 when left out; 4 for classes and for models that diffkit trained on captions.

    Any number of views: repeat --prompt and --view in pairs. Models with classes take --c1 and --c2, or --class.
    """
    from diffkit.errors import UsageError
    from diffkit.jobs.anagram import make_anagram

    words, by_class = illusions.said(((p1, p2), (c1, c2)), prompts, classes)
    if words[:1] == [None]:
        first, second = ("--c1", "--c2") if by_class else ("--p1", "--p2")
        raise UsageError(f"{second} without {first}", f"Give both; {first} alone is shown in every view.")
    shown = [word for word in words if word is not None]
    weigh = weights or []
    if len(weigh) == 1:
        raise UsageError(f"--weight {weigh[0]:g} alone weighs nothing", "Give one per view.")
    illusion = make_anagram(
        shown, views or [], weights=tuple(weigh) or None, reduce=reduce, style=style or "", latent=latent
    )
    return illusions.plan(
        illusion, classes=by_class, best_of=best_of, scorer=scorer, animate=animate,
        upper=illusions.Upper(model_2, model_3, size, noise_2, noise_3, steps_3, mode_3),
    )  # fmt: skip
