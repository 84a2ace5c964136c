"""`diffkit data check / preview`: what training would read, and what is broken in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from diffkit.cli import options
from diffkit.cli.runner import Output, command
from diffkit.errors import UsageError

if TYPE_CHECKING:
    from diffkit.data.check import Report
    from diffkit.recipes.schema import DatasetSpec

PathOrName = Annotated[
    str, typer.Argument(metavar="PATH", help="An image folder, a parquet folder, a registered name or a Hub id.")
]
# How a dataset is read: options that are fields of a recipe's section `dataset`, and their defaults.
READING: dict[str, tuple[Any, Any]] = {
    "split": (Annotated[str, typer.Option(help="The split to read.")], "train"),
    "config": (Annotated[str | None, typer.Option(help="The Hub dataset's configuration (subset).")], None),
    "resolution": (Annotated[int, typer.Option(min=1, help="Height and width of the training images.")], 64),
    "channels": (
        Annotated[int | None, typer.Option(min=1, max=3, help="1 grey, 3 RGB; inferred when left out.")], None
    ),
    "image_column": (Annotated[str | None, typer.Option(help="The column with the images.")], None),
    "class_column": (Annotated[str | None, typer.Option(help="The column with the classes, or none.")], None),
    "caption_column": (Annotated[str | None, typer.Option(help="The column with the captions, or none.")], None),
    "background": (
        Annotated[str, typer.Option(help="Colour under transparent pixels: a name or #rrggbb.")], "white"
    ),
    "limit": (Annotated[int | None, typer.Option(min=1, help="Use the first N images only.")], None),
    "on_error": (
        Annotated[Literal["error", "skip"], typer.Option(help="What training does with an unreadable image.")], "error"
    ),
}  # fmt: skip
SHOWING: dict[str, tuple[Any, Any]] = {
    "crop": (Annotated[Literal["center", "random"], typer.Option(help="Where the square is cut out.")], "center"),
    "flip": (Annotated[bool, typer.Option("--flip", help="Mirror half of the images, left to right.")], False),
}


def register(app: typer.Typer) -> None:
    """Add the group to the application."""
    group = typer.Typer(help="What training would read, and what is broken in it.")
    command(group, "check", READING)(check)
    command(group, "preview", READING | SHOWING)(preview)
    app.add_typer(group, name="data", no_args_is_help=True)


def check(path: PathOrName, **reading: Any) -> Output:
    """Read every image once: broken files, sizes, modes, classes, duplicates. Exit code 3 if any is broken."""
    spec = _spec(path, reading)
    from diffkit.data.check import check as run

    report = run(spec)
    payload: dict[str, Any] = {"path": path, **report.as_dict()}
    if not report.broken and "error" not in report.training:
        return Output(payload, _lines(report))
    if report.broken:
        message = f"{len(report.broken)} of {report.images} images cannot be read"
        hint = "Replace or remove them, or train with --set dataset.on_error=skip."
    else:
        message = f"training would stop: {report.training['error']}"
        hint = "Correct the data, or train with --set dataset.on_error=skip."
    payload["error"] = {"code": 3, "message": message, "hint": hint}
    return Output(payload, [*_lines(report), f"{message}. {hint}"], code=3)


def preview(
    path: PathOrName = "digits",
    num: options.Num = 16,
    seed: options.Seed = 0,
    out: options.Out = None,
    **reading: Any,
) -> Output:
    """Draw a grid of what training would see first, after cropping, mirroring and scaling, with the classes."""
    spec = _spec(path, reading)
    from diffkit.data.preview import preview as run

    picture, payload = run(spec, num=num, seed=seed, out=out)
    return Output({"grid": str(picture), **payload}, [str(picture)])


def _spec(name: str, reading: Mapping[str, Any]) -> DatasetSpec:
    """The dataset section that the options give."""
    from diffkit.recipes.schema import DatasetSpec

    if reading["channels"] == 2:
        raise UsageError("--channels 2: images have 1 channel (grey) or 3 (RGB)")
    return DatasetSpec(name=name, **reading)


def _counts(title: str, counts: dict[str, int], most: int = 10) -> str:
    shown = [f"{name} ({count})" for name, count in list(counts.items())[:most]]
    more = f", and {len(counts) - most} more" if len(counts) > most else ""
    return f"{title:<11} {', '.join(shown)}{more}"


def _lines(report: Report) -> list[str]:
    found = report.as_dict()
    lines = [f"images      {found['images']} ({found['readable']} readable, {found['colour']} with colour)"]
    lines += [_counts(key, found[key]) for key in ("sizes", "modes", "formats", "classes") if found[key]]
    if report.captioned:
        lines.append(f"captions    {report.captioned}")
    if report.duplicates:
        lines.append(f"duplicates  {len(report.duplicates)} groups")
        lines += [f"  same file: {' = '.join(group)}" for group in report.duplicates]
    if report.broken:
        lines.append(f"broken      {len(report.broken)}")
        lines += [f"  {where}: {reason}" for where, reason in report.broken]
    plan = report.training
    if "error" in plan:
        return [*lines, f"training    {plan['error']}"]
    colour = "grey" if plan["channels"] == 1 else "RGB"
    held = f", {plan['validation']} held out" if plan["validation"] else ""
    size = f"{plan['resolution']}x{plan['resolution']} {colour}"
    return [*lines, f"training    {plan['images']} images{held}, {size}, {plan['where']}"]
