from __future__ import annotations

from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from PIL import Image

from diffkit.errors import UsageError
from diffkit.illusions.animation import frames_between, parts_in_turn
from diffkit.illusions.filters import FILTERS, parse_filter
from diffkit.illusions.views import Look, parse_view
from diffkit.illusions.views.frames import smoothstep
from diffkit.pictures.animation import write_gif
from diffkit.pictures.captions import enlarge, side_by_side
from diffkit.pictures.mp4 import need_mp4, write_mp4
from diffkit.pictures.tensors import from_tensor, to_tensor


def picture(size: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    noise = torch.rand(1, 3 if mode == "RGB" else 1, size, size, generator=torch.Generator().manual_seed(seed))
    return from_tensor(noise * 2 - 1)[0]


def smooth(size: int) -> Image.Image:
    """A red to blue slope with a dark bar: no two frames of anything that moves it are alike."""
    x = torch.linspace(-1, 1, size)
    colours = torch.stack([x.expand(size, size), -x.expand(size, size) * 0.5, x[:, None].expand(size, size)])[None]
    colours[..., size // 4 : size // 2, size // 8 : size // 2] = -0.9
    return from_tensor(colours)[0]


def array(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).astype(int)


def inside(frame: Image.Image, side: int) -> np.ndarray:
    return array(frame)[:side]


def ink(frame: Image.Image, side: int) -> float:
    """How dark the caption is at its darkest."""
    return 255.0 - float(array(frame)[side:].min())


def test_the_ease_is_at_rest_at_both_ends_and_never_goes_back() -> None:
    values = [smoothstep(k / 100) for k in range(-10, 111)]
    assert (values[10], values[60], values[110]) == (0.0, 0.5, 1.0)
    assert values == sorted(values)
    assert max(values[11], 1.0 - values[109]) < 0.001  # ten times slower than in the middle
    assert values[61] - values[60] > 0.0149


def test_tiny_pictures_are_enlarged_pixel_by_pixel_and_large_ones_left_alone() -> None:
    tiny, middle, large = picture(8, "L"), picture(64), picture(400)
    assert enlarge(tiny, 20).size == (24, 24)
    assert (
        array(enlarge(tiny, 20)) == np.kron(array(tiny).transpose(2, 0, 1), np.ones((3, 3))).transpose(1, 2, 0)
    ).all()
    assert enlarge(middle).size == (384, 384)
    assert len(np.unique(array(enlarge(middle)).reshape(-1, 3), axis=0)) > 2 * 64 * 64  # smooth between the pixels
    assert (array(enlarge(large)) == array(large)).all()


@pytest.mark.parametrize("name", ["rotate_180", "flip", "negate", "skew:1.5", "pixel_permute"])
@pytest.mark.parametrize("size", [8, 64])
def test_views_are_held_exactly_and_the_film_is_endless(name: str, size: int) -> None:
    view, image = parse_view(name), picture(size)
    frames = frames_between([parse_view("identity"), view], image, ["six", "nine"], frames=6, hold=2, side=64)
    assert len(frames) == 2 * (2 + 6)
    assert len({frame.size for frame in frames}) == 1
    side = 64
    assert (inside(frames[0], side) == array(enlarge(image, side))).all()
    assert (inside(frames[8], side) == array(enlarge(view.frame(image, 1.0), side))).all()
    assert array(frames[0]).tolist() == array(frames[1]).tolist()
    # There and back by the same way; the captions are each other's.
    for k in range(6):
        assert (inside(frames[2 + k], side) == inside(frames[15 - k], side)).all()
    moved = [np.abs(inside(frames[k + 1], side) - inside(frames[k], side)).mean() for k in range(1, 8)]
    assert min(moved) > 0
    assert not (inside(frames[2], side) == inside(frames[7], side)).all()


def test_one_view_means_from_the_picture_to_it() -> None:
    image, view, identity = picture(16), parse_view("flip"), parse_view("identity")
    one = frames_between(view, image, ["a", "b"], frames=3, hold=1, side=32)
    two = frames_between([identity, view], image, ["a", "b"], frames=3, hold=1, side=32)
    assert [f.tobytes() for f in one] == [f.tobytes() for f in two]


def test_three_views_pass_through_the_picture_as_it_is() -> None:
    image = picture(16)
    views = [parse_view(name) for name in ("rotate_cw", "negate", "identity")]
    frames = frames_between(views, image, ["a", "b", "c"], frames=9, hold=1, side=32)
    assert len(frames) == 3 * (1 + 9)
    for k, view in enumerate(views):
        assert (inside(frames[10 * k], 32) == array(enlarge(view.frame(image, 1.0), 32))).all()
    # Halfway from one turned view to another the picture stands as it is.
    assert (inside(frames[5], 32) == array(enlarge(image, 32))).all()


class Spy(Look):
    """A view that moves nothing and remembers how far it was asked to go."""

    name = "spy"

    def __init__(self) -> None:
        self.asked: list[float] = []

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def frame(self, image: Image.Image, progress: float) -> Image.Image:
        self.asked.append(progress)
        return image


def test_a_view_comes_to_rest_before_the_next_one_moves() -> None:
    """No jerk at the picture as it is, where one motion ends and another begins."""
    one, other = Spy(), Spy()
    frames_between([one, other], picture(8), ["a", "b"], frames=23, hold=1, side=8)
    goes, comes = one.asked[:12], other.asked[:12]  # held, then eleven frames; at rest; twelve, the last one held
    assert goes[0] == comes[-1] == 1.0
    assert goes == pytest.approx([1.0 - smoothstep(k / 12) for k in range(12)], abs=1e-9)
    assert comes == pytest.approx([smoothstep(k / 12) for k in range(1, 13)], abs=1e-9)


def test_of_two_equal_views_only_the_captions_change() -> None:
    image, view = picture(16), parse_view("rotate_cw")
    frames = frames_between([view, view], image, ["a", "b"], frames=3, hold=1, side=32)
    assert len({inside(frame, 32).tobytes() for frame in frames}) == 1
    assert len({frame.tobytes() for frame in frames}) > 3


def test_captions_fade_out_and_in() -> None:
    frames = frames_between(parse_view("flip"), picture(8), ["six", "nine"], frames=19, hold=1, side=64)
    dark = [ink(frame, 64) for frame in frames[:21]]
    assert min(dark[0], dark[20]) > 200
    assert dark[1:9] == sorted(dark[1:9], reverse=True)
    assert dark[9:12] == [0, 0, 0]
    assert dark[12:20] == sorted(dark[12:20])


def test_no_captions_no_strip_and_long_ones_are_wrapped_and_cut() -> None:
    plain = frames_between(parse_view("flip"), picture(8), ["", ""], frames=2, hold=1, side=64)
    assert plain[0].size == (64, 64)
    heights = []
    for text in ("a", "a word and another", "many words " * 20, "x" * 400):
        sheet = side_by_side([picture(8)], [text], side=200, gap=0)
        rows = np.flatnonzero(array(sheet)[200:].min(axis=(1, 2)) < 200)
        columns = np.flatnonzero(array(sheet)[200:].min(axis=(0, 2)) < 200)
        assert rows.max() < sheet.height - 200 - 1  # nothing touches the edge
        assert columns.min() >= 2
        assert columns.max() < sheet.width - 2
        heights.append(sheet.height)
    assert heights[0] == heights[1] == heights[3] < heights[2]


def zoom_out(image: Image.Image, captions: list[str], **more: Any) -> list[Image.Image]:
    """A hybrid seen from near and from afar, or from between, too."""
    split = parse_filter("low_high" if len(captions) == 2 else "triple")
    return parts_in_turn(split, [parse_view("identity")] * split.parts, image, captions[::-1], **more)


def test_the_zoom_shrinks_in_the_middle_of_white_and_comes_back() -> None:
    image = Image.new("L", (48, 48), 0)
    frames = zoom_out(image, ["near", "far"], frames=10, hold=2, side=48)
    assert len(frames) == 24
    dark = [(255.0 - inside(frame, 48)[..., 0]) / 255 for frame in frames]
    areas = [float(one.sum()) for one in dark]
    assert areas[0] == 48**2
    assert areas[12] == pytest.approx(6**2, rel=0.02)
    assert areas[2:12] == sorted(areas[2:12], reverse=True)
    # Eased evenly in the logarithm: halfway in time the side is the geometric mean.
    for k in range(1, 11):
        assert areas[1 + k] == pytest.approx((48 * (1 / 8) ** smoothstep(k / 11)) ** 2, rel=0.03)
        assert areas[1 + k] == areas[24 - k]
    axis = np.arange(48) - 23.5
    for one in dark:
        assert abs(float((one.sum(0) * axis).sum() / one.sum())) < 0.01
        assert abs(float((one.sum(1) * axis).sum() / one.sum())) < 0.01
    assert ink(frames[7], 48) == 0


def test_from_afar_the_fine_part_is_gone() -> None:
    x = torch.arange(64)
    fine = ((x[None] + x[:, None]) % 2 * 2 - 1).float() * 0.5
    coarse = torch.where(x < 32, -0.5, 0.5).expand(64, 64)
    image = from_tensor((coarse + fine)[None, None])[0]
    far = inside(zoom_out(image, ["", ""], frames=4, hold=1, side=64)[5], 64)[28:36, 28:36, 0]
    assert np.abs(far[2:-2, 1:3] - 64).max() < 8
    assert np.abs(far[2:-2, 5:7] - 191).max() < 8


def test_a_zoom_with_three_captions_rests_between_both_ways() -> None:
    image = Image.new("L", (64, 64), 0)
    frames = zoom_out(image, ["near", "", "far"], frames=8, hold=2, side=64)
    assert len(frames) == 4 * (2 + 4)
    areas = [float((255.0 - inside(frame, 64)[..., 0]).sum() / 255) for frame in frames]
    for place, wanted in ((0, 64), (6, 64 / 8**0.5), (12, 8), (18, 64 / 8**0.5)):
        assert areas[place] == areas[place + 1] == pytest.approx(wanted**2, rel=0.05)
    assert [ink(frames[place], 64) > 200 for place in (0, 6, 12, 18)] == [True, False, True, False]
    assert areas[2:12] == sorted(areas[2:12], reverse=True)
    assert areas[13:] == sorted(areas[13:])


@pytest.mark.parametrize("name", sorted(FILTERS))
def test_every_filter_has_its_way_to_the_first_part(name: str) -> None:
    split, image = parse_filter(name), smooth(64)
    views = [parse_view("identity")] * split.parts
    words = list("abc")[: split.parts]
    frames = parts_in_turn(split, views, image, words, frames=8, hold=1, side=64)
    legs = split.parts - 1
    assert len(frames) == 2 * legs * (1 + 8 // legs)
    half = len(frames) // 2
    assert (inside(frames[0], 64) == array(image)).all()
    assert ink(frames[0], 64) > 200
    for k in range(1, half):  # there and back by the same way, without a jump where it begins again
        assert (inside(frames[k], 64) == inside(frames[-k], 64)).all()
    if split.apart == "distance":
        shares = [inside(frame, 64)[0].min() == 255 for frame in frames[: half + 1]]  # white around what went away
        assert shares == sorted(shares)
        assert shares[-1]
    elif split.apart == "never":
        assert len({inside(frame, 64).tobytes() for frame in frames}) == 1
    else:
        first = array(from_tensor(split.leaving(to_tensor(image), 1.0))[0])
        assert (inside(frames[half], 64) == first).all()
        moved = [np.abs(inside(frame, 64) - inside(frames[0], 64)).mean() for frame in frames[: half + 1]]
        assert moved == sorted(moved)
        assert moved[-1] > moved[1] >= 0


def test_colour_fades_while_the_picture_turns_to_the_other_view() -> None:
    split, image = parse_filter("grey_colour"), picture(64)
    grey_view, colour_view = parse_view("flip"), parse_view("rotate_180")
    frames = parts_in_turn(split, [grey_view, colour_view], image, ["grey", "colour"], frames=10, hold=1, side=64)
    assert (inside(frames[0], 64) == array(colour_view.frame(image, 1.0))).all()
    far = inside(frames[11], 64)
    assert (far == array(grey_view.frame(from_tensor(split.part(to_tensor(image), 0))[0], 1.0))).all()
    spread = [(inside(frame, 64).max(-1) - inside(frame, 64).min(-1)).mean() for frame in frames[:12]]
    assert spread[11] == 0 < spread[8] < spread[3]


def test_each_part_needs_a_view_and_a_caption() -> None:
    split, view = parse_filter("low_high"), parse_view("identity")
    with pytest.raises(UsageError, match="2 views has 1 captions"):
        parts_in_turn(split, [view] * 2, picture(8), ["a"])
    with pytest.raises(UsageError, match="2 parts has 1 views"):
        parts_in_turn(split, [view], picture(8), ["a", "b"])


def test_strip_puts_views_side_by_side() -> None:
    views = [picture(16, seed=1), picture(16, "L", seed=2)]
    sheet = side_by_side(views, ["one", "two"], side=32, gap=5)
    assert sheet.width == 2 * (32 + 5) + 5
    for k, view in enumerate(views):
        left = 5 + 37 * k
        assert (array(sheet)[5:37, left : left + 32] == array(enlarge(view, 32))).all()


@pytest.mark.parametrize("name", ["rotate_180", "jigsaw", "pixel_permute", "negate"])
@pytest.mark.parametrize("size", [96, 80])
def test_large_pictures_are_reduced_and_views_held_as_reduced_from_the_whole(name: str, size: int) -> None:
    view, image = parse_view(name), smooth(size)
    frames = frames_between(view, image, ["", ""], frames=5, hold=1, side=32, largest=48)
    assert {frame.size for frame in frames} == {(48, 48)}
    assert (array(frames[0]) == array(image.resize((48, 48), Image.Resampling.LANCZOS))).all()
    assert (array(frames[6]) == array(view.frame(image, 1.0).resize((48, 48), Image.Resampling.LANCZOS))).all()
    whole = frames_between(view, image, ["", ""], frames=5, hold=1, side=32)
    if (name, size) == ("pixel_permute", 96):  # single pixels on their way are crisp, where two were made one
        return
    for some, one in zip(frames, whole, strict=True):
        far = np.abs(array(some) - array(one.resize((48, 48), Image.Resampling.LANCZOS))).mean()
        # 80 pixels are permuted otherwise than 48: they are turned first and reduced then.
        assert far == 0 if name == "pixel_permute" else far < 12


def test_zooms_and_parts_are_reduced_too() -> None:
    image, split = smooth(96), parse_filter("grey_colour")
    assert {frame.size for frame in zoom_out(image, ["", ""], frames=3, hold=1, side=32, largest=48)} == {(48, 48)}
    parts = parts_in_turn(split, [parse_view("flip")] * 2, image, ["", ""], frames=3, hold=1, side=32, largest=48)
    assert {frame.size for frame in parts} == {(48, 48)}


@pytest.mark.parametrize(("size", "shown"), [(300, 300), (180, 360), (256, 512), (400, 400), (8, 384)])
def test_small_pictures_are_not_enlarged_beyond_the_largest(size: int, shown: int) -> None:
    assert enlarge(picture(size), largest=512).size == (shown, shown)


@pytest.mark.parametrize("name", ["flip", "rotate_180", "negate"])
def test_oblong_pictures_move_in_views_that_need_no_square(name: str) -> None:
    view, image = parse_view(name), smooth(64).crop((0, 0, 64, 40))
    frames = frames_between(view, image, ["", ""], frames=4, hold=1, side=64)
    assert {frame.size for frame in frames} == {(64, 40)}
    assert (array(frames[0]) == array(image)).all()
    assert (array(frames[5]) == array(from_tensor(view.apply(to_tensor(image)))[0])).all()
    assert len({frame.tobytes() for frame in frames[:6]}) == 6


@pytest.mark.parametrize("size", [(160, 100), (100, 160), (128, 128)])
def test_half_a_turn_keeps_the_corners_of_any_picture_inside(size: tuple[int, int]) -> None:
    for progress in (0.1, 0.3, 0.5, 0.8):
        black = np.asarray(parse_view("rotate_180").frame(Image.new("L", size, 0), progress), dtype=float)
        ratio = max(size) / min(size)
        angle = min(180 * progress, 180 - 180 * progress, np.degrees(np.arctan(ratio)))
        larger = np.cos(np.radians(angle)) + ratio * np.sin(np.radians(angle))
        assert (1 - black / 255).sum() == pytest.approx(size[0] * size[1] / larger**2, rel=0.03)


def test_errors_name_what_is_wrong() -> None:
    image, view = picture(8), parse_view("flip")
    with pytest.raises(UsageError, match="2 views has 1 captions"):
        frames_between(view, image, ["a"])
    with pytest.raises(UsageError, match="1 frames"):
        frames_between(view, image, ["a", "b"], frames=1)
    with pytest.raises(UsageError, match="1 views"):
        frames_between([view], image, ["a"])
    with pytest.raises(UsageError, match="one caption for each, got 1 and 0"):
        side_by_side([image], [])


def test_a_gif_holds_the_ends(tmp_path: Path) -> None:
    frames = frames_between(parse_view("negate"), picture(8), ["six", "nine"], frames=4, hold=5, side=48)
    write_gif(tmp_path / "x.gif", frames, milliseconds=50, hold=50)
    with Image.open(tmp_path / "x.gif") as film:
        times = []
        for k in range(film.n_frames):
            film.seek(k)
            times.append(film.info["duration"])
    assert sum(times) == 50 * len(frames)
    assert times[0] == 5 * 50


def test_an_mp4_plays(tmp_path: Path) -> None:
    frames = frames_between(parse_view("flip"), picture(8, "L"), ["six", "nine"], frames=3, hold=2, side=33)
    path = tmp_path / "film.mp4"
    write_mp4(path, frames, milliseconds=50)
    assert path.read_bytes()[4:8] == b"ftyp"
    assert [p.name for p in tmp_path.iterdir()] == ["film.mp4"]
    with imageio.get_reader(path) as film:
        about, read = film.get_meta_data(), [np.asarray(frame).astype(int) for frame in film]
    assert (about["codec"], about["fps"]) == ("h264", 20.0)
    assert about["pix_fmt"].startswith("yuv420p")
    width, height = frames[0].size
    assert about["size"] == (width + width % 2, height + height % 2)
    assert len(read) == len(frames)
    # Colours are halved in resolution, brightness is not.
    error = np.abs(read[0][:height, :width].mean(-1) - array(frames[0]).mean(-1))
    assert error.mean() < 5


def test_without_the_extra_the_hint_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "imageio_ffmpeg" else found(name))
    with pytest.raises(UsageError, match="imageio_ffmpeg, not installed") as caught:
        need_mp4()
    assert "diffkit[video]" in caught.value.hint
    with pytest.raises(UsageError, match="imageio_ffmpeg"):
        write_mp4(tmp_path / "x.mp4", [picture(8)])
    assert not list(tmp_path.iterdir())
