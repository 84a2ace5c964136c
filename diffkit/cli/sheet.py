"""Every combination of a picture command drawn, its files written, and the contact sheet made of them."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diffkit.cli import sweep

if TYPE_CHECKING:
    from diffkit.cli.plan import Picked, Plan

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
        self.seeds: dict[str, list[int]] = {}
        self.files: dict[str, list[str]] = {}  # beside the pictures, by kind
        self.scores: dict[str, Any] = {}
        self.found: Picked | None = None  # by a search, for the pictures that are being drawn
        self.strips = False

    def draw(self, tiles: list[Tile], plan: Plan, seeds: list[int], batch_size: int) -> None:
        """Draw combinations that fit into common batches, and write their pictures."""
        from diffkit.cli.pictures import Batch, warn_unguided
        from diffkit.cli.progress import Bar
        from diffkit.engine.settings import merged
        from diffkit.jobs.album import Film
        from diffkit.jobs.sample import batches
        from diffkit.pictures.files import write_png

        self.found = None if plan.pick is None else self._pick(tiles[0], plan, seeds, batch_size)
        seeds = seeds if self.found is None else self.found.seeds
        self.seeds |= {tile.cell.label: seeds for tile in tiles}
        rows = [(tile, seed) for tile in tiles for seed in seeds]
        groups = batches(len(rows), batch_size)
        visited = plan.visits(self.model, tiles[0].settings)
        warn_unguided(self.model, tiles[0].settings, visited)
        for line in plan.notices(self.model, tiles[0].settings) if plan.notices else []:
            LOG.info("%s", line)
        written: dict[str, list[str]] = {tile.cell.label: [] for tile in tiles}
        scores: dict[str, Any] = self.scores.get(tiles[0].cell.label, {})
        shown = tiles[0].cell.label if len(tiles) == 1 else f"{tiles[0].cell.label} ... {tiles[-1].cell.label}"
        steps = len(visited) + (plan.further(tiles[0].settings) if plan.further else 0)
        with Bar(shown or self.name, steps * len(groups)) as bar:
            for positions in groups:
                film = Film(self.model.codec) if self.gif and self.film is None else None

                def on_step(step: Any, place: range, film: Any = film) -> None:
                    bar.advance()
                    if film is not None:
                        film.shoot(step, place)

                some = [rows[k] for k in positions]
                how = merged([tile.settings for tile, _ in some])
                batch = Batch([s for _, s in some], [t.label for t, _ in some], how, on_step, bar.advance)
                edit = plan.draw(self.model, batch)
                self.film = self.film or film
                self.frames = self.frames or edit.frames
                self.calls += edit.calls
                self.sheet = self.sheet or edit.sheet
                scores = scores or edit.scores
                made = []
                for k, (tile, seed), picture, shown_as in zip(
                    positions, some, edit.pictures, edit.shown or edit.pictures, strict=True
                ):
                    path = self.album.path(seed, tile.cell.tag)
                    write_png(path, picture, _recipe(tile, seed, k, self.found))
                    written[tile.cell.label].append(str(path))
                    made.append((path, picture))
                    self.tiles[tile.cell.label, seed] = shown_as
                self.strips = bool(edit.shown)
                for kind, paths in (plan.after(made) if plan.after else {}).items():
                    self.files.setdefault(kind, []).extend(paths)
                self.timesteps = self.timesteps or edit.timesteps
        for label, paths in written.items():
            self.cells.append({"values": label, "images": paths, "steps": len(visited), **scores})

    def _pick(self, tile: Tile, plan: Plan, seeds: list[int], batch_size: int) -> Picked:
        """Search among seeds; write all candidates on a sheet of their own."""
        from diffkit.pictures.files import write_png

        assert plan.pick is not None
        found = plan.pick(self.model, tile.settings, seeds, batch_size)
        path = self.album.folder / f"{self.name}-candidates{tile.cell.tag and '-' + tile.cell.tag}.png"
        write_png(path, found.sheet, {**tile.recipe, "sheet": "candidates"})
        self.files.setdefault("candidates", []).append(str(path))
        self.calls += found.calls
        self.scores[tile.cell.label] = found.scores
        for key in found.silent:
            tile.recipe["arguments"].pop(key, None)
        return found

    def close(
        self, seeds: list[int], recipe: dict[str, Any], loaded: float, began: float
    ) -> tuple[dict[str, Any], list[str]]:
        """Write the sheet and the animation; return the JSON and the lines."""
        from diffkit.cli.loading import seconds
        from diffkit.jobs.album import plain_name

        drawn = time.perf_counter()
        places = {cell.label: k for k, cell in enumerate(self.table.combinations)}
        self.cells.sort(key=lambda cell: places[cell["values"]])
        self.images = [path for cell in self.cells for path in cell["images"]]
        sheet, animation = self._sheet(seeds, recipe), self._animation()
        scores = {k: v for k, v in self.cells[0].items() if k not in ("values", "images", "steps")}
        payload = {
            "images": self.images, "grid": sheet, "gif": animation, **self.files, "model": plain_name(self.model),
            "seeds": next(iter(self.seeds.values())),
            "steps": self.cells[0]["steps"], "timesteps": self.timesteps, "unet_calls": self.calls,
            "sweep": self.cells if len(self.cells) > 1 else None,
            "psnr": scores.pop("psnr", None), "scores": scores or None,
            "seconds": seconds(self.model, began, loaded, drawn),
        }  # fmt: skip
        took = payload["seconds"]["denoise"]
        lines = [f"{len(self.images)} picture{'s' * (len(self.images) > 1)}, {self.calls} UNet calls, {took:.1f} s"]
        lines += [f"{name:<9}{value}" for name, value in (("grid", sheet), ("gif", animation)) if value]
        lines += [f"{kind:<10} {path}" for kind, paths in self.files.items() for path in paths]
        lines += [f"{cell['values'] + ': ' if cell['values'] else ''}{cell['steps']} steps" for cell in self.cells]
        lines += [f"picture  {path}" for path in self.images[:10]]
        return {key: value for key, value in payload.items() if value is not None}, lines

    def _sheet(self, seeds: list[int], recipe: dict[str, Any]) -> str | None:
        from diffkit.pictures.files import grid, write_png

        columns: int | None
        if len(self.cells) == 1 and self.sheet:
            labels, shown = [name for name, _ in self.sheet], [picture for _, picture in self.sheet]
            columns = len(shown)
        elif len(self.tiles) < 2 and not self.strips:
            return None
        elif len(self.cells) == 1 and self.strips:
            (label, mine), first = next(iter(self.seeds.items())), next(iter(self.tiles.values()))
            labels, shown = [f"seed {seed}" for seed in mine], [self.tiles[label, seed] for seed in mine]
            columns = max(1, round((len(shown) * first.height / first.width) ** 0.5))
        else:
            columns = self.table.columns if len(self.cells) > 1 else None
            width = self.table.columns
            rows = [self.table.combinations[k : k + width] for k in range(0, len(self.table.combinations), width)]
            order = [(c.label, self.seeds[c.label][k]) for row in rows for k in range(len(seeds)) for c in row]
            labels, shown = [label for label, _ in order], [self.tiles[key] for key in order]
        path = self.album.folder / f"{self.name}-grid.png"
        write_png(path, grid(shown, columns, labels=labels, min_cell=160), recipe)
        return str(path)

    def _animation(self) -> str | None:
        from diffkit.jobs.album import enlarged
        from diffkit.pictures.files import write_gif

        frames = [enlarged(frame) for frame in self.frames] if self.frames else self.film.frames if self.film else []
        if not self.gif or not frames:
            return None
        path = self.album.file.with_suffix(".gif") if self.album.file else self.album.folder / f"{self.name}.gif"
        write_gif(path, frames, milliseconds=120 if self.frames else 60, hold=120 if self.frames else 1500)
        return str(path)


def _recipe(tile: Tile, seed: int, index: int, found: Picked | None) -> dict[str, Any]:
    """The recipe of one picture; of one that a search has found, as if its seed had been asked for.

    Those that a search has found were drawn together, and the last bits of a picture depend on its company.
    """
    if found is None:
        return {**tile.recipe, "seed": seed, "index": index}
    alone = {**tile.recipe["arguments"], "seed": seed, "num": 1}
    company = {"company": found.seeds} if len(found.seeds) > 1 else {}
    return {
        **tile.recipe, "arguments": alone, "seed": seed, "index": index, **company, "score": found.marks.get(seed)
    }  # fmt: skip
