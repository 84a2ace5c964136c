"""Illusions shown: the picture turns from view to view, a hybrid shrinks into the distance, all views side by side.

Holds frames, captions and the MP4 file; a GIF is written by `pictures.write_gif`. How a view moves is the view's own
business (`View.frame`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from diffkit.errors import UsageError

LOG = logging.getLogger("diffkit.tasks")

SIDE = 384
FRAMES = 24
HOLD = 18
MILLISECONDS = 50
FAR = 1 / 8
_CRISP = 32  # pictures up to this size are enlarged pixel by pixel: smoothing would be most of what is seen
_INK, _PAPER = (40, 40, 40), (255, 255, 255)
_LINES = 2


def smoothstep(share: float) -> float:
    """Return 3 s^2 - 2 s^3 of a share in [0, 1]: it starts and ends at rest."""
    share = min(max(share, 0.0), 1.0)
    return share * share * (3.0 - 2.0 * share)


def enlarge(image: Image.Image, side: int = SIDE) -> Image.Image:
    """Return an RGB picture at a size to look at: at least `side`, a whole multiple of its own.

    A tiny one is enlarged pixel by pixel, a larger one by Lanczos; one that is large enough stays as it is.
    """
    image = image.convert("RGB")
    factor = _factor(image, side)
    if factor == 1:
        return image
    crisp = max(image.size) <= _CRISP
    way = Image.Resampling.NEAREST if crisp else Image.Resampling.LANCZOS
    return image.resize((image.width * factor, image.height * factor), way)


def frames_between(
    views: Any,
    image: Image.Image,
    captions: Sequence[str],
    *,
    frames: int = FRAMES,
    hold: int = HOLD,
    side: int = SIDE,
) -> list[Image.Image]:
    """Return an endless animation: the picture is seen in each view in turn, and comes back to the first.

    Between two views it goes through the picture as it is, unless one of them is that.

    Args:
        views: One view (the picture as it is comes first then), or all views of an illusion in order.
        image: The picture as it is, square.
        captions: One per view, written under the picture; "" for none.
        frames: Frames of one movement, at least 2.
        hold: Frames for which each view is held.
        side: Size of the picture in the frames, at least.

    Raises:
        UsageError: Not one caption per view, fewer than two views, or too few frames.
    """
    several: list[Any] = [None, views] if hasattr(views, "frame") else [_or_none(view) for view in views]
    _check(len(several), captions, frames, hold)
    label = _Label(captions, enlarge(image, side).width)
    shown: list[Image.Image] = []
    for here, view in enumerate(several):
        there = (here + 1) % len(several)
        shown += [label.under(_still(view, image, side), {here: 1.0})] * max(1, hold)
        ways = [way for way in ((view, True), (several[there], False)) if way[0] is not None]
        for k in range(1, frames + 1):
            share = smoothstep(k / (frames + 1)) * len(ways)
            leg = min(int(share), len(ways) - 1) if ways else 0
            moved = enlarge(image, side)
            if ways:
                moving, back = ways[leg]
                progress = share - leg
                moved = _moving(moving, image, 1.0 - progress if back else progress, side)
            shown.append(label.under(moved, _fade(here, there, k / (frames + 1))))
    return shown


def zoom_out(
    image: Image.Image,
    captions: Sequence[str],
    *,
    frames: int = 2 * FRAMES,
    hold: int = HOLD,
    side: int = SIDE,
    far: float = FAR,
) -> list[Image.Image]:
    """Return an endless animation of a hybrid: it goes away until only its coarse part is seen, and comes back.

    Args:
        image: The picture.
        captions: What is seen from near, and from afar; "" for none.
        frames: Frames of the way there, and of the way back.
        hold: Frames for which both ends are held.
        side: Size of the picture in the first frame, at least.
        far: Its size at the far end, as a share of that.

    Raises:
        UsageError: Not two captions, too few frames, or a share outside (0, 1).
    """
    _check(2, captions, frames, hold)
    if not 0.0 < far < 1.0:
        raise UsageError(f"a zoom to {far:g} of the size; give a share between 0 and 1")
    near = enlarge(image, side)
    label = _Label(captions, near.width)

    def at(share: float, weights: dict[int, float]) -> Image.Image:
        return label.under(_shrunk(near, far ** smoothstep(share)), weights)

    away = [at(k / (frames + 1), _fade(0, 1, k / (frames + 1))) for k in range(1, frames + 1)]
    return [at(0.0, {0: 1.0})] * max(1, hold) + away + [at(1.0, {1: 1.0})] * max(1, hold) + away[::-1]


def strip(images: Sequence[Image.Image], captions: Sequence[str], *, side: int = SIDE, gap: int = 12) -> Image.Image:
    """Return pictures side by side, each with its caption under it.

    Args:
        images: The views of an illusion, or the parts of a hybrid, all of one size.
        captions: One per picture; "" for none.
        side: Size of each, at least.
        gap: White between them.

    Raises:
        UsageError: No pictures, or not one caption for each.
    """
    if not images or len(images) != len(captions):
        raise UsageError(f"a strip of {len(images)} pictures has {len(captions)} captions")
    large = [enlarge(image, side) for image in images]
    label = _Label(captions, large[0].width)
    cells = [label.under(image, {k: 1.0}) for k, image in enumerate(large)]
    width, height = cells[0].size
    sheet = Image.new("RGB", (len(cells) * (width + gap) + gap, height + 2 * gap), _PAPER)
    for k, cell in enumerate(cells):
        sheet.paste(cell, (gap + k * (width + gap), gap))
    return sheet


def write_mp4(path: Path, frames: Sequence[Image.Image], *, milliseconds: int = MILLISECONDS) -> None:
    """Write a film that every player knows (H.264, 4:2:0).

    Args:
        path: The file, replaced whole or not at all.
        frames: At least one, all of one size; odd sides get one white line more, which the format asks for.
        milliseconds: Time of each frame.

    Raises:
        UsageError: The extra `video` is not installed, or there are no frames.
    """
    need_mp4()
    if not frames:
        raise UsageError("a film of no frames")
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


def _check(count: int, captions: Sequence[str], frames: int, hold: int) -> None:
    if count < 2 or len(captions) != count:
        raise UsageError(f"an animation of {count} views has {len(captions)} captions; two views or more, one for each")
    if frames < 2 or hold < 0:
        raise UsageError(f"an animation of {frames} frames, held for {hold}: at least 2, and not below 0")


def _or_none(view: Any) -> Any:
    """None for the identity, which does not move."""
    return None if getattr(view, "name", "") == "identity" else view


def _factor(image: Image.Image, side: int) -> int:
    return max(1, -(-side // max(image.size)))


def _fade(here: int, there: int, share: float) -> dict[int, float]:
    """The first caption goes in the first 40 % of the way, the next one comes in the last 40 %."""
    return {here: 1.0 - smoothstep(share / 0.4), there: smoothstep((share - 0.6) / 0.4)}


def _still(view: Any, image: Image.Image, side: int) -> Image.Image:
    """The picture seen in a view, exactly: turned at its own size, where turning the enlarged one differs at all."""
    if view is None:
        return enlarge(image, side)
    if _wrong_when_large(view, image.width, _factor(image, side)) < 1e-6:
        return view.frame(enlarge(image, side), 1.0)
    return enlarge(view.frame(image, 1.0), side)


def _moving(view: Any, image: Image.Image, progress: float, side: int) -> Image.Image:
    """The picture on its way; turned after enlarging, which is smoother, where that is nearly the same view."""
    # Two pixels on average: cut edges, rounded shifts. A permutation of single pixels is far from it.
    if _wrong_when_large(view, image.width, _factor(image, side)) <= 4.0 / image.width:
        return view.frame(enlarge(image, side), progress)
    return enlarge(view.frame(image, progress), side)


@lru_cache(maxsize=64)
def _wrong_when_large(view: Any, size: int, factor: int) -> float:
    """How far a view of the enlarged picture is from the enlarged view: the mean error of a map of coordinates.

    The coordinates run from -1 to 1; infinite where the view refuses the larger size.
    """
    line = torch.linspace(-1, 1, size)
    small = torch.stack([line.expand(size, size), line[:, None].expand(size, size), torch.ones(size, size)])[None]

    def large(x: torch.Tensor) -> torch.Tensor:
        return x.repeat_interleave(factor, -1).repeat_interleave(factor, -2)

    try:
        return float((view.apply(large(small)) - large(view.apply(small))).abs().mean())
    except UsageError:
        return float("inf")


def _shrunk(image: Image.Image, scale: float) -> Image.Image:
    """The picture at a share of its size in the middle of white; its edges move by parts of a pixel."""
    width, height = image.size
    # What is resampled reaches a little beyond the picture, to a whole number of new pixels.
    new = [ceil(side * scale) + (side - ceil(side * scale)) % 2 + 2 for side in image.size]
    span = [n / scale for n in new]
    border = [ceil((s - side) / 2) for s, side in zip(span, image.size, strict=True)]
    wide = Image.new("RGB", (width + 2 * border[0], height + 2 * border[1]), _PAPER)
    wide.paste(image, (border[0], border[1]))
    left, top = (wide.width - span[0]) / 2, (wide.height - span[1]) / 2
    box = (left, top, left + span[0], top + span[1])
    paper = Image.new("RGB", image.size, _PAPER)
    small = wide.resize((new[0], new[1]), Image.Resampling.LANCZOS, box=box)
    paper.paste(small, ((width - new[0]) // 2, (height - new[1]) // 2))
    return paper


def _even(frame: Image.Image) -> Image.Image:
    frame = frame.convert("RGB")
    size = (frame.width + frame.width % 2, frame.height + frame.height % 2)
    if size == frame.size:
        return frame
    even = Image.new("RGB", size, _PAPER)
    even.paste(frame)
    return even


class _Label:
    """The strip of white under every frame, with room for the longest caption.

    Args:
        captions: All that will be written.
        width: Of the frames.
    """

    def __init__(self, captions: Sequence[str], width: int) -> None:
        self.font = ImageFont.load_default(max(12, round(width / 18)))
        self.width = width
        self.lines = [list(self._wrapped(caption)) for caption in captions]
        most = max(len(lines) for lines in self.lines)
        ascent, descent = self.font.getmetrics() if isinstance(self.font, ImageFont.FreeTypeFont) else (11, 3)
        self.step = ascent + descent
        self.margin = self.step // 2
        self.height = most * self.step + 2 * self.margin if most else 0

    def under(self, image: Image.Image, weights: dict[int, float]) -> Image.Image:
        """Put the strip under a picture, each caption as dark as its weight in [0, 1] says."""
        frame = Image.new("RGB", (image.width, image.height + self.height), _PAPER)
        frame.paste(image, (0, 0))
        draw = ImageDraw.Draw(frame)
        for k, weight in weights.items():
            ink = tuple(round(p + (i - p) * weight) for p, i in zip(_PAPER, _INK, strict=True))
            if ink == _PAPER:
                continue
            top = image.height + (self.height - len(self.lines[k]) * self.step) // 2
            for number, line in enumerate(self.lines[k]):
                left = round((image.width - draw.textlength(line, font=self.font)) / 2)
                draw.text((left, top + number * self.step), line, fill=ink, font=self.font)
        return frame

    def _wrapped(self, text: str) -> Iterator[str]:
        """Break a caption into at most two lines; what does not fit is cut off with an ellipsis."""
        words, line, made = " ".join(text.split()).split(" "), "", 0
        while words and words[0]:
            longer = f"{line} {words[0]}".strip()
            if self._fits(longer):
                line = longer
                words.pop(0)
            elif made < _LINES - 1 and line:
                yield line
                line, made = "", made + 1
            else:
                line = longer
                while line and not self._fits(line + "…"):
                    line = line[:-1]
                line += "…"
                break
        if line:
            yield line

    def _fits(self, text: str) -> bool:
        return self.font.getlength(text) <= self.width - 8
