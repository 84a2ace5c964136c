from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffkit.errors import UsageError
from diffkit.images import from_tensor
from diffkit.pictures import write_gif
from diffkit.tasks import animate
from diffkit.tasks.animate import enlarge, frames_between, smoothstep, strip, write_mp4, zoom_out
from diffkit.views import parse_view


def picture(size: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    noise = torch.rand(1, 3 if mode == "RGB" else 1, size, size, generator=torch.Generator().manual_seed(seed))
    return from_tensor(noise * 2 - 1)[0]


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
        sheet = strip([picture(8)], [text], side=200, gap=0)
        rows = np.flatnonzero(array(sheet)[200:].min(axis=(1, 2)) < 200)
        columns = np.flatnonzero(array(sheet)[200:].min(axis=(0, 2)) < 200)
        assert rows.max() < sheet.height - 200 - 1  # nothing touches the edge
        assert columns.min() >= 2
        assert columns.max() < sheet.width - 2
        heights.append(sheet.height)
    assert heights[0] == heights[1] == heights[3] < heights[2]


def test_the_zoom_shrinks_in_the_middle_of_white_and_comes_back() -> None:
    image = Image.new("L", (48, 48), 0)
    frames = zoom_out(image, ["near", "far"], frames=10, hold=2, side=48, far=1 / 8)
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
    far = inside(zoom_out(image, ["", ""], frames=4, hold=1, side=64, far=1 / 8)[5], 64)[28:36, 28:36, 0]
    assert np.abs(far[2:-2, 1:3] - 64).max() < 8
    assert np.abs(far[2:-2, 5:7] - 191).max() < 8


def test_strip_puts_views_side_by_side() -> None:
    views = [picture(16, seed=1), picture(16, "L", seed=2)]
    sheet = strip(views, ["one", "two"], side=32, gap=5)
    assert sheet.width == 2 * (32 + 5) + 5
    for k, view in enumerate(views):
        left = 5 + 37 * k
        assert (array(sheet)[5:37, left : left + 32] == array(enlarge(view, 32))).all()


def test_errors_name_what_is_wrong() -> None:
    image, view = picture(8), parse_view("flip")
    with pytest.raises(UsageError, match="2 views has 1 captions"):
        frames_between(view, image, ["a"])
    with pytest.raises(UsageError, match="1 frames"):
        frames_between(view, image, ["a", "b"], frames=1)
    with pytest.raises(UsageError, match="1 views"):
        frames_between([view], image, ["a"])
    with pytest.raises(UsageError, match=r"zoom to 1\.5"):
        zoom_out(image, ["a", "b"], far=1.5)
    with pytest.raises(UsageError, match="strip of 1"):
        strip([image], [])


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
    imageio = pytest.importorskip("imageio.v2")
    pytest.importorskip("imageio_ffmpeg")
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
        animate.need_mp4()
    assert "diffkit[video]" in caught.value.hint
    with pytest.raises(UsageError, match="imageio_ffmpeg"):
        write_mp4(tmp_path / "x.mp4", [picture(8)])
    assert "imageio" not in sys.modules or not list(tmp_path.iterdir())
