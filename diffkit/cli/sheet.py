"""Every combination of a picture command drawn, its files written, and the contact sheet made of them."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diffkit.cli import sweep

if TYPE_CHECKING:
    from diffkit.cli.pictures import Plan

LOG = logging.getLogger("diffkit")


@dataclass(frozen=True)
class Tile:
    """A combination with all that its pictures need."""

    cell: sweep.Combination
    settings: Any
    label: str | None
    recipe: dict[str, Any]


class Sheet:
    """Draws the combinations and keeps what goes on the contact sheet."""

    def __init__(self, name: str, album: Any, model: Any, table: sweep.Table, gif: bool) -> None:
        self.name, self.album, self.model, self.table, self.gif = name, album, model, table, gif
        self.film: Any = None
        self.frames: list[Any] = []
        self.tiles: dict[tuple[str, int], Any] = {}
        self.sheet: list[tuple[str, Any]] = []
        self.images: list[str] = []
        self.cells: list[dict[str, Any]] = []
        self.timesteps: list[float] = []
        self.calls = 0

    def draw(self, tiles: list[Tile], plan: Plan, seeds: list[int], batch_size: int) -> None:
        """Draw combinations that fit into common batches, and write their pictures."""
        from diffkit.cli.pictures import Batch
        from diffkit.cli.progress import Bar
        from diffkit.pictures import write_png
        from diffkit.tasks.album import Film
        from diffkit.tasks.generate import batches, merged

        rows = [(tile, seed) for tile in tiles for seed in seeds]
        groups = batches(len(rows), batch_size)
        visited = plan.visits(self.model, tiles[0].settings)
        for line in plan.notices(self.model, tiles[0].settings) if plan.notices else []:
            LOG.info("%s", line)
        written: dict[str, list[str]] = {tile.cell.label: [] for tile in tiles}
        scores: dict[str, Any] = {}
        shown = tiles[0].cell.label if len(tiles) == 1 else f"{tiles[0].cell.label} ... {tiles[-1].cell.label}"
        with Bar(shown or self.name, len(visited) * len(groups)) as bar:
            for positions in groups:
                film = Film(self.model.codec) if self.gif and self.film is None else None

                def on_step(step: Any, place: range, film: Any = film) -> None:
                    bar.advance()
                    if film is not None:
                        film.shoot(step, place)

                some = [rows[k] for k in positions]
                how = merged([tile.settings for tile, _ in some])
                edit = plan.draw(self.model, Batch([s for _, s in some], [t.label for t, _ in some], how, on_step))
                self.film = self.film or film
                self.frames = self.frames or edit.frames
                self.calls += edit.calls
                self.sheet = self.sheet or edit.sheet
                scores = scores or edit.scores
                for k, (tile, seed), picture in zip(positions, some, edit.pictures, strict=True):
                    path = self.album.path(seed, tile.cell.tag)
                    write_png(path, picture, {**tile.recipe, "seed": seed, "index": k})
                    written[tile.cell.label].append(str(path))
                    self.tiles[tile.cell.label, seed] = picture
                self.timesteps = self.timesteps or edit.timesteps
        for label, paths in written.items():
            self.cells.append({"values": label, "images": paths, "steps": len(visited), **scores})

    def close(
        self, seeds: list[int], recipe: dict[str, Any], loaded: float, began: float
    ) -> tuple[dict[str, Any], list[str]]:
        """Write the sheet and the animation; return the JSON and the lines."""
        from diffkit.cli.pictures import seconds
        from diffkit.tasks.album import plain_name

        drawn = time.perf_counter()
        places = {cell.label: k for k, cell in enumerate(self.table.combinations)}
        self.cells.sort(key=lambda cell: places[cell["values"]])
        self.images = [path for cell in self.cells for path in cell["images"]]
        sheet, animation = self._sheet(seeds, recipe), self._animation()
        scores = {k: v for k, v in self.cells[0].items() if k not in ("values", "images", "steps")}
        payload = {
            "images": self.images, "grid": sheet, "gif": animation, "model": plain_name(self.model), "seeds": seeds,
            "steps": self.cells[0]["steps"], "timesteps": self.timesteps, "unet_calls": self.calls,
            "sweep": self.cells if len(self.cells) > 1 else None,
            "psnr": scores.pop("psnr", None), "scores": scores or None,
            "seconds": seconds(self.model, began, loaded, drawn),
        }  # fmt: skip
        took = payload["seconds"]["denoise"]
        lines = [f"{len(self.images)} picture{'s' * (len(self.images) > 1)}, {self.calls} UNet calls, {took:.1f} s"]
        lines += [f"{name:<9}{value}" for name, value in (("grid", sheet), ("gif", animation)) if value]
        lines += [f"{cell['values'] + ': ' if cell['values'] else ''}{cell['steps']} steps" for cell in self.cells]
        lines += [f"picture  {path}" for path in self.images[:10]]
        return {key: value for key, value in payload.items() if value is not None}, lines

    def _sheet(self, seeds: list[int], recipe: dict[str, Any]) -> str | None:
        from diffkit.pictures import grid, write_png

        columns: int | None
        if len(self.cells) == 1 and self.sheet:
            labels, shown = [name for name, _ in self.sheet], [picture for _, picture in self.sheet]
            columns = len(shown)
        elif len(self.tiles) < 2:
            return None
        else:
            columns = self.table.columns if len(self.cells) > 1 else None
            width = self.table.columns
            rows = [self.table.combinations[k : k + width] for k in range(0, len(self.table.combinations), width)]
            order = [(cell.label, seed) for row in rows for seed in seeds for cell in row]
            labels, shown = [label for label, _ in order], [self.tiles[key] for key in order]
        path = self.album.folder / f"{self.name}-grid.png"
        write_png(path, grid(shown, columns, labels=labels, min_cell=160), recipe)
        return str(path)

    def _animation(self) -> str | None:
        from diffkit.pictures import write_gif
        from diffkit.tasks.album import enlarged

        frames = [enlarged(frame) for frame in self.frames] if self.frames else self.film.frames if self.film else []
        if not self.gif or not frames:
            return None
        path = self.album.file.with_suffix(".gif") if self.album.file else self.album.folder / f"{self.name}.gif"
        write_gif(path, frames, milliseconds=120 if self.frames else 60, hold=120 if self.frames else 1500)
        return str(path)
