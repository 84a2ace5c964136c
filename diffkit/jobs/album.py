"""Finished pictures become files: one PNG each with its recipe, a grid, an animation; shared by all commands.

The names are `OUT/<command>-<seed>.png` and `OUT/<command>-grid.png`, or `FILE.png` for a single picture.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from diffkit.errors import UsageError
from diffkit.models.vocabulary import BUNDLED, bundled
from diffkit.pictures.files import grid, output_folder, versions, write_gif, write_png
from diffkit.pictures.images import from_tensor
from diffkit.types import Step

LOG = logging.getLogger("diffkit.tasks")

GRID_IMAGES = 256
FRAMES = 48
FRAME_IMAGES = 64
FILM_SIDE = 256


class Album:
    """Where one command's pictures go.

    Args:
        command: The command's name, the first part of every file's name.
        out: A folder, made if need be; or FILE.png where `count` is 1. `outputs/` when left out.
        count: Number of pictures.

    Raises:
        UsageError: The folder cannot be written to, or one file is named for several pictures.
    """

    def __init__(self, command: str, out: Path | None, count: int) -> None:
        self.command = command
        out = out or Path("outputs")
        self.file = out if out.suffix.lower() == ".png" and not out.is_dir() else None
        if self.file is not None and count > 1:
            raise UsageError(f"--out {out} is one file, and there are {count} pictures", "Give a folder, or -n 1.")
        self.folder = output_folder(out if self.file is None else out.parent)

    def path(self, seed: int, tag: str = "") -> Path:
        """The file of the picture with a seed, and of one combination of a sweep."""
        return self.file or self.folder / f"{self.command}-{seed}{tag and '-' + tag}.png"

    def write(self, seed: int, image: Tensor, recipe: Mapping[str, Any]) -> Path:
        """Write one picture, (C, H, W) in [-1, 1], with its recipe."""
        path = self.path(seed)
        write_png(path, from_tensor(image)[0], recipe)
        return path

    def write_grid(
        self,
        seeds: Sequence[int],
        recipe: Mapping[str, Any],
        columns: int | None = None,
        labels: Sequence[str] | None = None,
    ) -> Path | None:
        """Write the grid of pictures that are on disk already; None for a single one."""
        if len(seeds) < 2:
            return None
        shown = list(seeds[:GRID_IMAGES])
        if len(shown) < len(seeds):
            LOG.info("the grid shows the first %d of %d pictures", len(shown), len(seeds))
        images = []
        for seed in shown:
            with Image.open(self.path(seed)) as image:
                images.append(image.copy())
        path = self.folder / f"{self.command}-grid.png"
        write_png(path, grid(images, columns, labels=labels and list(labels[: len(shown)])), recipe)
        return path

    def write_gif(self, film: Film) -> Path:
        """Write the animation of the denoising."""
        path = self.file.with_suffix(".gif") if self.file else self.folder / f"{self.command}.gif"
        write_gif(path, film.frames)
        return path


class Film:
    """Collects frames of the first batch while it is denoised.

    Small pictures are enlarged by a whole factor, pixel by pixel, until the longer side of a frame is about 256.

    Args:
        codec: The model's, from x to images.
        columns: Images per row.
    """

    def __init__(self, codec: Any, columns: int | None = None) -> None:
        self.codec, self.columns = codec, columns
        self.frames: list[Image.Image] = []

    def shoot(self, step: Step, positions: range) -> None:
        """Take a frame of the first batch, if this step is one of the evenly spaced ones that are shown."""
        stride = max(1, -(-step.total // FRAMES))
        if positions.start != 0 or ((step.total - 1 - step.index) % stride):
            return
        x = step.x[:FRAME_IMAGES].float()
        # Some samplers scale their noise up; what is seen is its pattern.
        x = x / x.flatten(1).std(dim=1).clamp(min=1.0).reshape(-1, 1, 1, 1)
        images = self.codec.decode(x).cpu()
        columns = min(self.columns or math.ceil(math.sqrt(len(images))), len(images))
        most = max(columns, math.ceil(len(images) / columns))
        self.frames.append(grid(images, columns, min_cell=max(64, math.ceil(FILM_SIDE / most))))


def make_recipe(command: str, arguments: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """Return what all pictures of one call share in their metadata.

    Args:
        command: The command's name.
        arguments: Its options by name, as resolved; options left at None are dropped.
        model: The loaded model.
    """
    about = {"id": model.id, "revision": model.revision, "family": model.family}
    digest = fingerprint(model.id) if model.revision is None else None
    return {
        "command": command,
        "arguments": {key: value for key, value in arguments.items() if value is not None},
        "model": {**about, **({"weights": digest} if digest else {})},
        "device": model.device.type,
        "versions": versions(),
    }


def fingerprint(folder: str) -> str | None:
    """Return the SHA-256 of a local model's UNet weights, by which a retrained run is told from the one that drew."""
    root = bundled() if folder == BUNDLED else None
    for name in ("unet/diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors"):
        path = (root or Path(folder).expanduser()) / name
        if path.is_file():
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
    return None


def plain_name(model: Any) -> dict[str, Any]:
    """Return what `--json` says of a model."""
    return {"id": model.id, "revision": model.revision, "family": model.family}


def enlarged(image: Image.Image, side: int = 96) -> Image.Image:
    """Return a small picture enlarged by a whole factor, pixel by pixel."""
    factor = max(1, -(-side // max(image.size)))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
