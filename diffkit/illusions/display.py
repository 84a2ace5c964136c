"""Finished illusions made ready to be looked at: all views side by side, and animations between them.

Holds what is shown of an illusion and under which words; how frames are made is in `animation.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from diffkit.illusions import animation
from diffkit.illusions.composition import REFERENCE, Composition
from diffkit.illusions.views import parse_view
from diffkit.pictures import mp4
from diffkit.pictures.animation import write_gif
from diffkit.pictures.captions import reduced, side_by_side
from diffkit.pictures.tensors import from_tensor

_SMALL, _LARGE = 160, 320


@dataclass(frozen=True)
class Display:
    """A composition as it is shown: with the reference, and without views of weight 0, for which nothing was drawn.

    Attributes:
        composition: How the prompts share the picture.
        captions: What is written under each view or part: its prompt, and how it is seen.
    """

    composition: Composition
    captions: tuple[str, ...]

    @classmethod
    def of(cls, composition: Composition, prompts: Sequence[str]) -> Display:
        """Prepare a composition and its prompts, one per view, for being shown."""
        words, views, weights = list(prompts), list(composition.views), composition.weights
        if composition.reference is not None:
            words.insert(composition.fixed, REFERENCE)
            views.insert(composition.fixed, parse_view("identity"))
        elif weights is not None and not all(weights):
            kept = [row for row in zip(words, views, weights, strict=True) if row[2]]
            words, views = [row[0] for row in kept], [row[1] for row in kept]
        shown = Composition(tuple(views), composition.split)
        return cls(shown, tuple(captions(shown, words)))

    def strips(self, images: Tensor) -> list[Image.Image]:
        """Return one strip per picture: what each prompt's judge looks at, with its caption.

        Args:
            images: (B, C, H, W) in [-1, 1].
        """
        views = [from_tensor(part.clamp(-1, 1)) for part in self.composition.shown(images)]
        return [
            side_by_side([reduced(view[k], _LARGE) for view in views], self.captions, side=_SMALL, gap=6)
            for k in range(len(images))
        ]

    def frames(self, picture: Image.Image, largest: int | None = None) -> list[Image.Image]:
        """Return the animation of a finished picture: from view to view, or from all of it to a split's first part.

        Args:
            picture: The picture as it is, square.
            largest: Its size in the frames at most, see `animation.LARGEST`.
        """
        words, views = list(self.captions), self.composition.views
        if self.composition.split is not None:
            return animation.parts_in_turn(self.composition.split, views, picture, words, largest=largest)
        if len(views) == 1:  # of which the picture as it is makes two
            return animation.frames_between(views[0], picture, ["", *words], largest=largest)
        return animation.frames_between(views, picture, words, largest=largest)

    def write_animation(self, kind: str, picture: Image.Image, path: Path) -> Path:
        """Write an animation beside a picture's file: `NAME-views.gif` or `.mp4`; return where.

        Pictures larger than 512 px in a GIF, or than 1024 in an MP4, are reduced: files of tens of MB help nobody.

        Raises:
            UsageError: An MP4, and the extra for it is not installed.
        """
        target = path.with_name(f"{path.stem}-views.{kind}")
        frames = self.frames(picture, animation.LARGEST[kind])
        if kind == "gif":
            write_gif(target, frames, milliseconds=animation.MILLISECONDS, hold=animation.MILLISECONDS)
        else:
            mp4.write_mp4(target, frames, milliseconds=animation.MILLISECONDS)
        return target


def captions(composition: Composition, prompts: Sequence[str]) -> list[str]:
    """Return what is written under each view or part: the prompt, and how it is seen."""
    found = []
    for part, prompt, view in zip(composition.parts(), prompts, composition.views, strict=True):
        how = [composition.split.part_names[part]] if composition.split is not None else []
        how += [view.spec] if view.name != "identity" else []
        found.append(f"{prompt} ({', '.join(how)})" if how else prompt)
    return found
