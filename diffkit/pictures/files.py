"""Finished pictures on disk: grids with labels, animations, and PNG files that carry their own recipe.

A recipe travels as JSON in one uncompressed iTXt chunk named "diffkit". It is read chunk by chunk with a limit on every
length, and nothing else in the file is looked at, so that a hostile file costs neither memory nor trust. Opening users'
images is in `images.py`.
"""

from __future__ import annotations

import json
import logging
import math
import os
import struct
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from diffkit.errors import DataError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

LOG = logging.getLogger("diffkit.pictures.files")

KEYWORD = "diffkit"
MAX_RECIPE = 1 << 20
_MAX_CHUNKS = 100_000
_SMALLEST = 10  # pixels of a caption's letters
_WIDEST = 160  # pixels to which small images are enlarged for the sake of their captions
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@lru_cache(maxsize=64)
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the letters of captions: DejaVu Sans, which has accents, Greek and Cyrillic, as it comes with matplotlib.

    Without matplotlib they are Pillow's own, which are English.

    Args:
        size: In pixels.
    """
    package = find_spec("matplotlib")  # only looked for: its import takes long
    if package is not None and package.origin is not None:
        path = Path(package.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if path.is_file():
            return ImageFont.truetype(str(path), size)
    return ImageFont.load_default(size)


def grid(
    images: Sequence[Image.Image] | Tensor,
    columns: int | None = None,
    *,
    labels: Sequence[str] | None = None,
    gap: int = 2,
    min_cell: int = 64,
    background: int = 255,
) -> Image.Image:
    """Lay images of one size out in rows.

    Args:
        images: At least one; grey and RGB may be mixed, and the sheet is then RGB. Or (B, C, H, W) in [-1, 1].
        columns: Images per row; a square sheet when left out.
        labels: One caption per image, written above it; "" for none.
        gap: Pixels between the images.
        min_cell: Images smaller than this are enlarged by a whole factor, pixel by pixel; further where their labels
            need more room, up to 160 pixels.
        background: Grey level between the images.

    Raises:
        UsageError: No images, or not as many labels as images.
    """
    if not isinstance(images, Sequence):
        from diffkit.pictures.images import from_tensor

        images = from_tensor(images)
    if not images:
        raise UsageError("a grid of no images")
    if labels is not None and len(labels) != len(images):
        raise UsageError(f"a grid of {len(images)} images has {len(labels)} labels")
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    factor = max(1, math.ceil(min_cell / max(images[0].size)))
    if factor > 1 and labels:  # they are enlarged in any case: so far that the words fit, within reason
        longest = max(font(_SMALLEST).getlength(" ".join(label.split())) for label in labels)
        factor = max(factor, math.ceil(min(longest + 1, _WIDEST) / images[0].width))
    cell_w, cell_h = images[0].width * factor, images[0].height * factor
    size = _letters(labels or (), cell_w, max(_SMALLEST, min(18, cell_h // 6)))
    strip = size + 4 if labels and any(labels) else 0
    rows = math.ceil(len(images) / columns)
    mode = "L" if all(image.mode == "L" for image in images) else "RGB"
    fill: Any = background if mode == "L" else (background,) * 3
    sheet = Image.new(mode, (columns * (cell_w + gap) + gap, rows * (cell_h + strip + gap) + gap), fill)
    draw = ImageDraw.Draw(sheet)
    for k, image in enumerate(images):
        left, top = gap + (k % columns) * (cell_w + gap), gap + (k // columns) * (cell_h + strip + gap)
        if strip and labels is not None:
            _caption(draw, labels[k], left, top, cell_w, size, 0 if background > 127 else 255)
        enlarged = image.convert(mode).resize((cell_w, cell_h), Image.Resampling.NEAREST)
        sheet.paste(enlarged, (left, top + strip))
    return sheet


def _letters(labels: Sequence[str], width: int, largest: int) -> int:
    """Return the size of letters, in pixels, at which all captions fit; the smallest legible one where none does."""

    def fits(size: int) -> bool:
        return all(font(size).getlength(" ".join(label.split())) < width for label in labels)

    return next((size for size in range(largest, _SMALLEST, -1) if fits(size)), _SMALLEST)


def _caption(draw: ImageDraw.ImageDraw, text: str, left: int, top: int, width: int, size: int, ink: int) -> None:
    """Write one line, shortened at its end to what fits."""
    text = " ".join(text.split())
    short = text
    while short and draw.textlength(short + ("…" if short != text else ""), font=font(size)) >= width:
        short = short[:-1]
    shown = short + ("…" if short != text else "")
    draw.text((left + 1, top), shown, fill=ink if draw.im.mode == "L" else (ink,) * 3, font=font(size))


def write_gif(path: Path, frames: Sequence[Image.Image], *, milliseconds: int = 60, hold: int = 1500) -> None:
    """Write an endless animation.

    Args:
        path: The file, replaced whole or not at all.
        frames: At least one, all of one size.
        milliseconds: Time of each frame.
        hold: Time of the last one.
    """
    made: dict[int, Image.Image] = {}  # one that is held is there many times
    for frame in frames:
        if id(frame) not in made:
            made[id(frame)] = frame if frame.mode == "L" else _indexed(frame)
    shown = [made[id(frame)] for frame in frames]
    times = [milliseconds] * (len(shown) - 1) + [hold]
    buffer = BytesIO()
    shown[0].save(buffer, "GIF", save_all=True, append_images=shown[1:], duration=times, loop=0, optimize=False)
    write_whole(path, buffer.getvalue())


def _indexed(frame: Image.Image) -> Image.Image:
    """A frame in 256 colours of its own, greys among them: left to itself a red picture has none for its caption."""
    width, height = frame.size
    ramp = (
        Image.linear_gradient("L")
        .rotate(90)
        .resize((16, 1))
        .resize((width, 1 + height // 14), Image.Resampling.NEAREST)
    )
    wide = Image.new("RGB", (width, height + ramp.height))
    wide.paste(frame.convert("RGB"), (0, 0))
    wide.paste(ramp.convert("RGB"), (0, height))
    return wide.quantize(256).crop((0, 0, width, height))


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
            f"--out {path} cannot be written to: {error.strerror or error}", "Choose another folder."
        ) from None
    return path


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
