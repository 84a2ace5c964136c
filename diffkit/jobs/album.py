"""Finished pictures become files: one PNG each with its recipe, a grid, an animation; shared by all commands.

The names are `OUT/<command>-<seed>.png` and `OUT/<command>-grid.png`, or `FILE.png` for a single picture.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from diffkit.models.bundled import BUNDLED, bundled
from diffkit.pictures.files import Destination
from diffkit.types import ModelInfo


class Album:
    """Where one command's pictures go.

    Args:
        command: The command's name, the first part of every file's name.
        out: A folder, made if need be; or FILE.png where `count` is 1. `outputs/` when left out.
        count: Number of pictures.

    Raises:
        UsageError: As `Destination.of`.
    """

    def __init__(self, command: str, out: Path | None, count: int) -> None:
        self.command, self.to = command, Destination.of(out, command, count)
        self.file, self.folder = self.to.file, self.to.folder

    def path(self, seed: int, tag: str = "") -> Path:
        """The file of the picture with a seed, and of one combination of a sweep."""
        return self.to.path(seed, tag)


def fingerprint(info: ModelInfo) -> str | None:
    """Return the SHA-256 of a local model's weights, by which a retrained run is told from the one that drew."""
    root = bundled() if info.id == BUNDLED else None
    path = (root or Path(info.id).expanduser()) / info.network.folder / "diffusion_pytorch_model.safetensors"
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
