"""What a picture of the dataset `glyphs` shows, and the closed language in which its captions say so.

Only words live here: `caption` and `parse` are each other's inverse up to the choice of words, and `captions` lists all
there are. Nothing is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from diffkit.data.glyphs.fonts import LETTERS

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
GLYPHS = (*DIGITS, *LETTERS)
SHAPES = ("disc", "triangle", "square", "star", "heart", "cross", "house", "tree")
INKS = ("black", "red", "blue", "green", "orange")
ANY_SHAPE, ANY_GLYPH = "shape", "sign"  # what captions call the part that they leave open
HANDWRITTEN = "handwritten"


@dataclass(frozen=True)
class Subject:
    """What is in one picture.

    Attributes:
        glyph: A word of `GLYPHS`, or None for a shape alone; `ANY_GLYPH` where a caption leaves it open.
        ink: The glyph's colour, a word of `INKS`; None where there is no glyph or the caption leaves it open.
        shape: A word of `SHAPES`, or None for a glyph on paper; `ANY_SHAPE` where a caption leaves it open.
        ground: The shape's colour, a word of `INKS`; None where there is no shape or the caption leaves it open.
    """

    glyph: str | None = None
    ink: str | None = None
    shape: str | None = None
    ground: str | None = None


def caption(
    subject: Subject, *, name_black: bool = False, handwritten: bool = True, open_part: str | None = None
) -> str:
    """Say what a picture shows.

    Args:
        subject: The picture's.
        name_black: Say "black" where the ink is; it goes without saying.
        handwritten: Say of a digit that it is handwritten.
        open_part: For a glyph on a shape, what to leave open: "glyph" ("a sign on a red disc"), "shape" ("the letter
            A on a shape") or None.
    """
    if subject.glyph is None:
        assert subject.shape is not None
        return _noun(subject.shape, subject.ground, name_black)
    if open_part == "glyph":
        front = f"a {ANY_GLYPH}"
    elif subject.glyph in LETTERS:
        words = [*_colour(subject.ink, name_black), "letter", subject.glyph]
        front = f"the {' '.join(words)}"
    else:
        front = _noun(f"{HANDWRITTEN} {subject.glyph}" if handwritten else subject.glyph, subject.ink, name_black)
    if subject.shape is None:
        return front
    back = f"a {ANY_SHAPE}" if open_part == "shape" else _noun(subject.shape, subject.ground, name_black)
    return f"{front} on {back}"


def _colour(ink: str | None, name_black: bool) -> list[str]:
    return [] if ink is None or (ink == "black" and not name_black) else [ink]


def _noun(noun: str, colour: str | None, name_black: bool) -> str:
    words = " ".join([*_colour(colour, name_black), noun])
    return f"{'an' if words[0] in 'aeiou' and not words.startswith('one') else 'a'} {words}"


def subjects() -> Iterator[Subject]:
    """Every subject there is: glyphs and shapes in every ink, and black glyphs on shapes of the other inks."""
    for glyph in GLYPHS:
        for ink in INKS:
            yield Subject(glyph, ink)
    for shape in SHAPES:
        for ink in INKS:
            yield Subject(shape=shape, ground=ink)
    for glyph in GLYPHS:
        for shape in SHAPES:
            for ink in INKS[1:]:
                yield Subject(glyph, "black", shape, ink)


@lru_cache(maxsize=1)
def _meanings() -> dict[str, Subject]:
    """Every caption with what it promises; parts that it leaves open are `ANY_SHAPE`, `ANY_GLYPH` and None."""
    found: dict[str, Subject] = {}
    for subject in subjects():
        both = subject.glyph is not None and subject.shape is not None
        for open_part in (None, "glyph", "shape") if both else (None,):
            meaning = subject
            if open_part == "glyph":
                meaning = Subject(ANY_GLYPH, None, subject.shape, subject.ground)
            elif open_part == "shape":
                meaning = Subject(subject.glyph, subject.ink, ANY_SHAPE, None)
            for black in (False, True):
                for hand in (True, False):
                    text = caption(subject, name_black=black, handwritten=hand, open_part=open_part)
                    assert found.setdefault(text, meaning) == meaning, text
    return found


def captions() -> list[str]:
    """Every caption that `glyphs` can have, in a fixed order."""
    return list(_meanings())


def vocabulary() -> list[str]:
    """Every word of `captions`, sorted, lower case first."""
    return sorted({word for text in captions() for word in text.split()}, key=lambda word: (word.isupper(), word))


def parse(text: str) -> Subject:
    """Return what a caption promises; capitals and white space do not count, except that a letter may be either.

    Raises:
        KeyError: No caption of the dataset.
    """
    words = text.split()
    exact = " ".join(words)
    if exact in _meanings():
        return _meanings()[exact]
    lowered = [word.lower() for word in words]
    for k in range(1, len(lowered)):
        if lowered[k - 1] == "letter":
            lowered[k] = lowered[k].upper()
    return _meanings()[" ".join(lowered)]
