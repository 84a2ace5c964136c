"""Finished illusions made ready to be looked at: all views side by side, and animations between them.

Holds what is shown of an illusion and under which words; how frames are made is in `animate.py`.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from torch import Tensor

from diffkit.images import from_tensor, resize
from diffkit.pictures import write_gif
from diffkit.tasks import animate, mp4
from diffkit.tasks.illusion import Illusion, seen
from diffkit.views import parse_view

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
    """Return one strip per picture: what each prompt's judge sees, with its caption.

    Args:
        illusion: What they show.
        images: (B, C, H, W) in [-1, 1].
    """
    illusion = with_reference(illusion)
    words = captions(illusion)
    views = [from_tensor(part.clamp(-1, 1)) for part in seen(illusion, images)]
    return [
        animate.strip([_no_larger(view[k], _LARGE) for view in views], words, side=_SMALL, gap=6)
        for k in range(len(images))
    ]


def _no_larger(image: Image.Image, side: int) -> Image.Image:
    return image if max(image.size) <= side else resize(image, side, side)


def moving(illusion: Illusion, picture: Image.Image) -> list[Image.Image]:
    """Return the animation of a finished picture: from view to view, or from all of it to the first part of a split."""
    illusion = with_reference(illusion)
    words = captions(illusion)
    if illusion.split is None:
        return animate.frames_between(illusion.views, picture, words)
    return animate.parts_in_turn(illusion.split, illusion.views, picture, words)


def write_moving(illusion: Illusion, kind: str, written: list[tuple[Path, Image.Image]]) -> dict[str, list[str]]:
    """Write an animation beside each picture: `NAME-views.gif` or `.mp4`.

    Raises:
        UsageError: An MP4, and the extra for it is not installed.
    """
    paths = []
    for path, picture in written:
        target = path.with_name(f"{path.stem}-views.{kind}")
        frames = moving(illusion, picture)
        if kind == "gif":
            write_gif(target, frames, milliseconds=animate.MILLISECONDS, hold=animate.MILLISECONDS)
        else:
            mp4.write_mp4(target, frames, milliseconds=animate.MILLISECONDS)
        paths.append(str(target))
    return {"animations": paths}
