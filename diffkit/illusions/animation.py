"""Illusions shown: the picture turns from view to view, a hybrid goes away or its parts fade, all views side by side.

Holds frames; captions and sizes are in `captions.py`, a GIF is written by `pictures.write_gif`, a film by `mp4.py`. How
a view moves is the view's own business (`View.frame`), how parts leave is the filter's (`Split.leaving`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil

import torch
from PIL import Image

from diffkit.errors import UsageError
from diffkit.illusions.views.frames import smoothstep
from diffkit.pictures.captions import PAPER, SIDE, Label, enlarge, reduced
from diffkit.pictures.tensors import from_tensor, to_tensor
from diffkit.types import Filter, View

FRAMES = 24
HOLD = 18
MILLISECONDS = 50
FAR = 1 / 8  # the share of its size to which a picture shrinks whose parts are told apart by distance
LARGEST = {"gif": 512, "mp4": 1024}  # a GIF of 1024 px is about 25 MB and takes a minute to write


def frames_between(
    views: View | Sequence[View],
    image: Image.Image,
    captions: Sequence[str],
    *,
    frames: int = FRAMES,
    hold: int = HOLD,
    side: int = SIDE,
    largest: int | None = None,
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
        largest: And at most, whatever `side` is; a larger picture is reduced by Lanczos. See `LARGEST`.

    Raises:
        UsageError: Not one caption per view, fewer than two views, or too few frames.
    """
    several = [_or_none(view) for view in views] if isinstance(views, Sequence) else [None, views]
    _check(len(several), captions, frames, hold)
    stops = [_Stop(k, view) for k, view in enumerate(several)]
    return _round_trip(image, stops, captions, frames, hold, _Size(side, largest))


def parts_in_turn(
    split: Filter,
    views: Sequence[View],
    image: Image.Image,
    captions: Sequence[str],
    *,
    frames: int = 2 * FRAMES,
    hold: int = HOLD,
    side: int = SIDE,
    largest: int | None = None,
) -> list[Image.Image]:
    """Return an endless animation of a hybrid: from all of it to its first part, as its filter's parts are told apart.

    It goes away, its colours fade, its motion blurs it. On the way it turns from each part's view to the next one's.
    There are one view and one caption per part; `frames` are those of the way there, and of the way back; the rest
    is as for `frames_between`.

    Raises:
        UsageError: Not one view and one caption per part, or too few frames.
    """
    _check(split.parts, captions, frames, hold)
    if len(views) != split.parts:
        raise UsageError(f"an animation of {split.parts} parts has {len(views)} views; one for each")
    stops = _there_and_back([_or_none(view) for view in views][::-1])
    leaving = split.leaving if split.apart == "fading" else None
    far = FAR if split.apart == "distance" else None
    each = max(2, frames // (split.parts - 1))
    return _round_trip(image, stops, captions[::-1], each, hold, _Size(side, largest), far=far, leaving=leaving)


@dataclass(frozen=True)
class _Stop:
    """Where an animation rests: a caption, the view the picture is seen in, and how much of its way it has gone."""

    caption: int
    view: View | None = None
    gone: float = 0.0


@dataclass(frozen=True)
class _Size:
    """How large the picture is in the frames: at least and at most."""

    side: int
    largest: int | None

    def grown(self, image: Image.Image) -> Image.Image:
        return enlarge(image, self.side, self.largest)


def _there_and_back(views: Sequence[View | None]) -> list[_Stop]:
    """Evenly spaced stops from near to far, and between them again on the way back."""
    there = [_Stop(k, view, k / (len(views) - 1)) for k, view in enumerate(views)]
    return there + there[-2:0:-1]


def _round_trip(
    image: Image.Image,
    stops: Sequence[_Stop],
    captions: Sequence[str],
    frames: int,
    hold: int,
    size: _Size,
    *,
    far: float | None = None,
    leaving: Callable[[torch.Tensor, float], torch.Tensor] | None = None,
) -> list[Image.Image]:
    """From stop to stop and back to the first, `frames` between each two."""
    small = reduced(image, size.largest)
    label = Label(captions, size.grown(small).width)

    def drawn(view: View | None, progress: float, gone: float) -> Image.Image:
        moving = view if progress > 0.0 else None
        keeps_size = moving is not None and not _may_be_small(moving, progress, image.width, small.width)
        picture = image if keeps_size else small
        if leaving is not None and gone:
            picture = from_tensor(leaving(to_tensor(picture), gone))[0]
        if moving is not None:
            picture = _seen(moving, picture, progress, size)
        picture = reduced(size.grown(picture), size.largest)
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


def _turning(here: View | None, there: View | None, share: float) -> tuple[View | None, float]:
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


def _check(count: int, captions: Sequence[str], frames: int, hold: int) -> None:
    if count < 2 or len(captions) != count:
        raise UsageError(f"an animation of {count} views has {len(captions)} captions; two views or more, one for each")
    if frames < 2 or hold < 0:
        raise UsageError(f"an animation of {frames} frames, held for {hold}: at least 2, and not below 0")


def _or_none(view: View) -> View | None:
    """None for the identity, which does not move."""
    return None if view.name == "identity" else view


def _fade(here: int, there: int, share: float) -> dict[int, float]:
    """The first caption goes in the first 40 % of the way, the next one comes in the last 40 %."""
    return {here: 1.0 - smoothstep(share / 0.4), there: smoothstep((share - 0.6) / 0.4)}


def _seen(view: View, image: Image.Image, progress: float, size: _Size) -> Image.Image:
    """The picture in a view, or on its way; turned after enlarging, which is smoother, where it is the same view.

    On the way nearly the same will do.
    """
    large = size.grown(image)
    wrong = _nearly(image.width) if progress < 1.0 else 1e-6
    if _wrong_when_large(view, image.width, large.width // image.width) <= wrong:
        return view.frame(large, progress)
    return size.grown(view.frame(image, progress))


def _may_be_small(view: View, progress: float, size: int, small: int) -> bool:
    """Whether a picture may be reduced before it is turned: on its way, where that is nearly the same view."""
    return size == small or (progress < 1.0 and _wrong_when_small(view, size, small) <= _nearly(small))


def nearly_same_when_larger(view: View, size: int, factor: int) -> bool:
    """Whether a view of a picture that is `factor` times larger is, but for a pixel or two, the view enlarged."""
    return _wrong_when_large(view, size, factor) <= min(_nearly(size), 0.2)  # of few pixels two are much


def _nearly(size: int) -> float:
    """Two pixels on average: cut edges, rounded shifts. A permutation of single pixels is far from it."""
    return 4.0 / size


@lru_cache(maxsize=64)
def _wrong_when_large(view: View, size: int, factor: int) -> float:
    return _wrong(view, size, lambda x: x.repeat_interleave(factor, -1).repeat_interleave(factor, -2))


@lru_cache(maxsize=64)
def _wrong_when_small(view: View, size: int, small: int) -> float:
    return _wrong(view, size, lambda x: torch.nn.functional.interpolate(x, (small, small), mode="area"))


def _wrong(view: View, size: int, resized: Callable[[torch.Tensor], torch.Tensor]) -> float:
    """How far a view of the resized picture is from the resized view: the mean error of a map of coordinates.

    The coordinates run from -1 to 1; infinite where the view refuses the other size.
    """
    line = torch.linspace(-1, 1, size)
    map_ = torch.stack([line.expand(size, size), line[:, None].expand(size, size), torch.ones(size, size)])[None]
    try:
        return float((view.apply(resized(map_)) - resized(view.apply(map_))).abs().mean())
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
