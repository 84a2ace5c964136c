"""The contact sheet of a search: every candidate in all its views, with its scores. Nothing is drawn or scored here."""

from __future__ import annotations

from PIL import Image

from diffkit.images import from_tensor
from diffkit.pictures import grid
from diffkit.tasks.illusion import Illusion, seen
from diffkit.tasks.search import Found

SIDE = 128


def contact_sheet(found: Found, illusion: Illusion, columns: int | None = None) -> Image.Image:
    """Return a sheet of all candidates, best first: each in all its views, with its A and C.

    "at 12" says that it was judged, and dropped, after 12 steps.
    """
    best = {one.seed: number for number, one in enumerate(found.best)}
    order = sorted(
        found.tried, key=lambda one: (best.get(one.seed, len(best)), one.dropped, -one.steps, -one.alignment)
    )
    cells, labels = [], []
    for one in order:
        views = [from_tensor(part.clamp(-1, 1))[0] for part in seen(illusion, one.image[None])]
        cells.append(grid([_cell(view) for view in views], len(views), gap=1, min_cell=1))
        place, when = (f"{best[one.seed] + 1}:" if one.seed in best else ""), (f"at {one.steps}" if one.dropped else "")
        labels.append(f"{place} seed {one.seed} A {one.alignment:.3f} C {one.concealment:.2f} {when}".strip())
    return grid(cells, columns, labels=labels, gap=6, min_cell=1)


def _cell(view: Image.Image) -> Image.Image:
    """Every view at one size: small ones pixel by pixel."""
    factor = -(-SIDE // max(view.size))
    side = (view.width * factor, view.height * factor)
    if factor == 1:
        side = (SIDE, max(1, round(SIDE * view.height / view.width)))
        return view.resize(side, Image.Resampling.LANCZOS)
    return view.resize(side, Image.Resampling.NEAREST)
