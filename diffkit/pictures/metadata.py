"""PNG files that carry their own recipe.

A recipe travels as JSON in one uncompressed iTXt chunk named "diffkit". It is read chunk by chunk with a limit on every
length, and nothing else in the file is looked at, so that a hostile file costs neither memory nor trust. Opening users'
images is in `images.py`.
"""

from __future__ import annotations

import json
import logging
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from diffkit.errors import DataError, UsageError
from diffkit.pictures.files import write_whole

LOG = logging.getLogger("diffkit.pictures.metadata")

KEYWORD = "diffkit"
MAX_RECIPE = 1 << 20
_MAX_CHUNKS = 100_000
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def write_png(path: Path, image: Image.Image, recipe: Mapping[str, Any] | None = None) -> None:
    """Write a PNG with its recipe; the same image and recipe give the same bytes.

    Args:
        path: The file, replaced whole or not at all.
        image: 8-bit grey or RGB.
        recipe: How it was made, JSON-able; no secrets belong here.
    """
    info = PngInfo()
    if recipe is not None:
        text = json.dumps(recipe, sort_keys=True, ensure_ascii=False, default=str)
        if len(text.encode()) > MAX_RECIPE - 64:
            raise UsageError(f"the recipe of {path.name} is larger than {MAX_RECIPE} bytes", "Shorten the prompts.")
        info.add_itxt(KEYWORD, text)
    buffer = BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    write_whole(path, buffer.getvalue())


def read_recipe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the recipe that a picture carries.

    Raises:
        DataError: No such file, not a PNG, damaged, or without a usable recipe.
    """
    place = Path(path)
    try:
        with place.open("rb") as file:
            if file.read(8) != _SIGNATURE:
                raise DataError(f"{path} is not a PNG file", "Only PNG pictures written by diffkit carry a recipe.")
            for text in _texts(file, str(path)):
                recipe = _parse(text, str(path))
                if recipe is not None:
                    return recipe
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}", "Check the path.") from None
    raise DataError(f"{path} carries no recipe of diffkit", "Only PNG pictures written by diffkit carry one.")


def _texts(file: IO[bytes], name: str) -> Iterator[str]:
    """Walk over the chunks; yield the text of every sound one that is ours, and say why of each that is not."""
    size = os.fstat(file.fileno()).st_size
    for _ in range(_MAX_CHUNKS):
        head = file.read(8)
        if len(head) < 8:
            return
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IEND" or file.tell() + length + 4 > size:
            return
        if kind != b"iTXt" or length > MAX_RECIPE:
            if kind == b"iTXt":
                LOG.warning("%s: a text chunk of %d bytes is ignored (limit %d)", name, length, MAX_RECIPE)
            file.seek(length + 4, os.SEEK_CUR)
            continue
        data, crc = file.read(length), file.read(4)
        keyword, _, rest = data.partition(b"\0")
        if keyword != KEYWORD.encode():
            continue
        if struct.pack(">I", zlib.crc32(kind + data)) != crc:
            LOG.warning("%s: the recipe is ignored, its checksum is wrong", name)
            continue
        if rest[:1] != b"\0":
            LOG.warning("%s: the recipe is ignored, it is compressed", name)
            continue
        try:
            yield rest[2:].split(b"\0", 2)[2].decode("utf-8")  # language and translated keyword come first
        except (IndexError, UnicodeDecodeError):
            LOG.warning("%s: the recipe is ignored, it is not UTF-8 text", name)


def _parse(text: str, name: str) -> dict[str, Any] | None:
    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    try:
        recipe = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        LOG.warning("%s: the recipe is ignored, it is not valid JSON", name)
        return None
    if not isinstance(recipe, dict) or not isinstance(recipe.get("command"), str):
        LOG.warning("%s: the recipe is ignored, it names no command", name)
        return None
    return recipe


def versions() -> dict[str, str]:
    """Return the versions that a picture depends on."""
    import platform
    from importlib.metadata import version

    names = ("diffkit", "torch", "diffusers")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
