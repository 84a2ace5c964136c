"""One sheet that shows every registered view and filter at work on a drawn example, and what each of them takes."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from PIL import Image, ImageChops, ImageOps

from diffkit.illusions.filters import FILTERS
from diffkit.illusions.views import VIEWS
from diffkit.pictures.examples import example_image
from diffkit.pictures.grids import grid
from diffkit.pictures.tensors import from_tensor, to_tensor

_COLUMNS = 6
_MIDWAY = 0.35  # at one half a flip is a line and a negative is grey


def example(size: int) -> Image.Image:
    """Return the drawn heart on a ground that runs from blue to sand, so that pieces can be told from one another."""
    ramp = Image.linear_gradient("L").resize((size, size))
    ground = ImageOps.colorize(ramp, black=(120, 170, 225), white=(245, 225, 170))
    return ImageChops.multiply(example_image(3, size), ground)


def overview_sheet(size: int = 192) -> Image.Image:
    """Draw every view, on its way and arrived, and below them the parts of every filter.

    Args:
        size: Side of each picture in pixels; a multiple of 64, which every view can act on.
    """
    picture = example(size)
    cells = [("the picture", picture), ("identity", picture)]
    for name in VIEWS:
        if name in ("identity", "permutation"):  # the one never moves, the other needs a file
            continue
        view = VIEWS[name]()
        cells += [(view.spec, view.frame(picture, 1.0)), ("... on its way", view.frame(picture, _MIDWAY))]
    cells += [("", Image.new("RGB", (size, size), "white"))] * (-len(cells) % _COLUMNS)
    x = to_tensor(picture)
    for name in FILTERS:
        split = FILTERS[name]()
        cells += [(f"{split.spec} {part}", from_tensor(split.part(x, k))[0]) for k, part in enumerate(split.part_names)]
    return grid([cell for _, cell in cells], _COLUMNS, labels=[label for label, _ in cells], gap=6)


def rows() -> dict[str, list[dict[str, Any]]]:
    """Describe every row: {"views": [...], "filters": [...]}, each with name, arguments, spec and description."""
    found: dict[str, list[dict[str, Any]]] = {"views": [], "filters": []}
    for name in VIEWS:
        about = _describe(name, VIEWS[name])
        found["views"].append({**about, "spatial": VIEWS[name].spatial, "latent": VIEWS[name].latent})
    for name in FILTERS:
        found["filters"].append({**_describe(name, FILTERS[name]), "parts": list(FILTERS[name].part_names)})
    return found


def _describe(name: str, row: type[Any]) -> dict[str, Any]:
    own = [f for f in fields(row) if f.init]
    arguments = {f.name: f.default if isinstance(f.default, (int, float)) else None for f in own}
    spec = f"{name}:FILE" if name == "permutation" else row().spec
    sentence = " ".join((row.__doc__ or "").split("\n\n")[0].split())
    return {"name": name, "arguments": arguments, "spec": spec, "description": sentence}
