"""`diffkit views` and `diffkit views check`: the views and filters there are, and whether your own view can work."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from diffkit.cli.runner import Output, command
from diffkit.errors import DataError, UsageError

if TYPE_CHECKING:
    from diffkit.illusions.views import Look, ViewReport

_LARGEST = 1024  # of the pictures that are drawn; the check of larger ones takes gigabytes

Action = Annotated[
    Literal["list", "check"],
    typer.Argument(metavar="[check]", help="Nothing to list all views and filters; check to try one view."),
]
What = Annotated[
    str | None, typer.Argument(metavar="[FILE|VIEW]", help="To check: a .npy or .png file, or a view such as skew:2.")
]
Size = Annotated[
    int | None,
    typer.Option("--size", min=4, max=_LARGEST, help="Side of the pictures to check for; 64, or the file's own."),
]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="Folder or FILE.png of the sheet; outputs/views.png when left out.")
]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    command(app, "views")(views)


def views(action: Action = "list", what: What = None, size: Size = None, out: Out = None) -> Output:
    """List all views and filters with little pictures; `views check FILE` says whether your own view can work.

    A view of your own is a permutation of the pixels: a .npy file of whole numbers, one for each pixel of the view,
    row by row, that says which pixel of the picture is shown there, counted from 0; or an RGB .png whose colours are
    those numbers, red + 256 * green + 65536 * blue.
    """
    if action == "check":
        if what is None:
            raise UsageError("views check: no view given", "Give a file, or a view: `diffkit views check skew:2`.")
        if out is not None:
            raise UsageError("views check writes no file; --out does not apply")
        return _check(what, size)
    if what is not None or size is not None:
        raise UsageError("views: --size and a view belong to `diffkit views check`")
    return _list(out)


def _list(out: Path | None) -> Output:
    from diffkit.illusions.overview import overview_sheet, rows
    from diffkit.pictures.files import Destination
    from diffkit.pictures.metadata import write_png

    path = Destination.of(out, "views").named("views.png")
    write_png(path, overview_sheet())
    found = rows()
    lines = []
    for kind, title in (("views", "Views (--view)"), ("filters", "Filters (--split)")):
        lines += [title, *(line for row in found[kind] for line in _lines(row)), ""]
    return Output({**found, "images": [str(path)]}, [*lines, f"picture  {path}"])


def _lines(row: dict[str, Any]) -> list[str]:
    given = ", ".join(row["arguments"])
    text = row["description"] + (f" Parts: {', '.join(row['parts'])}." if "parts" in row else "")
    return [f"  {row['spec']:<20} {text}"] + ([f"  {'':<20} arguments: {given}"] if given else [])


def _check(what: str, size: int | None) -> Output:
    from diffkit.illusions.views import check_view

    view, own = _open(what)
    size = size or own or 64
    if size > _LARGEST:
        raise UsageError(
            f"views check: {what} is made for {size} px, and views are checked at up to {_LARGEST} px",
            f"It is a permutation; give --size {_LARGEST} or less to check it on smaller pictures.",
        )
    report = check_view(view, size)
    verdict = "can work" if report.ok else "cannot work"
    lines = [f"{view.spec} {verdict} on pictures of {size} px."]
    lines += [f"  why not: {reason}" for reason in report.reasons]
    lines += [f"  but: {hint}" for hint in report.hints]
    lines += [f"  {name:<34}{value}" for name, value in _measured(report)]
    measured = {key: value for key, value in vars(report).items() if key not in ("reasons", "hints")}
    payload = {
        "view": view.spec, "size": size, "ok": report.ok, "reasons": report.reasons, "hints": report.hints,
        "spatial": view.spatial, "latent": view.latent, "scores": measured,
    }  # fmt: skip
    return Output(payload, lines, code=0 if report.ok else DataError.exit_code)


def _open(what: str) -> tuple[Look, int | None]:
    """The view, and of a file the side it is made for."""
    from diffkit.illusions.views import Permutation, parse_view

    is_file = Path(what).suffix.lower() in (".npy", ".png") and not what.startswith("permutation:")
    view = parse_view(f"permutation:{what}" if is_file or Path(what).is_file() else what)
    return view, view.side if isinstance(view, Permutation) else None


def _measured(report: ViewReport) -> list[tuple[str, str]]:
    kept = "unknown" if report.kept is None else f"{report.kept:.0%}"
    return [
        ("undone with an error of", f"{report.inverse:.2g}"),
        ("length changed by", f"{report.norm:.2g}"),
        ("linear up to", f"{report.linearity:.2g}"),
        ("noise: mean, variance", f"{report.mean:+.4f}, {report.variance:.4f}"),
        ("noise: correlation of neighbours", f"{report.neighbours:+.4f}"),
        ("neighbours that stay neighbours", kept),
    ]
