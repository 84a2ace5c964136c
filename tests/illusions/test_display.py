from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from diffkit.illusions import display as exhibit
from diffkit.illusions.display import captions, moving, strips, with_reference, write_moving
from diffkit.illusions.drawing import Illusion
from diffkit.illusions.filters import parse_filter
from diffkit.illusions.views import parse_view
from diffkit.types import View

IDENTITY, FLIP = parse_view("identity"), parse_view("flip")
PICTURE = Image.linear_gradient("L").resize((64, 64)).convert("RGB")


def test_captions_say_prompt_part_and_view_but_not_the_style() -> None:
    anagram = Illusion(("a dog", "a cat"), (IDENTITY, FLIP), style="an oil painting of")
    assert captions(anagram) == ["a dog", "a cat (flip)"]
    hybrid = Illusion(("a dog", "a cat"), (FLIP, IDENTITY), parse_filter("grey_colour"))
    assert captions(hybrid) == ["a dog (grey, flip)", "a cat (colour)"]


@pytest.mark.parametrize("fixed", [0, 1])
def test_a_reference_is_shown_in_its_place(fixed: int) -> None:
    split = parse_filter("low_high")
    told = Illusion(("a dog",), (FLIP,), split, reference=torch.zeros(1, 3, 8, 8), fixed=fixed)
    words = captions(with_reference(told))
    assert words[fixed] == f"the reference ({split.part_names[fixed]})"
    assert words[1 - fixed] == f"a dog ({split.part_names[1 - fixed]}, flip)"
    if fixed:
        assert len(moving(told, PICTURE)) == 2 * (18 + 48)


@pytest.mark.parametrize(
    ("split", "views", "seconds"),
    [
        (None, ("identity", "flip", "negate"), 6.3),
        ("triple", ("identity", "identity", "identity"), 8.4),
        ("grey_colour", ("identity", "rotate_180"), 6.6),
    ],
)
def test_animations_last_as_long_as_there_is_to_see(
    tmp_path: Path, split: str | None, views: tuple[str, ...], seconds: float
) -> None:
    told = Illusion(tuple("abc"[: len(views)]), tuple(map(parse_view, views)), split and parse_filter(split))
    (path,) = write_moving(told, "gif", [(tmp_path / "x.png", PICTURE)])["animations"]
    assert Path(path).name == "x-views.gif"
    total = 0
    with Image.open(path) as film:
        assert film.info["loop"] == 0
        for k in range(film.n_frames):
            film.seek(k)
            total += film.info["duration"]
    assert total == pytest.approx(1000 * seconds)


def test_a_strip_has_a_cell_for_every_part() -> None:
    told = Illusion(("a", "b", "c"), split=parse_filter("triple"))
    one, other = strips(told, torch.zeros(2, 3, 64, 64))
    assert one.size == other.size
    assert one.width == 3 * (192 + 6) + 6


@pytest.mark.parametrize(("kind", "side"), [("gif", 512), ("mp4", 1024)])
def test_films_have_a_largest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, side: int) -> None:
    sizes: list[tuple[int, int]] = []
    monkeypatch.setattr(exhibit, "write_gif", lambda path, frames, **_: sizes.append(frames[0].size))
    monkeypatch.setattr(exhibit.mp4, "write_mp4", lambda path, frames, **_: sizes.append(frames[0].size))
    told = Illusion(("a", "b"), (IDENTITY, parse_view("negate")))
    large, small = PICTURE.resize((1100, 1100)), PICTURE.resize((400, 400))
    write_moving(told, kind, [(tmp_path / "x.png", large), (tmp_path / "y.png", small)])
    assert [width for width, _ in sizes] == [side, 400]


def test_a_view_of_no_weight_is_not_shown() -> None:
    three = Illusion(("a", "b", "c"), (IDENTITY, FLIP, parse_view("negate")), weights=(1.0, 0.0, 3.0))
    two = Illusion(("a", "c"), (IDENTITY, parse_view("negate")))
    images = torch.linspace(-1, 1, 64 * 64).reshape(1, 1, 64, 64).expand(1, 3, 64, 64)
    assert strips(three, images)[0].tobytes() == strips(two, images)[0].tobytes()
    frames = [[frame.tobytes() for frame in moving(told, PICTURE)] for told in (three, two)]
    assert frames[0] == frames[1]


@pytest.mark.parametrize("view", [IDENTITY, FLIP])
def test_of_one_view_alone_there_is_still_something_to_show(view: View) -> None:
    told = Illusion(("a", "b"), (view, parse_view("negate")), weights=(1.0, 0.0))
    assert strips(told, torch.zeros(1, 3, 64, 64))[0].width == 192 + 2 * 6
    assert len(moving(told, PICTURE)) == 2 * (18 + 24)
