"""Where pictures are written: what `out` names, folders that can be written to, files whole, and their digests."""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from diffkit.errors import UsageError

# Suffixes that somebody who wants a picture or a film may write, and that no folder is given on purpose.
_NOT_PNG = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jxl",
    ".jp2", ".tga", ".ico", ".ppm", ".pgm", ".pbm", ".apng", ".svg", ".mp4", ".webm",
)  # fmt: skip


@dataclass(frozen=True)
class Destination:
    """Where the pictures of one command go: into a folder, or into one file.

    Attributes:
        command: The command's name, the first part of the names in a folder.
        folder: Where all files go; it is there and can be written to.
        file: The one picture, where one file was named.
    """

    command: str
    folder: Path
    file: Path | None = None

    @classmethod
    def of(cls, out: Path | None, command: str, count: int = 1) -> Destination:
        """Read what `out` names, and make the folder.

        A path that ends in .png, and is no folder, names one file. One that ends like another kind of picture is
        refused. Anything else is a folder, made if need be.

        Args:
            out: The path; the folder `outputs` when left out.
            command: The command's name.
            count: Number of pictures.

        Raises:
            UsageError: One file for several pictures, a file that would not be a PNG, or a folder that cannot be
                written to.
        """
        out = Path("outputs") if out is None else out
        suffix = out.suffix.lower()
        if out.is_dir() or (suffix != ".png" and suffix not in _NOT_PNG):
            return cls(command, output_folder(out))
        if suffix != ".png":
            raise UsageError(
                f"`out` {out}: pictures are written as PNG files, which carry how they were made",
                f"Name a .png file such as {out.with_suffix('.png')}, or a folder.",
            )
        if count > 1:
            raise UsageError(
                f"`out` {out} is one file, and there are {count} pictures", "Name a folder, or ask for one picture."
            )
        return cls(command, output_folder(out.parent), out)

    def path(self, seed: int, tag: str = "") -> Path:
        """Return the file of the picture with a seed, and of one combination of a sweep, which `tag` names."""
        return self.named(f"{self.command}-{seed}{tag and '-' + tag}.png")

    def named(self, name: str) -> Path:
        """Return the file of a picture that has its own name in a folder."""
        return self.file or self.folder / name

    def beside(self, name: str) -> Path:
        """Return a file that is written beside the pictures.

        Args:
            name: "grid.png" for `FOLDER/COMMAND-grid.png`; a suffix alone, ".gif", for `FOLDER/COMMAND.gif`, or for
                the name of the one file with this suffix.
        """
        if not name.startswith("."):
            return self.folder / f"{self.command}-{name}"
        return self.file.with_suffix(name) if self.file else self.folder / f"{self.command}{name}"


def output_folder(path: Path) -> Path:
    """Make a folder for results and prove that it can be written to, before anything is loaded.

    Raises:
        UsageError: It is a file, its parent is one, or it is read-only.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        if error.errno == 28:
            raise
        raise UsageError(
            f"`out` {path} cannot be written to: {error.strerror or error}", "Choose another folder."
        ) from None
    return path


def sync(path: Path) -> None:
    """Have what was written to a file, or the entries of a folder, on the disk before going on."""
    flags = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) if path.is_dir() else os.O_RDONLY
    try:
        handle = os.open(path, flags)
    except OSError:  # a folder cannot be opened on Windows, and need not be
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Write a file so that it is there whole or not at all; durable: also if the machine stops right afterwards."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        if durable:
            sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        sync(path.parent)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
