"""The contact sheet of a search: every candidate in all its views, with prompts and scores. It draws no pictures."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageOps

from diffkit.illusions.composition import Composition
from diffkit.illusions.search import Candidate, Found
from diffkit.pictures.captions import PAPER, Label, below
from diffkit.pictures.grids import grid
from diffkit.pictures.tensors import from_tensor

SIDE = 128
FRAME = 4
KEPT = (30, 132, 73)
_FAINT = 0.6  # of the ink under candidates that were dropped


def candidates_sheet(
    found: Found, composition: Composition, captions: Sequence[str], columns: int | None = None
) -> Image.Image:
    """Return a sheet of all candidates, best first: each in all its views, with its A and C.

    Under each view stand its own score (view k against prompt k: A is the lowest of them) and its prompt. Those that
    were kept are framed and numbered; "at 12/30" says after how many steps one was dropped.
    """
    best = {one.seed: number for number, one in enumerate(found.best)}
    order = sorted(
        found.tried, key=lambda one: (best.get(one.seed, len(best)), one.dropped, -one.steps, -one.alignment)
    )
    framed = []
    for one in order:
        views = [_cell(from_tensor(part.clamp(-1, 1))[0]) for part in composition.shown(one.image[None])]
        row = grid(views, len(views), gap=1, min_cell=1).convert("RGB")
        framed.append(ImageOps.expand(row, FRAME, KEPT if one.seed in best else PAPER))
    side, count = views[0].width, len(captions)
    scores = Label([f"{score:.3g}" for one in order for score in one.matrix.diagonal().tolist()], side, gap=0.25)
    prompts = Label(captions, side, gap=0.0)
    whole = Label([caption(one, best.get(one.seed), found.steps) for one in order], framed[0].width, size=13)
    cells = []
    for k, (one, cell) in enumerate(zip(order, framed, strict=True)):
        ink = _FAINT if one.dropped else 1.0
        under = Image.new("RGB", (cell.width, scores.height + prompts.height), PAPER)
        for j in range(count):
            left = FRAME + 1 + j * (side + 1)
            under.paste(scores.strip(side, {k * count + j: ink}), (left, 0))
            under.paste(prompts.strip(side, {j: ink}), (left, scores.height))
        cells.append(whole.under(below(cell, under), {k: ink}))
    return grid(cells, columns, gap=6, min_cell=1)


def caption(one: Candidate, place: int | None, steps: int) -> str:
    """Return what is written under a candidate; scores have three digits that count, as some measures are small.

    Args:
        one: The candidate.
        place: Among those that were kept, from 0; None for the others.
        steps: Those of a whole picture.
    """
    words = [] if place is None else [f"#{place + 1}:"]
    words += [f"seed {one.seed}", f"A={one.alignment:.3g}", f"C={one.concealment:.3g}"]
    words += [f"at {one.steps}/{steps}"] if one.dropped else []
    return " ".join(words)


def _cell(view: Image.Image) -> Image.Image:
    """Every view at one size: small ones pixel by pixel."""
    factor = -(-SIDE // max(view.size))
    side = (view.width * factor, view.height * factor)
    if factor == 1:
        side = (SIDE, max(1, round(SIDE * view.height / view.width)))
        return view.resize(side, Image.Resampling.LANCZOS)
    return view.resize(side, Image.Resampling.NEAREST)
