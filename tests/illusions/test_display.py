from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffkit.illusions.composition import Composition
from diffkit.illusions.display import Display, captions
from diffkit.illusions.filters import parse_filter
from diffkit.types import View
from tests.support.illusions import FLIP, IDENTITY, anagram, plainly, views

PICTURE = Image.linear_gradient("L").resize((64, 64)).convert("RGB")


def test_captions_say_prompt_part_and_view() -> None:
    assert captions(anagram("identity", "flip"), ["a dog", "a cat"]) == ["a dog", "a cat (flip)"]
    parts = Composition((FLIP, IDENTITY), parse_filter("grey_colour"))
    assert captions(parts, ["a dog", "a cat"]) == ["a dog (grey, flip)", "a cat (colour)"]


@pytest.mark.parametrize("fixed", [0, 1])
def test_a_reference_is_shown_in_its_place(fixed: int) -> None:
    split = parse_filter("low_high")
    shown = Display.of(Composition((FLIP,), split, reference=torch.zeros(1, 3, 8, 8), fixed=fixed), ["a dog"])
    assert shown.captions[fixed] == f"the reference ({split.part_names[fixed]})"
    assert shown.captions[1 - fixed] == f"a dog ({split.part_names[1 - fixed]}, flip)"
    if fixed:
        assert len(shown.frames(PICTURE)) == 2 * (18 + 48)


@pytest.mark.parametrize(
    ("split", "names", "seconds"),
    [
        (None, ("identity", "flip", "negate"), 6.3),
        ("triple", ("identity", "identity", "identity"), 8.4),
        ("grey_colour", ("identity", "rotate_180"), 6.6),
    ],
)
def test_animations_last_as_long_as_there_is_to_see(
    tmp_path: Path, split: str | None, names: Sequence[str], seconds: float
) -> None:
    shown = Display.of(Composition(views(*names), split and parse_filter(split)), "abc"[: len(names)])
    path = shown.write_animation("gif", PICTURE, tmp_path / "x.png")
    assert path == tmp_path / "x-views.gif"
    total = 0
    with Image.open(path) as film:
        assert film.info["loop"] == 0
        for k in range(film.n_frames):
            film.seek(k)
            total += film.info["duration"]
    assert total == pytest.approx(1000 * seconds)


def test_a_strip_has_a_cell_for_every_part() -> None:
    one, other = Display.of(plainly(3, split=parse_filter("triple")), "abc").strips(torch.zeros(2, 3, 64, 64))
    assert one.size == other.size
    assert one.width == 3 * (192 + 6) + 6


@pytest.mark.parametrize(("kind", "side"), [("gif", 512), ("mp4", 1024)])
def test_animations_have_a_largest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, side: int) -> None:
    widths: list[int] = []
    monkeypatch.setattr("diffkit.illusions.display.write_gif", lambda path, frames, **_: widths.append(frames[0].width))
    monkeypatch.setattr("diffkit.pictures.mp4.write_mp4", lambda path, frames, **_: widths.append(frames[0].width))
    shown = Display.of(anagram("identity", "negate"), "ab")
    for size in (1100, 400):
        shown.write_animation(kind, PICTURE.resize((size, size)), tmp_path / "x.png")
    assert widths == [side, 400]


def test_a_view_of_no_weight_is_not_shown() -> None:
    three = Display.of(anagram("identity", "flip", "negate", weights=(1.0, 0.0, 3.0)), "abc")
    two = Display.of(anagram("identity", "negate"), "ac")
    images = torch.linspace(-1, 1, 64 * 64).reshape(1, 1, 64, 64).expand(1, 3, 64, 64)
    assert three.strips(images)[0].tobytes() == two.strips(images)[0].tobytes()
    frames = [[frame.tobytes() for frame in shown.frames(PICTURE)] for shown in (three, two)]
    assert frames[0] == frames[1]


@pytest.mark.parametrize("view", [IDENTITY, FLIP])
def test_of_one_view_alone_there_is_still_something_to_show(view: View) -> None:
    shown = Display.of(Composition((view, *views("negate")), weights=(1.0, 0.0)), "ab")
    assert shown.strips(torch.zeros(1, 3, 64, 64))[0].width == 192 + 2 * 6
    assert len(shown.frames(PICTURE)) == 2 * (18 + 24)


def test_oblong_pictures_are_shown_side_by_side_and_moving() -> None:
    shown = Display.of(anagram("identity", "rotate_180"), "ab")
    (strip,) = shown.strips(torch.zeros(1, 3, 40, 64))
    assert strip.width == 2 * (192 + 6) + 6
    assert {frame.width for frame in shown.frames(PICTURE.crop((0, 0, 64, 40)))} == {384}
