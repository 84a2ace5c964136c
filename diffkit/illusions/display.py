"""Finished illusions made ready to be looked at: all views side by side, and animations between them.

Holds what is shown of an illusion and under which words; how frames are made is in `animate.py`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from PIL import Image
from torch import Tensor

from diffkit.illusions import animation as animate
from diffkit.illusions.drawing import Illusion, seen
from diffkit.illusions.views import parse_view
from diffkit.pictures import mp4
from diffkit.pictures.captions import reduced, strip
from diffkit.pictures.files import write_gif
from diffkit.pictures.images import from_tensor

REFERENCE = "the reference"
_SMALL, _LARGE = 160, 320


def captions(illusion: Illusion) -> list[str]:
    """Return what is written under each view or part: the prompt without the style, and how it is seen."""
    found = []
    for part, label, view in zip(illusion.parts(), illusion.prompts, illusion.views, strict=True):
        names = getattr(illusion.split, "part_names", ())
        how = [names[part]] if names else []
        how += [view.spec] if view.spec != "identity" else []
        found.append(f"{label} ({', '.join(how)})" if how else label)
    return found


def with_reference(illusion: Illusion) -> Illusion:
    """Return an illusion, to be shown only, whose given part has a name and a view like those with a prompt."""
    if illusion.reference is None:
        return illusion
    words, views = list(illusion.prompts), list(illusion.views)
    words.insert(illusion.fixed, REFERENCE)
    views.insert(illusion.fixed, parse_view("identity"))
    return Illusion(tuple(words), tuple(views), illusion.split)


def strips(illusion: Illusion, images: Tensor) -> list[Image.Image]:
    """Return one strip per picture: what each prompt's judge sees, with its caption; views of weight 0 are left out.

    Args:
        illusion: What they show.
        images: (B, C, H, W) in [-1, 1].
    """
    illusion = _looked_at(illusion)
    words = captions(illusion)
    views = [from_tensor(part.clamp(-1, 1)) for part in seen(illusion, images)]
    return [strip([reduced(view[k], _LARGE) for view in views], words, side=_SMALL, gap=6) for k in range(len(images))]


def _looked_at(illusion: Illusion) -> Illusion:
    """The illusion as it is shown: with the reference, and without views of weight 0, for which nothing was drawn."""
    if illusion.weights is None or all(illusion.weights):
        return with_reference(illusion)
    kept = [row for row in zip(illusion.prompts, illusion.views, illusion.weights, strict=True) if row[2]]
    prompts, views, weights = zip(*kept, strict=True)
    return replace(illusion, prompts=prompts, views=views, weights=weights)


def moving(illusion: Illusion, picture: Image.Image, largest: int | None = None) -> list[Image.Image]:
    """Return the animation of a finished picture: from view to view, or from all of it to the first part of a split.

    Args:
        illusion: What it shows; views of weight 0 are left out.
        picture: The picture as it is, square.
        largest: Its size in the frames at most, see `animate.LARGEST`.
    """
    illusion = _looked_at(illusion)
    words, views = captions(illusion), illusion.views
    if illusion.split is not None:
        return animate.parts_in_turn(illusion.split, views, picture, words, largest=largest)
    if len(views) == 1:  # of which the picture as it is makes two
        return animate.frames_between(views[0], picture, ["", *words], largest=largest)
    return animate.frames_between(views, picture, words, largest=largest)


def write_moving(illusion: Illusion, kind: str, written: list[tuple[Path, Image.Image]]) -> dict[str, list[str]]:
    """Write an animation beside each picture: `NAME-views.gif` or `.mp4`.

    Pictures larger than 512 px in a GIF, or than 1024 in an MP4, are reduced: files of tens of MB help nobody.

    Raises:
        UsageError: An MP4, and the extra for it is not installed.
    """
    paths = []
    for path, picture in written:
        target = path.with_name(f"{path.stem}-views.{kind}")
        frames = moving(illusion, picture, animate.LARGEST[kind])
        if kind == "gif":
            write_gif(target, frames, milliseconds=animate.MILLISECONDS, hold=animate.MILLISECONDS)
        else:
            mp4.write_mp4(target, frames, milliseconds=animate.MILLISECONDS)
        paths.append(str(target))
    return {"animations": paths}
