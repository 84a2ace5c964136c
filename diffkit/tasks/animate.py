"""Illusions shown: the picture turns from view to view, a hybrid goes away or its parts fade, all views side by side.

Holds frames; captions are in `captions.py`, a GIF is written by `pictures.write_gif`, a film by `mp4.py`. How a view
moves is the view's own business (`View.frame`), how parts leave is the filter's (`Split.leaving`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from typing import Any

import torch
from PIL import Image

from diffkit.errors import UsageError
from diffkit.images import from_tensor, to_tensor
from diffkit.tasks.captions import PAPER, Label

SIDE = 384
FRAMES = 24
HOLD = 18
MILLISECONDS = 50
FAR = 1 / 8
_CRISP = 32  # pictures up to this size are enlarged pixel by pixel: smoothing would be most of what is seen


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
    stops = [_Stop(k, view) for k, view in enumerate(several)]
    return _round_trip(image, stops, captions, frames, hold, side)


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
        captions: What is seen from near, from between, if need be, and from afar; "" for none.
        frames: Frames of the way there, and of the way back.
        hold: Frames for which each place is held.
        side: Size of the picture in the first frame, at least.
        far: Its size at the far end, as a share of that.

    Raises:
        UsageError: Fewer than two captions, too few frames, or a share outside (0, 1).
    """
    _check(max(2, len(captions)), captions, frames, hold)
    stops = _there_and_back([None] * len(captions))
    return _round_trip(image, stops, captions, _each(frames, len(captions)), hold, side, far=far)


def parts_in_turn(
    split: Any,
    views: Sequence[Any],
    image: Image.Image,
    captions: Sequence[str],
    *,
    frames: int = 2 * FRAMES,
    hold: int = HOLD,
    side: int = SIDE,
    far: float = FAR,
) -> list[Image.Image]:
    """Return an endless animation of a hybrid: from all of it to its first part, as its filter's parts are told apart.

    It goes away, its colours fade, its motion blurs it. On the way it turns from each part's view to the next one's.

    Args:
        split: The filter.
        views: One per part, in their order.
        image: The picture as it is, square.
        captions: One per part, in their order; "" for none.
        frames: Frames of the way there, and of the way back.
        hold: Frames for which each part is held.
        side: Size of the picture in the frames, at least.
        far: Its size at the far end, where parts are told apart by distance.

    Raises:
        UsageError: Not one view and one caption per part, or as for `zoom_out`.
    """
    _check(split.parts, captions, frames, hold)
    if len(views) != split.parts:
        raise UsageError(f"an animation of {split.parts} parts has {len(views)} views; one for each")
    stops = _there_and_back([_or_none(view) for view in views][::-1])
    apart = getattr(split, "apart", "distance")  # a filter of one's own need not say
    leaving = split.leaving if apart == "fading" else None
    far_end = far if apart == "distance" else None
    each = _each(frames, split.parts)
    return _round_trip(image, stops, captions[::-1], each, hold, side, far=far_end, leaving=leaving)


@dataclass(frozen=True)
class _Stop:
    """Where an animation rests: a caption, the view the picture is seen in, and how much of its way it has gone."""

    caption: int
    view: Any = None
    gone: float = 0.0


def _there_and_back(views: Sequence[Any]) -> list[_Stop]:
    """Evenly spaced stops from near to far, and between them again on the way back."""
    there = [_Stop(k, view, k / (len(views) - 1)) for k, view in enumerate(views)]
    return there + there[-2:0:-1]


def _each(frames: int, stops: int) -> int:
    return max(2, frames // (stops - 1))


def _round_trip(
    image: Image.Image,
    stops: Sequence[_Stop],
    captions: Sequence[str],
    frames: int,
    hold: int,
    side: int,
    *,
    far: float | None = None,
    leaving: Callable[[torch.Tensor, float], torch.Tensor] | None = None,
) -> list[Image.Image]:
    """From stop to stop and back to the first, `frames` between each two."""
    if far is not None and not 0.0 < far < 1.0:
        raise UsageError(f"a zoom to {far:g} of the size; give a share between 0 and 1")
    label = Label(captions, enlarge(image, side).width)

    def drawn(view: Any, progress: float, gone: float) -> Image.Image:
        picture = image if leaving is None or not gone else from_tensor(leaving(to_tensor(image), gone))[0]
        if view is None or progress <= 0.0:
            picture = enlarge(picture, side)
        else:
            picture = (_moving if progress < 1.0 else _still)(view, picture, progress, side)
        return picture if far is None or not gone else _shrunk(picture, far**gone)

    shown: list[Image.Image] = []
    for place, here in enumerate(stops):
        there = stops[(place + 1) % len(stops)]
        shown += [label.under(drawn(here.view, 1.0, here.gone), {here.caption: 1.0})] * max(1, hold)
        for k in range(1, frames + 1):
            share = k / (frames + 1)
            gone = here.gone + (there.gone - here.gone) * smoothstep(share)
            picture = drawn(*_turning(here.view, there.view, share), gone)
            shown.append(label.under(picture, _fade(here.caption, there.caption, share)))
    return shown


def _turning(here: Any, there: Any, share: float) -> tuple[Any, float]:
    """Between two views: the one that moves, and how far it has moved the picture as it is.

    A view that goes comes to rest before the next one comes: both ways are eased by themselves.
    """
    ways = [way for way in ((here, True), (there, False)) if way[0] is not None]
    if not ways or here == there:
        return here, 1.0
    leg = min(int(share * len(ways)), len(ways) - 1)
    view, back = ways[leg]
    progress = smoothstep(share * len(ways) - leg)
    return view, 1.0 - progress if back else progress


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
    label = Label(captions, large[0].width)
    cells = [label.under(image, {k: 1.0}) for k, image in enumerate(large)]
    width, height = cells[0].size
    sheet = Image.new("RGB", (len(cells) * (width + gap) + gap, height + 2 * gap), PAPER)
    for k, cell in enumerate(cells):
        sheet.paste(cell, (gap + k * (width + gap), gap))
    return sheet


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


def _still(view: Any, image: Image.Image, progress: float, side: int) -> Image.Image:
    """The picture seen in a view, exactly: turned at its own size, where turning the enlarged one differs at all."""
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
    wide = Image.new("RGB", (width + 2 * border[0], height + 2 * border[1]), PAPER)
    wide.paste(image, (border[0], border[1]))
    left, top = (wide.width - span[0]) / 2, (wide.height - span[1]) / 2
    box = (left, top, left + span[0], top + span[1])
    paper = Image.new("RGB", image.size, PAPER)
    small = wide.resize((new[0], new[1]), Image.Resampling.LANCZOS, box=box)
    paper.paste(small, ((width - new[0]) // 2, (height - new[1]) // 2))
    return paper
