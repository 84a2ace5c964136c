"""Animations as MP4 files, by the extra `video`. GIF files are in `animation.py`; the frames are made elsewhere."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffkit.errors import UsageError


def write_mp4(path: Path, frames: Sequence[Image.Image], *, milliseconds: int = 50) -> None:
    """Write an animation as H.264 with 4:2:0 colours, which every player can show.

    Args:
        path: The file, replaced whole or not at all.
        frames: At least one, all of one size; odd sides get one white line more, which the format asks for.
        milliseconds: Time of each frame.

    Raises:
        UsageError: The extra `video` is not installed, or there are no frames.
    """
    need_mp4()
    if not frames:
        raise UsageError("write_mp4() needs at least one frame")
    from imageio.v2 import get_writer

    temporary = path.with_name(f".{path.stem}.{os.getpid()}.mp4")
    try:
        with get_writer(
            temporary, format="FFMPEG", fps=1000 / milliseconds, codec="libx264", pixelformat="yuv420p",
            macro_block_size=1, ffmpeg_log_level="error", output_params=["-crf", "18", "-movflags", "+faststart"],
        ) as film:  # fmt: skip
            writer: Any = film
            for frame in frames:
                writer.append_data(np.asarray(_even(frame)))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def need_mp4() -> None:
    """Refuse an MP4 before anything is drawn, where it cannot be written.

    Raises:
        UsageError: The extra `video` is not installed.
    """
    from importlib.util import find_spec

    missing = [name for name in ("imageio", "imageio_ffmpeg") if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"an MP4 needs {' and '.join(missing)}, not installed", "pip install 'diffkit[video]', or write a GIF."
        )


def _even(frame: Image.Image) -> Image.Image:
    frame = frame.convert("RGB")
    size = (frame.width + frame.width % 2, frame.height + frame.height % 2)
    if size == frame.size:
        return frame
    even = Image.new("RGB", size, "white")
    even.paste(frame)
    return even
