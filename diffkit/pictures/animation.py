"""Animations as GIF files. MP4 files are in `mp4.py`; what the frames show is made elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image

from diffkit.errors import UsageError
from diffkit.pictures.files import write_whole


def write_gif(path: Path, frames: Sequence[Image.Image], *, milliseconds: int = 60, hold: int = 1500) -> None:
    """Write an endless animation.

    Args:
        path: The file, replaced whole or not at all.
        frames: At least one, all of one size.
        milliseconds: Time of each frame.
        hold: Time of the last one.

    Raises:
        UsageError: No frames.
    """
    if not frames:
        raise UsageError("write_gif() needs at least one frame")
    made: dict[int, Image.Image] = {}  # a frame that stays for a while is there many times
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
