"""What a course's report draws: prompts that the model understands, or its classes.

The courses' own prompts are for large models. The model inside the package knows 56 words, so it has prompts of its
own that do the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffkit.errors import UsageError
from diffkit.models.bundled import BUNDLED

if TYPE_CHECKING:
    from diffkit.types import ModelInfo

Pair = tuple[str, str]


@dataclass(frozen=True)
class Words:
    """Prompts or classes, by what they are for.

    Attributes:
        several: Three different ones.
        plain: What says no more than "a picture"; None for nothing at all.
        edits: What pictures are turned into.
        flips: Pairs that are one another turned upside down in a mirror.
        turns: Pairs that are one another by half a turn.
        others: Pairs, and the further views that they suit.
        hybrids: What is seen from afar, and from near.
        logo: Something of one's own.
    """

    several: tuple[str, ...]
    plain: str | None
    edits: tuple[str, ...]
    flips: tuple[Pair, ...]
    turns: tuple[Pair, ...]
    others: tuple[tuple[str, Pair], ...]
    hybrids: tuple[Pair, ...]
    logo: str


SMALL = Words(
    several=("a red heart", "a handwritten three", "the letter R"),
    plain=None,
    edits=("a green tree", "the letter K", "an orange star"),
    flips=(
        ("the letter M", "the letter W"),
        ("the letter A", "the letter V"),
        ("a handwritten two", "a handwritten five"),
    ),
    turns=(("a handwritten six", "a handwritten nine"), ("the letter M", "the letter W")),
    others=(("rotate_cw", ("the letter Z", "the letter N")), ("rotate_ccw", ("the letter C", "the letter U"))),
    hybrids=(
        ("a sign on a red heart", "the letter K on a shape"),
        ("a sign on a blue star", "the letter E on a shape"),
        ("a sign on a green tree", "the letter R on a shape"),
    ),
    logo="the letter K on an orange disc",
)
_OLD, _FIRE = "an oil painting of an old man", "an oil painting of people around a campfire"
_VILLAGE, _HORSE = "an oil painting of a mountain village", "an oil painting of a horse"
LARGE = Words(
    several=("a rocket ship", _VILLAGE, "a photo of a dog"),
    plain="a high quality photo",
    edits=("a rocket ship", "a pencil", "a photo of a dog"),
    flips=((_FIRE, _OLD), (_VILLAGE, _HORSE), ("a lithograph of a waterfall", "a lithograph of a rabbit")),
    turns=((_OLD, _FIRE), (_VILLAGE, _HORSE)),
    others=(("rotate_cw", (_VILLAGE, _HORSE)), ("jigsaw", ("an oil painting of a cat", "an oil painting of a dog"))),
    hybrids=(
        ("a lithograph of a skull", "a lithograph of waterfalls"),
        ("a lithograph of a panda", "a lithograph of flowers"),
        ("a lithograph of a cat", "a lithograph of a forest"),
    ),
    logo="a logo of a fox, flat vector art",
)


def words_for(info: ModelInfo, own: Sequence[str] = ()) -> Words:
    """Return what a model can draw.

    Args:
        info: The model.
        own: The user's prompts or classes: three or more do for everything, in turn.

    Raises:
        UsageError: Fewer than two of one's own, or some for an unconditional model.
    """
    if own and info.conditioning == "none":
        raise UsageError(f"`prompts`: {info.id} is unconditional", "Leave them out.")
    if len(own) == 1:
        raise UsageError("`prompts` was given once; pairs are drawn of them", "Give two or more.")
    if own:
        return _of(list(own), None if not info.text or info.id == BUNDLED else LARGE.plain)
    if info.text:
        small = info.id == BUNDLED or info.vocabulary is not None
        return SMALL if small else LARGE
    classes = list(info.classes)
    if not classes:
        return _of(["", ""], None)
    if {"6", "9"} <= set(classes):
        classes = ["6", "9", *(name for name in classes if name not in ("6", "9"))]
    return _of(classes, None)


def _of(words: list[str], plain: str | None) -> Words:
    """Words in turn; pairs are neighbours."""
    turn = [words[k % len(words)] for k in range(8)]
    pairs = tuple((turn[k], turn[k + 1]) for k in (0, 2, 4))
    return Words(
        several=tuple(dict.fromkeys(turn[:3])), plain=plain, edits=tuple(turn[1:4]), flips=pairs, turns=pairs[:2],
        others=(("rotate_cw", pairs[0]), ("rotate_ccw", pairs[1])), hybrids=pairs, logo=turn[-1],
    )  # fmt: skip
