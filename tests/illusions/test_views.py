from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

from diffkit.errors import UsageError
from diffkit.illusions.overview import example
from diffkit.illusions.views import Look, check_view, parse_view
from tests.illusions.conftest import larger, noise

SIZES = (8, 28, 32, 64)


class TestLaws:
    @pytest.mark.parametrize("size", SIZES)
    def test_linear_orthogonal_and_noise_stays_noise(self, view: Look, size: int) -> None:
        report = check_view(view, size)
        assert report.ok, report.reasons
        assert max(report.inverse, report.variance_law) == 0.0  # pixels are moved, never computed
        assert max(report.norm, report.linearity) < 1e-12
        assert report.kept is not None

    @pytest.mark.parametrize("size", SIZES)
    def test_the_inverse_is_exact_in_every_dtype_and_for_any_channels(self, view: Look, size: int) -> None:
        for channels, dtype in ((1, torch.float32), (6, torch.float16), (4, torch.bfloat16)):
            x = noise(2, channels, size, size).to(dtype)
            assert view.apply(x).dtype == dtype
            assert torch.equal(view.invert(view.apply(x)), x)
            assert torch.equal(view.apply(view.invert(x)), x)

    def test_a_variance_moves_with_the_pixels_and_keeps_its_sign(self, view: Look) -> None:
        x, v = noise(2, 3, 8, 8), noise(2, 3, 8, 8, seed=1)
        assert torch.equal(view.invert_var(v), view.invert(v) if view.spatial else v)
        assert torch.equal(view.invert_var(view.apply(x) ** 2), x**2)

    def test_the_spec_makes_the_same_view(self, view: Look) -> None:
        again = parse_view(view.spec)
        assert again == view
        assert again.spec == view.spec
        assert torch.equal(again.apply(noise(1, 1, 8, 8)), view.apply(noise(1, 1, 8, 8)))

    def test_pictures_that_are_not_square(self, view: Look) -> None:
        if not view.square:
            assert view.frame(Image.new("L", (8, 16)), 0.5).size == (8, 16)
            x = noise(1, 3, 8, 16)
            assert torch.equal(view.invert(view.apply(x)), x)
            return
        with pytest.raises(UsageError, match="not square"):
            view.frame(Image.new("L", (8, 16)), 0.5)
        with pytest.raises(UsageError, match="not square"):
            view.apply(noise(1, 3, 8, 16))


# The SHA-256 (first 16 digits) of the little-endian int64 table that the papers' repository, dangeng/visual_anagrams,
# makes: its `view` applied to the addresses 0, 1, ... of the pixels, with torch.manual_seed(3) before patch_permute.
RECORDED = {
    ("flip", 64): "1454c0103cb3a914",
    ("flip", 256): "7d5fa22b7064de69",
    ("skew", 64): "1bb120448bd9a2b8",
    ("skew", 256): "4cd545d8df5226a3",
    ("inner_circle", 64): "b5276c3f53535b32",
    ("inner_circle", 256): "a100687c26eb6ba6",
    ("square_hinge", 64): "4f4beaa1d561cd4e",
    ("square_hinge", 256): "be71a2ffbf29d841",
    ("patch_permute:8,3", 64): "6d918b7edc8045d8",
    ("patch_permute:8,3", 256): "c132a1562c5d7b29",
}


# The same of diffkit before these views took every size: what worked then must stay, for pictures carry recipes.
KEPT = {
    ("patch_permute", 16): "c4a1637782244c78",
    ("patch_permute", 64): "2226b27ef127f037",
    ("patch_permute:7,1", 28): "2b7b69c40a7c74b6",
    ("pixel_permute", 28): "270deb57c4870003",
    ("pixel_permute", 64): "fdf8f2e6273e3a1c",
    ("pixel_permute", 256): "d3f28e028bee54d4",
    ("pixel_permute:48,1", 96): "5084c6dfa42f88fa",
    ("jigsaw", 28): "cae7d5afa941f3f4",
    ("jigsaw", 32): "d6299907546f9017",
    ("jigsaw", 64): "b0631f033fb65c8c",
    ("jigsaw:3,1", 96): "7a5ce6525c774d8f",
    ("jigsaw:5,2", 65): "59790180578eb636",
}


class TestAnySize:
    """Pieces that do not fill the picture leave a margin at the right and at the bottom, and no size is refused."""

    @pytest.mark.parametrize(("spec", "size"), KEPT)
    def test_sizes_that_the_pieces_fill_are_as_they_were(self, spec: str, size: int) -> None:
        bytes_ = parse_view(spec).table(size).numpy().astype("<i8").tobytes()
        assert hashlib.sha256(bytes_).hexdigest()[:16] == KEPT[spec, size]

    @pytest.mark.parametrize("size", [28, 30, 65, 96])
    @pytest.mark.parametrize(
        "spec", ["patch_permute", "patch_permute:7,1", "pixel_permute", "pixel_permute:16,3", "jigsaw", "jigsaw:7,2"]
    )
    def test_the_laws_hold(self, spec: str, size: int) -> None:
        view = parse_view(spec)
        report = check_view(view, size)
        assert report.ok, report.reasons
        assert max(report.inverse, report.variance_law) == 0.0
        assert max(report.norm, report.linearity) < 1e-12
        x = noise(2, 3, size, size)
        assert torch.equal(view.invert(view.apply(x)), x)
        assert torch.equal(view.apply(view.invert(x)), x)

    @pytest.mark.parametrize(
        ("spec", "size", "whole"),
        [
            ("patch_permute", 28, 24), ("patch_permute", 30, 24), ("patch_permute", 65, 64), ("jigsaw", 30, 28),
            ("jigsaw", 65, 64), ("jigsaw:3,1", 31, 30), ("pixel_permute", 65, 64), ("pixel_permute", 96, 96),
            ("pixel_permute", 127, 126), ("pixel_permute", 130, 129), ("pixel_permute:7", 30, 30),
        ],
    )  # fmt: skip
    def test_the_margin_stays_and_the_rest_is_the_view_of_the_rest(self, spec: str, size: int, whole: int) -> None:
        x, view = noise(1, 3, size, size), parse_view(spec)
        got = view.apply(x)
        assert torch.equal(got[..., whole:, :], x[..., whole:, :])
        assert torch.equal(got[..., whole:], x[..., whole:])
        inner = got[..., :whole, :whole]
        assert not torch.equal(inner, x[..., :whole, :whole])
        if "pixel" not in spec:  # its order belongs to the number of blocks
            assert torch.equal(inner, view.apply(x[..., :whole, :whole]))

    @pytest.mark.parametrize("cells", [2, 7, 64])
    def test_pixel_permute_leaves_less_than_a_block(self, cells: int) -> None:
        view = parse_view(f"pixel_permute:{cells}")
        for size in range(2, 140):
            view.check(size)
            n = int(view.sources(size).numel() ** 0.5)
            assert n <= cells
            assert size - n * (size // n) < -(-size // cells)

    @pytest.mark.parametrize("spec", ["patch_permute:4", "jigsaw:4", "pixel_permute"])
    def test_the_margin_stays_on_the_way(self, spec: str) -> None:
        picture, view = example(67), parse_view(spec)
        before, after = np.asarray(picture), np.asarray(view.frame(picture, 0.5))
        assert np.array_equal(after[66:], before[66:])
        assert np.array_equal(after[:, 66:], before[:, 66:])
        assert not np.array_equal(after[:64, :64], before[:64, :64])


class TestMaps:
    @pytest.mark.parametrize(("spec", "size"), RECORDED)
    def test_the_maps_are_those_of_the_papers_code(self, spec: str, size: int) -> None:
        seen = parse_view(spec).apply(torch.arange(size * size, dtype=torch.float64).view(1, 1, size, size))
        bytes_ = seen.long().numpy().astype("<i8").tobytes()
        assert hashlib.sha256(bytes_).hexdigest()[:16] == RECORDED[spec, size]

    @pytest.mark.parametrize(
        ("spec", "expected"),
        [
            ("identity", [1, 2, 3, 4]),
            ("flip", [3, 4, 1, 2]),
            ("rotate_cw", [3, 1, 4, 2]),
            ("rotate_ccw", [2, 4, 1, 3]),
            ("rotate_180", [4, 3, 2, 1]),
            ("negate", [-1, -2, -3, -4]),
        ],
    )
    def test_two_by_two(self, spec: str, expected: list[float]) -> None:
        x = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 2, 2)
        assert parse_view(spec).apply(x).flatten().tolist() == expected

    def test_skew_slides_columns_down_and_around(self) -> None:
        x = torch.arange(16.0).view(1, 1, 4, 4)
        got = parse_view("skew:1").apply(x)[0, 0]
        for column, shift in enumerate((-2, -1, 0, 1)):
            assert torch.equal(got[:, column], x[0, 0, :, column].roll(shift))

    @pytest.mark.parametrize("size", [28, 64])
    def test_the_disc_turns_and_the_rest_stays(self, size: int) -> None:
        x = noise(1, 1, size, size)
        got = parse_view("inner_circle:0.3").apply(x)
        axis = torch.arange(size) - (size - 1) / 2
        inside = (axis[:, None] ** 2 + axis[None] ** 2 < (0.3 * size) ** 2)[None, None]
        assert torch.equal(got[inside], x.rot90(2, (-2, -1))[inside])
        assert torch.equal(got[~inside], x[~inside])

    @pytest.mark.parametrize("size", [9, 64, 65])
    def test_squares_swing_alternately_and_the_margin_stays(self, size: int) -> None:
        x, third = noise(1, 1, size, size), size // 3
        got = parse_view("square_hinge").apply(x)
        for i in range(3):
            for j in range(3):
                place = (..., slice(i * third, (i + 1) * third), slice(j * third, (j + 1) * third))
                assert torch.equal(got[place], x[place].rot90(1 if (i + j) % 2 else -1, (-2, -1)))
        assert torch.equal(got[..., 3 * third :, :], x[..., 3 * third :, :])
        assert torch.equal(got[..., 3 * third :], x[..., 3 * third :])

    @pytest.mark.parametrize("spec", ["flip", "rotate_cw", "rotate_180", "negate", "patch_permute", "pixel_permute"])
    def test_a_larger_stage_sees_the_same_view(self, spec: str) -> None:
        x, view = noise(1, 3, 64, 64), parse_view(spec)
        assert torch.equal(view.apply(larger(x, 4)), larger(view.apply(x), 4))

    @pytest.mark.parametrize("spec", ["patch_permute:4,{}", "pixel_permute:64,{}", "jigsaw:4,{}"])
    def test_the_seed_alone_decides(self, spec: str) -> None:
        x = noise(1, 1, 32, 32)
        first, second = (parse_view(spec.format(seed)).apply(x) for seed in (0, 1))
        torch.manual_seed(5)
        assert torch.equal(parse_view(spec.format(0)).apply(x), first)
        assert not torch.equal(first, second)

    def test_smaller_pictures_permute_all_of_their_pixels(self) -> None:
        assert check_view(parse_view("pixel_permute"), 28).kept < 0.02


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("flop", "unknown view 'flop'"),
        ("flip:1", "takes 0"),
        ("skew:much", "factor is 'much'"),
        ("skew:nan", "factor is nan"),
        ("patch_permute:1", "patches is 1"),
        ("patch_permute:8,0,0", "takes 2"),
        ("jigsaw:1", "pieces is 1"),
        ("jigsaw:4,99999999999999999999", "seed is 99999999999999999999; needed: 0 to 9223372036854775807"),
        ("jigsaw:4,9223372036854775808", "seed is 9223372036854775808"),
        ("patch_permute:8,-1", "seed is -1"),
        ("pixel_permute:64,9223372036854775808", "seed is 9223372036854775808"),
        ("inner_circle:0.6", "radius is 0.6"),
        ("permutation", "names no file"),
    ],
)
def test_wrong_words(spec: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        parse_view(spec)


@pytest.mark.parametrize(
    ("spec", "size", "hint"),
    [
        ("patch_permute:8", 7, "Use pictures of 8 px or more, or patch_permute:7."),
        ("jigsaw:4", 3, "Use pictures of 4 px or more, or jigsaw:3."),
        ("jigsaw:3", 1, "Use pictures of 3 px or more."),
        ("square_hinge", 2, "Use 3 px or more."),
    ],
)
def test_a_size_that_does_not_fit_names_one_that_does(spec: str, size: int, hint: str) -> None:
    view = parse_view(spec)
    for refuse in (lambda: view.check(size), lambda: view.apply(noise(1, 1, size, size))):
        with pytest.raises(UsageError) as caught:
            refuse()
        assert caught.value.hint == hint
