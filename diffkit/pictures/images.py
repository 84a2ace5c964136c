"""Images of users: opened safely, their tones, the right way up, cut and resampled.

Every image of a user, in a dataset or on the command line, enters through `open_image`, which allows no format that
can run code, checks the size before decoding, and returns 8-bit grey or RGB the right way up. Tensors are in
`tensors.py`, masks in `masks.py`; nothing here knows of datasets or models.
"""

from __future__ import annotations

import functools
import logging
import os
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

from diffkit.errors import DataError, UsageError
from diffkit.pictures.modes import eight_bits

LOG = logging.getLogger("diffkit.pictures.images")

Made = TypeVar("Made")

MAX_PIXELS = 80_000_000  # a 50-megapixel photograph passes; what Pillow only warns about does not
MAX_BYTES = 512 * 2**20
MIN_SIDE = 4
LUMA = (0.299, 0.587, 0.114)  # what red, green and blue are to the brightness: ITU-R 601, as Pillow has it
MAX_ASPECT = 8  # of what `shorter_side` keeps

# Only raster formats whose decoders are part of Pillow: EPS, for one, would start another program.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "TGA", "ICO", "JPEG2000")
EXTENSIONS = (
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm",
    ".pbm", ".pnm", ".avif", ".tga", ".jp2",
)  # fmt: skip

# The check of `_header` is stricter than the one Pillow warns of and ends in an error; damaged metadata says nothing
# about the pixels. A filter for each call would not be safe among the threads that decode.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def parse_color(color: str) -> tuple[int, int, int]:
    """Return the (red, green, blue) in 0..255 of a colour name or `#rrggbb`.

    Raises:
        UsageError: The text names no colour.
    """
    try:
        red, green, blue = ImageColor.getrgb(color)[:3]
    except ValueError:
        raise UsageError(f"background {color!r} is no colour", "Give a name such as white, or #rrggbb.") from None
    return red, green, blue


def open_image(
    source: str | os.PathLike[str] | IO[bytes] | bytes,
    background: str | tuple[int, int, int] = "white",
    *,
    name: str | None = None,
    draft: int | None = None,
    notices: bool = True,
) -> Image.Image:
    """Open a user's image as 8-bit grey ("L") or colour ("RGB"), the right way up, transparency filled in.

    Sixteen bits are scaled to eight, not clipped; of an animation the first frame is taken.

    Args:
        source: A path, an open binary file, or the encoded bytes.
        background: The colour under transparent pixels: a name, `#rrggbb` or (red, green, blue).
        name: What an error calls the image; the path when left out.
        draft: A side in pixels below which no detail is needed; lets a JPEG decode at a reduced size, no side of
            which is under it.
        notices: Log a line when frames are dropped.

    Raises:
        DataError: The file is missing, empty, truncated, no image, too large (more than `MAX_PIXELS`) or too small
            (a side under `MIN_SIDE`).
        UsageError: `background` is no colour.
    """
    fill = parse_color(background) if isinstance(background, str) else background
    return decoded(source, lambda image: eight_bits(image, fill), name=name, draft=draft, notices=notices)


def decoded(
    source: str | os.PathLike[str] | IO[bytes] | bytes,
    convert: Callable[[Image.Image], Made],
    *,
    name: str | None = None,
    draft: int | None = None,
    notices: bool = True,
) -> Made:
    """Open a user's image as `open_image` does, but convert it as asked; errors of `convert` are the file's."""
    label = name or (str(source) if isinstance(source, (str, os.PathLike)) else "image")
    with _header(source, label) as image:
        try:
            if draft and image.format in ("JPEG", "MPO"):
                image.draft(None, (draft, draft))
            frames = getattr(image, "n_frames", 1)
            image.load()
            _turn_upright(image)
            result = convert(image)
        except DataError as error:
            raise DataError(f"{label}: {error.message}", error.hint) from None
        except MemoryError:
            raise
        except Exception as error:  # a decoder that meets damaged bytes may raise anything
            raise DataError(
                f"{label}: cannot be decoded: {_reason(error)}", "The file is damaged; replace it."
            ) from None
        if frames > 1 and notices and image.format not in ("MPO", "ICO"):
            LOG.info("%s has %d frames; the first one is used", label, frames)
    return result


def image_info(source: str | os.PathLike[str] | IO[bytes] | bytes, name: str = "image") -> tuple[int, int, str, str]:
    """Return (width, height, mode, format) as the file's header states them, without decoding.

    Raises:
        DataError: As `open_image`, for what the header shows.
    """
    with _header(source, name) as image:
        return image.width, image.height, image.mode, str(image.format)


def _header(source: str | os.PathLike[str] | IO[bytes] | bytes, label: str) -> Image.Image:
    """Open lazily, and refuse by the header alone what must not be decoded."""
    try:
        if isinstance(source, (str, os.PathLike)):
            path = Path(source)
            if path.is_dir():
                raise DataError(f"{label}: is a folder, not an image", "Give the path of one image file.")
            if not path.exists():
                raise DataError(f"{label}: no such file", "Check the path.")
            size = path.stat().st_size
        elif isinstance(source, bytes):
            size = len(source)
            source = BytesIO(source)
        else:
            position = source.tell()
            size = source.seek(0, os.SEEK_END) - position
            source.seek(position)
        if size == 0:
            raise DataError(f"{label}: the file is empty (0 bytes)", "Replace the file.")
        if size > MAX_BYTES:
            raise DataError(f"{label}: {size / 2**20:.0f} MiB; at most {MAX_BYTES // 2**20} MiB are read")
        image = Image.open(source, formats=_formats())
    except UnidentifiedImageError:
        raise DataError(f"{label}: not an image of a known format", f"Formats: {', '.join(FORMATS)}.") from None
    except Image.DecompressionBombError as error:
        raise DataError(f"{label}: too large: {_reason(error)}", "Scale it down first.") from None
    except (DataError, MemoryError):
        raise
    except Exception as error:  # see `open_image`
        raise DataError(f"{label}: cannot be read: {_reason(error)}", "Check the file.") from None
    _check_size(image, label)
    return image


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this build of Pillow reads."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _check_size(image: Image.Image, label: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        image.close()
        raise DataError(
            f"{label}: {width}x{height} pixels; at most {MAX_PIXELS / 1e6:.0f} million are read", "Scale it down first."
        )
    if min(width, height) < MIN_SIDE:
        image.close()
        raise DataError(f"{label}: {width}x{height} is too small; no side may be under {MIN_SIDE} pixels")


def _reason(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]


def _turn_upright(image: Image.Image) -> None:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception as error:  # damaged EXIF says nothing about the pixels
        LOG.debug("EXIF ignored: %s", _reason(error))


def cut_square(image: Image.Image, size: int) -> Image.Image:
    """Cut the largest centred square out of an image and resample it to size x size."""
    return cut(image, size, size)


def cut(image: Image.Image, width: int, height: int) -> Image.Image:
    """Cut the largest centred box with the aspect of width:height out of an image and resample it to that size."""
    have_w, have_h = image.size
    scale = min(have_w / width, have_h / height)
    box_w, box_h = scale * width, scale * height
    left, top = (have_w - box_w) / 2, (have_h - box_h) / 2
    return resize(image, width, height, box=(left, top, left + box_w, top + box_h))


def shorter_side(image: Image.Image, size: int) -> Image.Image:
    """Resample so that the shorter side is `size` pixels; what is longer than `MAX_ASPECT` times that is cut off."""
    width, height = image.size
    short, long = min(width, height), max(width, height)
    kept = min(long, short * MAX_ASPECT)
    new_long = max(size, round(kept * size / short))
    if width >= height:
        return resize(image, new_long, size, box=((width - kept) / 2, 0, (width + kept) / 2, height))
    return resize(image, size, new_long, box=(0, (height - kept) / 2, width, (height + kept) / 2))


def resize(
    image: Image.Image, width: int, height: int, box: tuple[float, float, float, float] | None = None
) -> Image.Image:
    """Resample (a box of) an image to width x height: Lanczos with antialiasing down, bicubic up.

    Bicubic rings less than Lanczos, which shows where few pixels become many.
    """
    box = box or (0, 0, image.width, image.height)
    if (width, height) == image.size and box == (0, 0, width, height):
        return image
    down = box[2] - box[0] > width or box[3] - box[1] > height
    return image.resize((width, height), Image.Resampling.LANCZOS if down else Image.Resampling.BICUBIC, box=box)


def is_grey(image: Image.Image) -> bool:
    """Whether an image from `open_image` has no colour: grey, or RGB with equal channels."""
    if image.mode == "L":
        return True
    pixels = np.asarray(image)
    return bool((pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 1] == pixels[..., 2]).all())


def with_channels(image: Image.Image, channels: int) -> Image.Image:
    """Return the image as grey (1) or RGB (3)."""
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def to_array(image: Image.Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Image ("L" or "RGB") -> uint8 (C, H, W), contiguous, a copy."""
    pixels = np.asarray(image, dtype=np.uint8)
    return np.array(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1), order="C")
