"""What a run writes: each picture with its metadata, the sheet, animations, and the numbers for `--json`."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from diffkit.jobs.base import PictureJob
from diffkit.jobs.batch import Drawn, Found, Row
from diffkit.jobs.options import Run
from diffkit.jobs.sheets import Tiles, make_sheet
from diffkit.models.bundled import BUNDLED, bundled
from diffkit.pictures.animation import write_gif
from diffkit.pictures.files import Destination, file_digest
from diffkit.pictures.grids import magnify
from diffkit.pictures.metadata import versions, write_png

if TYPE_CHECKING:
    from diffkit.jobs.rows import Place, Prepared
    from diffkit.pictures.film import Film
    from diffkit.types import Model, ModelInfo

LOG = logging.getLogger("diffkit.jobs")


@dataclass
class Result:
    """What a run gives.

    Attributes:
        payload: One object for `--json`.
        lines: The same for people.
        pictures: The pictures; `info["diffkit"]` of each is its metadata.
    """

    payload: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    pictures: list[Image.Image] = field(default_factory=list)


class Output:
    """Writes what is drawn, and keeps what goes on the sheet.

    Args:
        prepared: What is drawn.
        rows: The pictures of each combination.
        model: What draws.
        options: What is written beside the pictures.
        to: Where to; None where pictures are only returned.
        rank: This process; the first one writes what belongs to all.
    """

    def __init__(
        self,
        prepared: Prepared,
        rows: Sequence[Sequence[Row]],
        model: Model,
        options: Run,
        to: Destination | None,
        rank: int,
    ) -> None:
        self.prepared, self.model, self.options, self.to, self.rank = prepared, model, options, to, rank
        self.table = prepared.table
        self.rows = {k: list(some) for k, some in enumerate(rows)}
        self.tiles = Tiles()
        self.frames: list[Image.Image] = []
        self.sheet: list[tuple[str, Image.Image]] = []
        self.beside: dict[str, list[str]] = {}  # files beside the pictures, by kind
        self.scores: dict[int, dict[str, Any]] = {}
        self.calls = 0  # of the batches that this process draws
        self.searched = 0  # of searches, which every process does
        self._found: dict[int, Found] = {}
        self._group = {k: number for number, group in enumerate(self.table.groups) for k in group}
        self._recipes: dict[int, dict[str, Any]] = {}
        self._digest = cache(file_digest)  # each file is read once in a run, whatever the number of combinations

    def steps(self, cell: int) -> int:
        """Return how many steps a combination takes."""
        return len(self.prepared.timesteps[self._group[cell]])

    def found(self, cell: int, found: Found) -> None:
        """Take note of a search: write all its candidates on a sheet of their own."""
        self._found[cell] = found
        self.rows[cell] = [Row(seed) for seed in found.seeds]
        self.searched += found.calls
        self.scores[cell] = found.scores
        if self.to is None:
            return
        tag = self.table.cells[cell].tag
        path = self.to.beside(f"candidates{tag and '-' + tag}.png")
        recipe = self._shared(self.table.cells[cell].job)
        write_png(path, found.sheet, {**recipe, "sheet": "candidates"})
        self.beside.setdefault("candidates", []).append(str(path))

    def write(self, positions: range, places: Sequence[Place], drawn: Drawn) -> None:
        """Write the pictures of one batch."""
        self.calls += self.prepared.calls(self._group[places[0].cell], len(places)) + drawn.calls
        self.frames, self.sheet = self.frames or drawn.frames, self.sheet or drawn.sheet
        for cell in dict.fromkeys(place.cell for place in places):
            self.scores[cell] = self.scores.get(cell) or drawn.scores
        for k, place, picture, shown in zip(
            positions, places, drawn.pictures, drawn.shown or drawn.pictures, strict=True
        ):
            drawn_by, recipe = self.table.cells[place.cell], self._recipe(place, k)
            picture.info["diffkit"] = recipe
            self.tiles.add(place.cell, place.row.seed, picture, shown)
            self.tiles.strips = bool(drawn.shown)
            if self.to is not None:
                path = self.to.path(place.row.seed, drawn_by.tag)
                write_png(path, picture, recipe)
                if self.options.animate:
                    animation = drawn_by.job.animate(picture, path, self.options.animate)
                    self.beside.setdefault("animations", []).append(str(animation))

    def share(self) -> None:
        """Add up what the processes of a launcher have done; all must call it."""
        from accelerate.utils import gather_object

        self.calls = sum(gather_object([self.calls]))

    def close(self, began: float, loaded: float, drawn: float, film: Film | None, whole: bool = True) -> Result:
        """Write the sheet and the animation of a whole run; return the numbers."""
        info, cells = self.prepared.info, list(range(len(self.table.cells)))
        images = [str(p) for k in cells for p in self._paths(k)]
        sheet = animation = None
        if whole and self.rank == 0 and self.to is not None:
            sheet, animation = self._write_sheet(self.to), self._write_animation(self.to, film)
        scores, calls = dict(self.scores.get(0, {})), self.calls + self.searched
        seconds = _seconds(self.model, began, loaded, drawn)
        described = [
            {
                "values": self.table.cells[k].label, "images": [str(p) for p in self._paths(k)],
                "steps": self.steps(k), **self.scores.get(k, {}),
            }
            for k in cells
        ]  # fmt: skip
        payload = {
            "images": images, "grid": sheet, "gif": animation, **self.beside,
            "model": {"id": info.id, "revision": info.revision, "family": info.family},
            "seeds": [row.seed for row in self.rows[0]], "steps": self.steps(0),
            "timesteps": self.prepared.timesteps[0], "unet_calls": calls,
            "sweep": described if len(cells) > 1 else None, "psnr": scores.pop("psnr", None),
            "scores": scores or None, "seconds": seconds,
        }  # fmt: skip
        count = len(images)
        lines = [f"{count} picture{'s' * (count > 1)}, {calls} network calls, {seconds['denoise']:.1f} s"]
        lines += [f"{name:<9}{value}" for name, value in (("grid", sheet), ("gif", animation)) if value]
        lines += [f"{kind:<10} {path}" for kind, paths in self.beside.items() for path in paths]
        lines += [f"{c['values'] + ': ' if c['values'] else ''}{c['steps']} steps" for c in described]
        lines += [f"picture  {path}" for path in images[:10]]
        lines += [f"pictures {self.to.folder}"] if self.to and count > 10 else []
        pictures = [picture for k in cells for picture in self.tiles.pictures(k)]
        return Result({key: value for key, value in payload.items() if value is not None}, lines, pictures)

    def _paths(self, cell: int) -> list[Path]:
        if self.to is None:
            return []
        return [self.to.path(row.seed, self.table.cells[cell].tag) for row in self.rows[cell]]

    def _recipe(self, place: Place, index: int) -> dict[str, Any]:
        """The metadata of one picture; of one that a search has found, as if its seed had been asked for."""
        recipe, found = self._recipe_of(place.cell), self._found.get(place.cell)
        own: dict[str, Any] = {"seed": place.row.seed, "index": index}
        if place.row.label is not None:
            own["prompt" if self.model.info.text else "class"] = place.row.label
        if found is None:
            return {**recipe, **own}
        arguments = {key: value for key, value in recipe["arguments"].items() if key not in found.silent}
        # Those that a search has found were drawn together, and the last bits of a picture depend on its company.
        company = {"company": found.seeds} if len(found.seeds) > 1 else {}
        alone = {**arguments, "seed": place.row.seed, "num": 1}
        return {**recipe, **own, "arguments": alone, **company, "score": found.marks.get(place.row.seed)}

    def _recipe_of(self, cell: int) -> dict[str, Any]:
        """The metadata of a combination's pictures."""
        if cell not in self._recipes:
            recipe = self._shared(self.table.cells[cell].job)
            if again := self.table.narrowed(self.table.groups[self._group[cell]]):
                recipe["arguments"]["sweep"] = again  # the last bits of a picture depend on what it was drawn with
            self._recipes[cell] = recipe
        return self._recipes[cell]

    def _shared(self, job: PictureJob) -> dict[str, Any]:
        """What all pictures of a job share in their metadata."""
        info = self.model.info
        about: dict[str, Any] = {"id": info.id, "revision": info.revision, "family": info.family}
        if info.revision is None and (weights := weights_file(info)):
            about["weights"] = self._digest(weights)
        recipe = {
            "command": job.name, "arguments": job.arguments(), "model": about, "device": self.model.device.type,
            "versions": versions(), **job.about(),
        }  # fmt: skip
        inputs = {key: self._digest(path) for key, path in job.inputs().items()}
        return {**recipe, "inputs": inputs} if inputs else recipe

    def _write_sheet(self, to: Destination) -> str | None:
        cells = self.table.cells
        self.tiles.complete({(k, row.seed): to.path(row.seed, cells[k].tag) for k, some in self.rows.items()
                             for row in some})  # fmt: skip
        sheet = make_sheet(self.table, self.rows, self.tiles, self.sheet, self.options.columns)
        if sheet is None:
            return None
        recipe = self._shared(cells[0].job)
        if self.table.sweeps:  # what was asked for: the combinations are made anew
            recipe["arguments"] = {**self.table.asked(), "model": cells[0].job.model, "sweep": [*self.table.sweeps]}
        path = to.beside("grid.png")
        write_png(path, sheet, recipe)
        return str(path)

    def _write_animation(self, to: Destination, film: Film | None) -> str | None:
        own = [magnify(frame) for frame in self.frames]
        frames = own or (film.frames if film else [])
        if not self.options.gif or not frames:
            return None
        path = to.beside(".gif")
        write_gif(path, frames, milliseconds=120 if own else 60, hold=120 if own else 1500)
        return str(path)


def weights_file(info: ModelInfo) -> Path | None:
    """Return the file of a local model's weights, by which a retrained run is told from the one that drew."""
    root = bundled() if info.id == BUNDLED else None
    path = (root or Path(info.id).expanduser()) / info.network.folder / "diffusion_pytorch_model.safetensors"
    return path if path.is_file() else None


def _seconds(model: Model, began: float, loaded: float, drawn: float) -> dict[str, float]:
    """Moments of `time.perf_counter` as the times of `--json`; prompts are encoded while the model is loaded."""
    encode = model.encode_seconds if model.info.text else None
    found = {"load": max(0.0, loaded - began - (encode or 0.0))}  # a prompt may also be encoded later
    if encode is not None:
        found["encode"] = encode
    found |= {"denoise": drawn - loaded, "total": time.perf_counter() - began}
    return {key: round(value, 3) for key, value in found.items()}
