"""Views that are permutations in a user's file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffkit.errors import DataError, UsageError
from diffkit.illusions.views import parse_view
from tests.illusions.conftest import larger, noise


class TestFiles:
    def write(self, path: Path, order: np.ndarray) -> str:
        if path.suffix == ".npy":
            np.save(path, order)
        else:
            rgb = np.stack([order % 256, order // 256 % 256, order // 65536], -1).astype(np.uint8)
            Image.fromarray(rgb).save(path)
        return f"permutation:{path}"

    @pytest.mark.parametrize("suffix", [".npy", ".png"])
    def test_pixel_i_of_the_view_is_pixel_order_i(self, tmp_path: Path, suffix: str) -> None:
        order = np.random.default_rng(1).permutation(20 * 20).reshape(20, 20)  # more than one byte
        view = parse_view(self.write(tmp_path / f"v{suffix}", order))
        x = noise(2, 3, 20, 20)
        assert torch.equal(view.apply(x).flatten(-2), x.flatten(-2)[..., torch.from_numpy(order.ravel())])

    def test_larger_pictures_move_in_blocks_and_smaller_ones_where_blocks_stay(self, tmp_path: Path) -> None:
        order = np.random.default_rng(1).permutation(16).reshape(4, 4)
        small = parse_view(self.write(tmp_path / "small.npy", order))
        x = noise(1, 1, 4, 4)
        assert torch.equal(small.apply(larger(x, 3)), larger(small.apply(x), 3))
        address = torch.arange(144.0).view(1, 1, 12, 12)
        big = parse_view(self.write(tmp_path / "big.npy", small.apply(address).long().numpy().reshape(12, 12)))
        assert torch.equal(big.apply(x), small.apply(x))
        with pytest.raises(UsageError, match="made for 12 px"):
            big.check(5)

    def test_blocks_that_are_torn_have_no_smaller_version(self, tmp_path: Path) -> None:
        order = np.arange(64)
        order[[0, 63]] = [63, 0]
        view = parse_view(self.write(tmp_path / "v.npy", order))
        with pytest.raises(UsageError, match="tears blocks of 2x2 pixels apart"):
            view.apply(noise(1, 1, 4, 4))

    @pytest.mark.parametrize(
        ("order", "reason"),
        [
            (np.array([0, 1, 1, 2]), "1 of 4 pixels are never shown .e.g. 3.*1, 2 times"),
            (np.array([1, 2, 3, 4]), "outside 0..3"),
            (np.array([-1, 0, 1, 2]), "outside 0..3"),
            (np.arange(4.0), "holds float64"),
            (np.arange(6), "shape .6,."),
            (np.arange(6).reshape(2, 3), "shape .2, 3."),
            (np.arange(16).reshape(2, 2, 4), "shape"),
            (np.array([0]), "1x1"),
            (np.array([{}] * 4, dtype=object), "Python objects"),
        ],
    )
    def test_files_that_are_no_permutation(self, tmp_path: Path, order: np.ndarray, reason: str) -> None:
        with pytest.raises(DataError, match=reason):
            parse_view(self.write(tmp_path / "v.npy", order))

    @pytest.mark.parametrize("value", [2**63 + 5, 2**64 - 1])
    def test_numbers_too_large_are_quoted_as_the_file_has_them(self, tmp_path: Path, value: int) -> None:
        with pytest.raises(DataError, match=f"2 of 4 values are outside 0..3, e.g. {value}$"):
            parse_view(self.write(tmp_path / "v.npy", np.array([0, value, 2, 2**63], dtype=np.uint64)))

    @pytest.mark.parametrize("kind", ["uint64", ">u8", "uint8", ">i4"])
    def test_every_kind_of_whole_numbers(self, tmp_path: Path, kind: str) -> None:
        view = parse_view(self.write(tmp_path / "v.npy", np.array([3, 2, 1, 0], dtype=kind)))
        assert view.order.tolist() == [3, 2, 1, 0]

    def test_counting_from_one_gets_a_hint(self, tmp_path: Path) -> None:
        with pytest.raises(DataError) as caught:
            parse_view(self.write(tmp_path / "v.npy", np.arange(4) + 1))
        assert caught.value.hint == "Count pixels from 0."

    def test_files_that_are_something_else(self, tmp_path: Path) -> None:
        for name, content in (("a.npy", b"text"), ("b.npy", b""), ("c.png", b"text"), ("d.txt", b"0 1")):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(DataError, match=name):
                parse_view(f"permutation:{tmp_path / name}")
        (tmp_path / "half.npy").write_bytes(b"\x93NUMPY\x01\x00")
        with pytest.raises(DataError, match="cannot be read as an array"):
            parse_view(f"permutation:{tmp_path / 'half.npy'}")
        Image.new("RGBA", (4, 4)).save(tmp_path / "clear.png")
        with pytest.raises(DataError, match="RGBA; needed: a PNG in RGB"):
            parse_view(f"permutation:{tmp_path / 'clear.png'}")
        with pytest.raises(DataError, match="no such file"):
            parse_view(f"permutation:{tmp_path / 'missing.npy'}")

    def test_a_changed_file_is_another_view(self, tmp_path: Path) -> None:
        first = parse_view(self.write(tmp_path / "v.npy", np.arange(4)))
        x = noise(1, 1, 2, 2)
        first.apply(x)
        second = parse_view(self.write(tmp_path / "v.npy", np.arange(4)[::-1]))
        assert second != first
        assert torch.equal(second.apply(x), x.flip(-1, -2))
