"""How views move in animations."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from diffkit.illusions.overview import example
from diffkit.illusions.views import Look, parse_view
from diffkit.pictures.tensors import from_tensor, to_tensor


def blob(x: int, y: int, size: int = 96, radius: int = 3) -> Image.Image:
    """Black on white, a spot of 6 x 6 pixels whose middle is (x, y), counted between pixels."""
    image = Image.new("L", (size, size), 255)
    image.paste(0, (x - radius, y - radius, x + radius, y + radius))
    return image


def middle(image: Image.Image) -> tuple[float, float, float]:
    """Where the black is, between pixels, and how much of it there is."""
    ink = 1.0 - np.asarray(image, dtype=np.float64) / 255
    y, x = np.indices(ink.shape) + 0.5
    return float((x * ink).sum() / ink.sum()), float((y * ink).sum() / ink.sum()), float(ink.sum())


class TestFrames:
    @pytest.mark.parametrize("mode", ["L", "RGB"])
    def test_from_the_picture_itself_to_what_apply_makes(self, view: Look, mode: str) -> None:
        picture = example(64).convert(mode)
        for progress in (0.0, 0.01, 0.3, 0.5, 0.99, 1.0):
            frame = view.frame(picture, progress)
            assert (frame.mode, frame.size) == (mode, picture.size)
            if view.name != "identity" and 0.1 < progress < 0.9:
                assert frame.tobytes() not in (picture.tobytes(), view.frame(picture, 1.0).tobytes())
        assert view.frame(picture, 0.0).tobytes() == picture.tobytes()
        seen = from_tensor(view.apply(to_tensor(picture)))[0]
        assert view.frame(picture, 1.0).tobytes() == seen.tobytes()

    @pytest.mark.parametrize("spec", ["flip", "rotate_cw", "rotate_ccw", "rotate_180", "inner_circle", "jigsaw"])
    def test_the_end_is_reached_without_a_jump(self, spec: str) -> None:
        """One frame of a hundred changes little where the picture is smooth; a turn the wrong way would change much."""
        picture, view = Image.linear_gradient("L").resize((96, 96)), parse_view(spec)
        for near, end in ((0.01, 0.0), (0.99, 1.0)):
            a, b = (np.asarray(view.frame(picture, p), dtype=np.float64)[8:-8, 8:-8] for p in (near, end))
            assert np.median(abs(a - b)) < 6

    @pytest.mark.parametrize(("spec", "sign"), [("rotate_cw", 1), ("rotate_ccw", -1)])
    def test_a_turn_turns_and_keeps_the_corners_inside(self, spec: str, sign: int) -> None:
        x, y, ink = middle(parse_view(spec).frame(blob(48, 24), 0.5))
        reach = 24 / 2**0.5  # drawn smaller by sqrt(2), at 45 degrees
        assert (x, y) == pytest.approx((48 + sign * reach / 2**0.5, 48 - reach / 2**0.5), abs=0.3)
        assert ink == pytest.approx(36 / 2, rel=0.05)
        corners = parse_view(spec).frame(Image.new("L", (96, 96), 0), 0.5)
        assert middle(corners)[2] == pytest.approx(96 * 96 / 2, rel=0.02)

    def test_half_a_turn_passes_the_quarter(self) -> None:
        x, y, _ = middle(parse_view("rotate_180").frame(blob(48, 24), 0.5))
        assert (x, y) == pytest.approx((48 + 24 / 2**0.5, 48), abs=0.3)

    def test_a_flip_is_squashed_onto_its_axis(self) -> None:
        view = parse_view("flip")
        x, y, _ = middle(view.frame(blob(20, 24), 1 / 3))
        assert (x, y) == pytest.approx((20, 36), abs=0.5)
        x, y, _ = middle(view.frame(blob(20, 24), 2 / 3))
        assert (x, y) == pytest.approx((20, 60), abs=0.5)

    def test_a_negative_is_grey_half_way(self) -> None:
        frame = np.asarray(parse_view("negate").frame(example(64), 0.5), dtype=int)
        assert abs(frame - 127.5).max() <= 1

    def test_columns_slide(self) -> None:
        x, y, ink = middle(parse_view("skew:1").frame(blob(68, 24, radius=1), 0.5))
        assert (x, y) == pytest.approx((68, 24 + 10), abs=0.6)
        assert ink == 4

    def test_the_disc_turns_inside_its_border(self) -> None:
        view = parse_view("inner_circle")
        assert middle(view.frame(blob(48, 24), 0.5))[:2] == pytest.approx((72, 48), abs=0.3)
        assert view.frame(blob(5, 5), 0.5).tobytes() == blob(5, 5).tobytes()

    def test_squares_swing_about_their_middles(self) -> None:
        view = parse_view("square_hinge")
        assert middle(view.frame(blob(48, 48), 0.5))[:2] == pytest.approx((48, 48), abs=0.3)
        reach = 10 / 2**0.5  # smaller by sqrt(2), at 45 degrees: the middle one clockwise, its neighbour the other way
        x, y, _ = middle(view.frame(blob(48, 38), 0.5))
        assert (x, y) == pytest.approx((48 + reach / 2**0.5, 48 - reach / 2**0.5), abs=0.3)
        x, y, _ = middle(view.frame(blob(48, 6), 0.5))
        assert (x, y) == pytest.approx((48 - reach / 2**0.5, 16 - reach / 2**0.5), abs=0.3)

    @pytest.mark.parametrize("spec", ["patch_permute:4", "jigsaw:4"])
    def test_pieces_travel_along_straight_lines(self, spec: str) -> None:
        view = parse_view(spec)
        start = (84, 84)  # the jigsaw's last piece is drawn last, above all others
        if spec == "patch_permute:4":  # there it is the patch that ends at the bottom right
            x, y, _ = middle(from_tensor(view.invert(to_tensor(blob(*start))))[0])
            start = (round(x), round(y))
        end = middle(view.frame(blob(*start), 1.0))
        for progress in (0.1, 0.3, 0.5, 0.9):
            done = 3 * progress**2 - 2 * progress**3
            expected = tuple(a + done * (b - a) for a, b in zip(start, end[:2], strict=True))
            x, y, ink = middle(view.frame(blob(*start), progress))
            assert (x, y) == pytest.approx(expected, abs=0.6)
            assert ink == pytest.approx(36, rel=0.05)  # drawing a turned spot rounds a little
