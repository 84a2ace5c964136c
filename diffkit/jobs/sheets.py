"""The sheet of a run: pictures side by side, labelled by seed, class, prompt or combination."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from diffkit.jobs.batch import Row
from diffkit.jobs.sweep import Table
from diffkit.pictures.grids import grid

LOG = logging.getLogger("diffkit.jobs")

MOST = 256  # pictures on a sheet
_CELL = 160  # pixels to which small pictures are enlarged


class Tiles:
    """The pictures of a run by combination and seed, and what stands on the sheet in place of each."""

    def __init__(self) -> None:
        self.strips = False  # a picture is shown in several views
        self._pictures: dict[tuple[int, int], Image.Image] = {}
        self._shown: dict[tuple[int, int], Image.Image] = {}

    def add(self, cell: int, seed: int, picture: Image.Image, shown: Image.Image) -> None:
        """Keep a picture."""
        self._pictures[cell, seed], self._shown[cell, seed] = picture, shown

    def has(self, cell: int, seed: int) -> bool:
        """Say whether a picture is there: another process may have failed to draw it."""
        return (cell, seed) in self._shown

    def shown(self, cell: int, seed: int) -> Image.Image:
        """Return what stands on the sheet."""
        return self._shown[cell, seed]

    def pictures(self, cell: int) -> list[Image.Image]:
        """Return the pictures of a combination, in the order they were drawn in."""
        return [picture for (k, _), picture in self._pictures.items() if k == cell]

    def complete(self, paths: Mapping[tuple[int, int], Path]) -> None:
        """Read what other processes have drawn, as far as it stands on the sheet."""
        for key, path in list(paths.items())[:MOST]:
            if key not in self._shown and path.is_file():
                with Image.open(path) as image:
                    self._shown[key] = image.copy()


def make_sheet(
    table: Table,
    rows: Mapping[int, Sequence[Row]],
    tiles: Tiles,
    sheet: Sequence[tuple[str, Image.Image]],
    columns: int | None,
) -> Image.Image | None:
    """Lay a run's pictures out; None for a single one that is shown as it is.

    Args:
        table: The combinations.
        rows: The pictures of each.
        tiles: The pictures themselves.
        sheet: Labelled pictures that a job lays out in place of its own.
        columns: Pictures per row, where the user says so.
    """
    if len(table.cells) > 1:
        return _of_table(table, rows, tiles)
    if sheet:
        return grid([picture for _, picture in sheet], len(sheet), labels=[name for name, _ in sheet], min_cell=_CELL)
    mine = list(rows[0])
    if len(mine) < 2 and not tiles.strips:
        return None
    if len(mine) > MOST:
        LOG.info("the grid shows the first %d of %d pictures", MOST, len(mine))
        mine = mine[:MOST]
    shown = [tiles.shown(0, row.seed) for row in mine if tiles.has(0, row.seed)]
    if tiles.strips:
        across = max(1, round((len(shown) * shown[0].height / shown[0].width) ** 0.5))
        return grid(shown, columns or across, labels=[f"seed {row.seed}" for row in mine], min_cell=_CELL)
    job = table.cells[0].job
    labels = [row.label or "" for row in mine]
    captions = labels if len(set(labels)) > 1 else None
    return grid(shown, columns or job.columns(), labels=captions, min_cell=job.cell_side)


def _of_table(table: Table, rows: Mapping[int, Sequence[Row]], tiles: Tiles) -> Image.Image:
    """Every combination in its place; with several seeds each row of combinations is repeated for each."""
    order: list[tuple[str, Image.Image]] = []
    for first in range(0, len(table.cells), table.columns):
        line = range(first, min(first + table.columns, len(table.cells)))
        for k in range(max(len(rows[cell]) for cell in line)):
            order += [(table.cells[c].label, tiles.shown(c, rows[c][k].seed)) for c in line if k < len(rows[c])]
    return grid([p for _, p in order], table.columns, labels=[label for label, _ in order], min_cell=_CELL)
