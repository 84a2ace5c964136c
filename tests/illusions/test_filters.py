from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diffkit.errors import UsageError
from diffkit.illusions.blur import blur
from diffkit.illusions.filters import FILTERS, parse_filter

# Every row as it is, and some with other arguments.
SPECS = [*FILTERS, "low_high:0.7", "triple:0.5,4", "motion:9,20", "motion:5,-90", "scale:-1.5"]
SIZES = (8, 28, 32, 64)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("size", SIZES)
class TestLaws:
    def test_parts_sum_to_the_identity(self, spec: str, size: int) -> None:
        split, x = parse_filter(spec), noise(2, 3, size, size)
        parts = [split.part(x, k) for k in range(split.parts)]
        assert len(parts) == len(split.part_names) >= 2
        assert all(part.shape == x.shape and part.dtype == x.dtype for part in parts)
        torch.testing.assert_close(sum(parts), x, rtol=0, atol=1e-6)

    def test_every_part_is_linear(self, spec: str, size: int) -> None:
        split = parse_filter(spec)
        x, y = noise(2, 3, size, size).double(), noise(2, 3, size, size, seed=1).double()
        for k in range(split.parts):
            mixed = split.part(0.3 * x - 2.0 * y, k)
            torch.testing.assert_close(mixed, 0.3 * split.part(x, k) - 2.0 * split.part(y, k), rtol=0, atol=1e-12)

    def test_pictures_of_a_batch_do_not_touch(self, spec: str, size: int) -> None:
        split, x = parse_filter(spec), noise(3, 3, size, size)
        before = x.clone()
        for k in range(split.parts):
            alone = torch.cat([split.part(one[None], k) for one in x])
            torch.testing.assert_close(split.part(x, k), alone, rtol=0, atol=1e-6)
        assert torch.equal(x, before)


@pytest.mark.parametrize("name", sorted(FILTERS))
@pytest.mark.parametrize("size", [16, 28, 32, 64])
def test_every_part_has_a_tenth_of_white_noise_or_says_that_it_has_not(name: str, size: int) -> None:
    split, x = parse_filter(name), noise(8, 3, size, size)
    split.check(3, size)
    thin = [part for k, part in enumerate(split.part_names) if float(split.part(x, k).std()) < 0.1]
    assert thin == (["high"] if (name, size) == ("triple", 16) else [])
    said = split.about(3, size)
    assert len(said) == len(thin)
    assert all(f"({part}) is nearly empty at {size} px" in line for part, line in zip(thin, said, strict=True))


class TestEmptyParts:
    @pytest.mark.parametrize(
        ("spec", "size", "part"),
        [
            ("scale:1", 32, "1 (second)"), ("scale:0", 32, "0 (first)"), ("motion:1", 64, "1 (still)"),
            ("low_high", 4, "1 (high)"), ("triple:8,0.05", 64, "1 (middle)"), ("triple", 8, "2 (high)"),
        ],
    )  # fmt: skip
    def test_a_part_of_nothing_is_refused_where_the_size_is_known(self, spec: str, size: int, part: str) -> None:
        split = parse_filter(spec)
        split.check(3)
        with pytest.raises(UsageError) as caught:
            split.check(3, size)
        assert f"part {part} is empty at {size} px" in caught.value.message
        assert "Its prompt would not be seen" in caught.value.hint

    @pytest.mark.parametrize(("spec", "size"), [("low_high", 8), ("low_high:0.7", 28), ("triple", 17)])
    def test_a_part_of_nearly_nothing_says_so(self, spec: str, size: int) -> None:
        split = parse_filter(spec)
        split.check(3, size)
        [line] = split.about(3, size)
        assert f"(high) is nearly empty at {size} px" in line
        assert "\n" not in line

    @pytest.mark.parametrize("spec", ["low_high:32", "low_high:64", "triple:8,8", "motion:63", "scale:-50"])
    def test_little_of_the_noise_is_no_empty_part_where_pictures_are_all_there(self, spec: str) -> None:
        """A wide blur leaves a hundredth of white noise, and all of a flat picture."""
        split = parse_filter(spec)
        split.check(3, 64)
        assert split.about(3, 64) == []
        if spec == "low_high:32":
            assert float(split.part(noise(8, 3, 64, 64), 0).std()) < 0.05


@pytest.mark.parametrize("spec", SPECS)
def test_the_spec_makes_the_same_filter_and_half_precision_sums_up(spec: str) -> None:
    split = parse_filter(spec)
    assert parse_filter(split.spec) == split
    x = noise(1, 3, 16, 16).half()
    parts = [split.part(x, k) for k in range(split.parts)]
    assert all(part.dtype == torch.float16 for part in parts)
    torch.testing.assert_close(sum(p.float() for p in parts), x.float(), rtol=0, atol=2e-3 * max(1, abs(x).max()))
    with pytest.raises(UsageError, match=f"0 to {split.parts - 1}, not {split.parts}"):
        split.part(x, split.parts)


@pytest.mark.parametrize("size", [32, 64, 128, 256])
@pytest.mark.parametrize("waves", [1, 5, 12])
def test_sigma_grows_with_the_picture(size: int, waves: int) -> None:
    """A cosine with its crests on the edges stays itself under a reflected blur, times exp(-(f sigma)^2 / 2)."""
    frequency = math.pi * waves / (size - 1)
    x = torch.cos(frequency * torch.arange(size).double())
    gain = math.exp(-0.5 * (frequency * 2.0 * size / 64) ** 2)
    low = parse_filter("low_high:2").part(x.expand(1, 1, size, size), 0)
    torch.testing.assert_close(low, gain * x.expand(1, 1, size, size), rtol=0, atol=3e-4)
    across = parse_filter("low_high:2").part(x[:, None].expand(1, 1, size, size), 0)
    torch.testing.assert_close(across, low.transpose(-1, -2), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("size", "sigma", "width"), [(64, 2.0, 33), (256, 2.0, 133), (64, 1.0, 25)])
def test_the_blur_is_a_convolution_with_reflected_edges(size: int, sigma: float, width: int) -> None:
    """As the papers' repository blurs: a kernel of 33 pixels at 64 and of 133 at 256, sigma times 4, `reflect`."""
    offsets = torch.arange(width).double() - width // 2
    line = torch.exp(-0.5 * (offsets / (sigma * size / 64)) ** 2)
    line /= line.sum()
    x = noise(2, 1, size, size).double()
    padded = F.pad(x, [width // 2] * 4, mode="reflect")
    expected = F.conv2d(F.conv2d(padded, line.view(1, 1, 1, -1)), line.view(1, 1, -1, 1))
    torch.testing.assert_close(blur(x, sigma), expected, rtol=0, atol=2e-8)
    torch.testing.assert_close(blur(x.float(), sigma), expected.float(), rtol=0, atol=1e-6)


def test_a_flat_picture_is_all_low_at_any_sigma() -> None:
    x = torch.full((1, 3, 8, 8), 0.5)
    for sigma in (0.1, 2.0, 60.0):  # far wider than the picture, too
        split = parse_filter(f"low_high:{sigma}")
        torch.testing.assert_close(split.part(x, 0), x)
        torch.testing.assert_close(split.part(x, 1), torch.zeros_like(x), rtol=0, atol=1e-6)


def test_rectangles_keep_one_sigma() -> None:
    x = torch.zeros(1, 1, 32, 64)
    x[..., 16, 32] = 1.0
    low = parse_filter("low_high:2").part(x, 0)
    torch.testing.assert_close(low[0, 0, 16 - 5 : 16 + 6, 32], low[0, 0, 16, 32 - 5 : 32 + 6])


def test_triple_bands_are_nested_blurs() -> None:
    x = noise(1, 3, 32, 32)
    low, middle, high = (parse_filter("triple:1,2").part(x, k) for k in range(3))
    torch.testing.assert_close(high, parse_filter("low_high:1").part(x, 1))
    torch.testing.assert_close(low, blur(blur(x, 1.0), 2.0))
    torch.testing.assert_close(middle, blur(x, 1.0) - blur(blur(x, 1.0), 2.0))


def test_colour_has_no_brightness() -> None:
    x, split = noise(1, 3, 8, 8), parse_filter("grey_colour")
    grey, colour = split.part(x, 0), split.part(x, 1)
    assert torch.equal(grey[:, 0], grey[:, 1])
    torch.testing.assert_close(colour.mean(1), torch.zeros(1, 8, 8), rtol=0, atol=1e-6)
    torch.testing.assert_close(split.part(grey, 1), torch.zeros_like(grey), rtol=0, atol=1e-6)
    for channels in (1, 4):
        for refuse in (lambda n=channels: split.check(n), lambda n=channels: split.part(noise(1, n, 8, 8), 0)):
            with pytest.raises(UsageError, match=f"3 channels, not of {channels}"):
                refuse()


@pytest.mark.parametrize(("size", "taps"), [(64, 7), (128, 15), (256, 29)])
def test_motion_is_the_mean_along_the_diagonal(size: int, taps: int) -> None:
    """The kernel of the papers' repository: the unit matrix of 7 pixels at 64, of 29 at 256, zeros around."""
    x = noise(2, 1, size, size)
    expected = F.conv2d(x, (torch.eye(taps) / taps)[None, None], padding=taps // 2)
    torch.testing.assert_close(parse_filter("motion").part(x, 0), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("angle", "shifts"),
    [(0, [(0, -1), (0, 0), (0, 1)]), (90, [(-1, 0), (0, 0), (1, 0)]), (-45, [(1, -1), (0, 0), (-1, 1)])],
)
def test_motion_follows_its_angle(angle: int, shifts: list[tuple[int, int]]) -> None:
    x = torch.zeros(1, 1, 64, 64)
    x[..., 30, 30] = 3.0
    moved = parse_filter(f"motion:3,{angle}").part(x, 0)[0, 0]
    expected = torch.zeros(64, 64)
    for dy, dx in shifts:
        expected[30 + dy, 30 + dx] = 1.0
    torch.testing.assert_close(moved, expected)


@pytest.mark.parametrize("size", [4, 8, 16, 17, 18, 19, 28, 32])
def test_small_pictures_move_by_a_pixel(size: int) -> None:
    x = noise(2, 1, size, size)
    expected = F.conv2d(x, (torch.eye(3) / 3)[None, None], padding=1)
    torch.testing.assert_close(parse_filter("motion").part(x, 0), expected, rtol=0, atol=1e-6)
    assert torch.equal(parse_filter("motion:1").part(x, 0), x)


def test_a_line_between_pixels_keeps_its_weight() -> None:
    x = torch.zeros(1, 1, 64, 64)
    x[..., 30, 30] = 1.0
    moved = parse_filter("motion:9,20").part(x, 0)[0, 0]
    torch.testing.assert_close(moved.sum(), torch.tensor(1.0))
    rows, columns = torch.nonzero(moved, as_tuple=True)
    slope = ((rows - 30) * (columns - 30) * moved[rows, columns]).sum() / (
        ((columns - 30) ** 2 * moved[rows, columns]).sum()
    )
    torch.testing.assert_close(slope, torch.tensor(math.tan(math.radians(20))))


def test_scale_shares() -> None:
    x = noise(1, 3, 4, 4)
    torch.testing.assert_close(parse_filter("scale:0.3").part(x, 0), 0.3 * x)
    torch.testing.assert_close(parse_filter("scale:0.3").part(x, 1), 0.7 * x)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("low-high", "Did you mean 'low_high'"),
        ("low_high:0", "sigma is 0"),
        ("low_high:nan", "sigma is nan"),
        ("triple:1,2,3", "takes 2"),
        ("motion:0.5", "length is 0.5"),
        ("scale:half", "share is 'half'"),
    ],
)
def test_wrong_words(spec: str, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_filter(spec)
    assert reason in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize("name", sorted(FILTERS))
@pytest.mark.parametrize("size", [32, 64])
def test_the_way_to_the_first_part_is_steady_and_ends_there(name: str, size: int) -> None:
    split = parse_filter(name)
    assert split.apart in ("distance", "fading", "never")
    x = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    way = [split.leaving(x, k / 40) for k in range(41)]
    torch.testing.assert_close(way[0], x)
    inner = slice(None) if name != "motion" else slice(size // 16, -(size // 16))  # the edges of a motion go on
    torch.testing.assert_close(way[-1][..., inner, inner], split.part(x, 0)[..., inner, inner])
    steps = [float((b - a).abs().mean()) for a, b in pairwise(way)]
    whole = float((way[-1] - x).abs().mean())
    assert max(steps) < 0.25 * whole
    gone = [float((one - x).abs().mean()) for one in way]
    assert gone == sorted(gone)


def test_three_parts_leave_one_after_the_other() -> None:
    split = parse_filter("triple")
    x = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(split.leaving(x, 0.5), split.part(x, 0) + split.part(x, 1))
    torch.testing.assert_close(split.leaving(x, 0.25), x - 0.5 * split.part(x, 2))
    torch.testing.assert_close(split.leaving(x, 0.75), split.part(x, 0) + 0.5 * split.part(x, 1))


def test_a_moving_picture_of_white_paper_gets_no_frame() -> None:
    x = torch.ones(1, 3, 32, 32)
    split = parse_filter("motion")
    assert float(split.part(x, 0).min()) < 0.7
    torch.testing.assert_close(split.leaving(x, 1.0), x)
