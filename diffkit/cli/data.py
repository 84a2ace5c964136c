"""`diffkit data check / preview`: what training would read, and what is broken in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from diffkit.cli import options
from diffkit.cli.runner import Output, command

if TYPE_CHECKING:
    from diffkit.data.check import Report
    from diffkit.recipes.schema import DatasetSpec

PathOrName = Annotated[
    str, typer.Argument(metavar="PATH", help="An image folder, a parquet folder, a registered name or a Hub id.")
]
Config = Annotated[str | None, typer.Option("--config", help="The Hub dataset's configuration (subset).")]
Split = Annotated[str, typer.Option("--split", help="The split to read.")]
Resolution = Annotated[int, typer.Option("--resolution", min=1, help="Height and width of the training images.")]
Channels = Annotated[
    int | None, typer.Option("--channels", min=1, max=3, help="1 grey, 3 RGB; inferred when left out.")
]
ImageColumn = Annotated[str | None, typer.Option("--image-column", help="The column with the images.")]
ClassColumn = Annotated[str | None, typer.Option("--class-column", help="The column with the classes, or none.")]
CaptionColumn = Annotated[str | None, typer.Option("--caption-column", help="The column with the captions, or none.")]
Background = Annotated[str, typer.Option("--background", help="Colour under transparent pixels: a name or #rrggbb.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Use the first N images only.")]
OnError = Annotated[
    Literal["error", "skip"], typer.Option("--on-error", help="What training does with an unreadable image.")
]
Crop = Annotated[Literal["center", "random"], typer.Option("--crop", help="Where the square is cut out.")]
Flip = Annotated[bool, typer.Option("--flip", help="Mirror half of the images, left to right.")]


def register(app: typer.Typer) -> None:
    """Add the group to the application."""
    group = typer.Typer(help="What training would read, and what is broken in it.")
    command(group, "check")(check)
    command(group, "preview")(preview)
    app.add_typer(group, name="data", no_args_is_help=True)


def check(
    path: PathOrName,
    split: Split = "train",
    config: Config = None,
    resolution: Resolution = 64,
    channels: Channels = None,
    image_column: ImageColumn = None,
    class_column: ClassColumn = None,
    caption_column: CaptionColumn = None,
    background: Background = "white",
    limit: Limit = None,
    on_error: OnError = "error",
) -> Output:
    """Read every image once: broken files, sizes, modes, classes, duplicates. Exit code 3 if any is broken."""
    spec = _spec(
        name=path,
        split=split,
        config=config,
        resolution=resolution,
        channels=channels,
        image_column=image_column,
        class_column=class_column,
        caption_column=caption_column,
        background=background,
        limit=limit,
        on_error=on_error,
    )
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
    split: Split = "train",
    config: Config = None,
    resolution: Resolution = 64,
    channels: Channels = None,
    image_column: ImageColumn = None,
    class_column: ClassColumn = None,
    caption_column: CaptionColumn = None,
    background: Background = "white",
    limit: Limit = None,
    on_error: OnError = "error",
    crop: Crop = "center",
    flip: Flip = False,
) -> Output:
    """Draw a grid of what training would see first, after cropping, mirroring and scaling, with the classes."""
    spec = _spec(
        name=path,
        split=split,
        config=config,
        resolution=resolution,
        channels=channels,
        image_column=image_column,
        class_column=class_column,
        caption_column=caption_column,
        background=background,
        limit=limit,
        on_error=on_error,
        crop=crop,
        flip=flip,
    )
    from diffkit.data.preview import preview as run

    return _previewed(*run(spec, num=num, seed=seed, out=out))


def _previewed(picture: Path, payload: dict[str, Any]) -> Output:
    return Output({"grid": str(picture), **payload}, [str(picture)])


def _spec(**fields: Any) -> DatasetSpec:
    """The dataset section that the options give."""
    from diffkit.errors import UsageError
    from diffkit.recipes.schema import DatasetSpec

    if fields["channels"] == 2:
        raise UsageError("--channels 2: images have 1 channel (grey) or 3 (RGB)")
    return DatasetSpec(**fields)


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
