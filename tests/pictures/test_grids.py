from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from PIL import Image

from diffkit.errors import UsageError
from diffkit.pictures.grids import font, grid


def flat(value: int, size: int = 64, mode: str = "L") -> Image.Image:
    return Image.new(mode, (size, size), value if mode == "L" else (value, 0, 0))


def test_grid_places_images_in_rows() -> None:
    sheet = grid([flat(10 * k) for k in range(5)], columns=3, gap=2)
    assert sheet.size == (3 * 66 + 2, 2 * 66 + 2)
    assert [sheet.getpixel((2 + 66 * (k % 3) + 30, 2 + 66 * (k // 3) + 30)) for k in range(5)] == [0, 10, 20, 30, 40]
    assert sheet.getpixel((0, 0)) == 255


def test_small_images_are_enlarged_pixel_by_pixel() -> None:
    tiny = Image.frombytes("L", (2, 2), bytes([0, 50, 100, 150]))
    sheet = grid([tiny], min_cell=64, gap=0)
    assert sheet.size == (64, 64)
    assert sorted(set(sheet.tobytes())) == [0, 50, 100, 150]


def test_labels_are_written_above_and_shortened() -> None:
    plain = grid([flat(128), flat(128)], columns=2)
    labelled = grid([flat(128), flat(128)], columns=2, labels=["a", "a very long caption that cannot fit"])
    assert labelled.width == plain.width
    assert labelled.height > plain.height
    strip = labelled.height - plain.height
    assert min(labelled.crop((2, 2, 66, strip)).tobytes()) < 128
    gap = labelled.crop((66, 0, 68, strip))
    assert set(gap.tobytes()) == {255}  # the text stays within its cell
    with pytest.raises(UsageError, match="one label per image, got 1 for 2"):
        grid([flat(0), flat(0)], labels=["one"])


def test_letters_shrink_before_captions_are_cut_and_all_of_a_sheet_are_alike() -> None:
    words = "a sign on a blue star"

    def strips(*labels: str) -> list[bytes]:
        sheet = grid([flat(128, size=128)] * 2, 2, labels=labels)
        high = sheet.height - 130
        return [sheet.crop((2 + 130 * k, 0, 130 + 130 * k, high)).tobytes() for k in (0, 1)]

    first, second = strips(words, words)
    assert first == second
    assert strips(words, "x")[0] == first
    assert strips("x", "x")[0] != strips("x", words)[0]
    assert strips(words, words + " far")[0] != first  # smaller, and whole
    assert strips("x", words + " far")[1] != strips("x", words + " fa")[1]


def drawn(letter: str) -> bytes:
    mask = font(40).getmask(letter)
    return bytes(mask) + repr(mask.size).encode()


@pytest.mark.parametrize("letter", "éßΩЖ–")
def test_letters_of_other_languages_are_no_boxes(letter: str) -> None:
    box = drawn("\U000f0000")  # private use: no font has it
    assert drawn(letter) not in (box, drawn(" "), drawn("e"))
    sheets = [grid([flat(128)], labels=[word]).tobytes() for word in (letter, "\U000f0000")]
    assert sheets[0] != sheets[1]


def test_without_matplotlib_captions_are_in_plain_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffkit.pictures.grids.find_spec", lambda name: None)
    plain = font.__wrapped__(12)
    assert plain.getlength("plain") > 0
    assert plain.getname() != font(12).getname()


def test_captions_need_no_import_of_matplotlib() -> None:
    code = "import sys; from diffkit.pictures.grids import font; font(12); sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_small_images_grow_with_their_labels_within_reason() -> None:
    small = [flat(128, size=32)] * 2
    widths = [
        grid(small, 2, labels=["x", label], gap=0).width // 2 for label in ("y", "a handwritten three", "long " * 20)
    ]
    assert widths[0] == 64 < widths[1] < widths[2] == 160
    whole, more = (grid(small, 2, labels=["x", f"a handwritten {w}"], gap=0) for w in ("three", "threes"))
    assert whole.tobytes() != more.tobytes()


def test_grey_and_colour_mix_and_tensors_are_taken() -> None:
    assert grid([flat(0), flat(9, mode="RGB")]).mode == "RGB"
    sheet = grid(torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1).expand(2, 1, 64, 64), columns=2)
    assert (sheet.getpixel((30, 30)), sheet.getpixel((100, 30))) == (0, 255)
    with pytest.raises(UsageError, match="at least one image"):
        grid([])
