"""`diffkit schedule`: noise schedules side by side, as a plot and a table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffkit.cli import options
from diffkit.cli.runner import Output, command

if TYPE_CHECKING:
    from diffkit.engine.curves import Curve

Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAME]...", help="Schedules, linear:0.001,0.004 or cosine; all of them when left out."),
]
Model = Annotated[
    str | None, typer.Option("--model", "-m", help="Add a model's own: a Hub id or folder; no weights are read.")
]
Levels = Annotated[int, typer.Option("--timesteps", "-t", min=2, max=100_000, help="T, the number of levels.")]
Points = Annotated[int, typer.Option("--points", min=2, max=100_000, help="Levels in the table, spread evenly.")]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="Folder or FILE.png of the plot; outputs/schedule.png when left out.")
]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    command(app, "schedule")(schedule)


def schedule(
    names: Names = None,
    model: Model = None,
    revision: options.Revision = None,
    timesteps: Levels = 1000,
    points: Points = 9,
    out: Out = None,
) -> Output:
    """Plot noise schedules side by side, and print them: sqrt(abar), sqrt(1 - abar), log SNR and beta over the levels.

    `diffkit schedule linear:0.001,0.004 cosine` is the Hugging Face course's figure; `diffkit schedule --model ID`
    shows what a model was trained with.
    """
    from diffkit.pictures.files import Destination

    path = Destination.of(out, "schedule").named("schedule.png")
    curves = _curves(names or [], model, revision, timesteps)
    from diffkit.pictures.plots import noise_schedules

    noise_schedules(curves, path)
    shown = [curve.at(points) for curve in curves]
    payload = {"schedules": [_facts(curve) for curve in shown], "images": [str(path)]}
    return Output(payload, [line for curve in shown for line in _lines(curve)] + [f"picture  {path}"])


def _curves(names: list[str], model: str | None, revision: str | None, timesteps: int) -> list[Curve]:
    """What was asked for, the model's own first; a model out of reach is said before torch is imported."""
    own = None
    if model is not None:
        from diffkit.models import info, open_repo

        own = info(open_repo(model, revision=revision))
    from diffkit.engine.curves import all_names, curve_of, named_curve

    curves = [named_curve(name, timesteps) for name in names or ([] if own else all_names())]
    if own is None:
        return curves
    about = f"{type(own.scheduler).__name__}, T = {own.timesteps}, as {own.id} was trained."
    return [curve_of(own.scheduler, own.id, about), *curves]


def _facts(curve: Curve) -> dict[str, Any]:
    from diffkit.engine.curves import finite

    parts = {"signal": curve.signal, "noise": curve.noise, "log_snr": curve.log_snr, "beta": curve.beta}
    numbers = {key: finite(values) if values else None for key, values in parts.items()}
    return {"name": curve.name, "description": curve.about, "timesteps": list(curve.timesteps), **numbers}


def _lines(curve: Curve) -> list[str]:
    # A flow's signal is the courses' time, 1 - sigma; it has no beta.
    names = ("sqrt(abar)", "sqrt(1-abar)", "beta") if curve.beta else ("time=1-sigma", "noise", "")
    lines = [
        f"{curve.name}   {curve.about}",
        f"{'t':>8}{names[0]:>13}{names[1]:>14}{'log SNR':>10}{names[2]:>11}".rstrip(),
    ]
    beta = curve.beta or (None,) * len(curve.timesteps)
    for t, signal, noise, ratio, b in zip(curve.timesteps, curve.signal, curve.noise, curve.log_snr, beta, strict=True):
        lines.append(f"{t:>8g}{signal:>13.5f}{noise:>14.5f}{ratio:>10.3f}" + (f"{b:>11.3g}" if b is not None else ""))
    return [*lines, ""]
