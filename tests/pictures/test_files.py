from __future__ import annotations

import json
import logging
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from PIL.PngImagePlugin import PngInfo

from diffkit.errors import DataError, UsageError
from diffkit.pictures.files import KEYWORD, MAX_RECIPE, font, grid, output_folder, read_recipe, write_gif, write_png

RECIPE = {"command": "sample", "seed": 3, "arguments": {"prompt": "ein Kätzchen 猫"}}


def flat(value: int, size: int = 64, mode: str = "L") -> Image.Image:
    return Image.new(mode, (size, size), value if mode == "L" else (value, 0, 0))


# --- grids and animations


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
    with pytest.raises(UsageError, match="2 images has 1 labels"):
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
    monkeypatch.setattr("diffkit.pictures.files.find_spec", lambda name: None)
    plain = font.__wrapped__(12)
    assert plain.getlength("plain") > 0
    assert plain.getname() != font(12).getname()


def test_captions_need_no_import_of_matplotlib() -> None:
    code = "import sys; from diffkit.pictures.files import font; font(12); sys.exit('matplotlib' in sys.modules)"
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
    with pytest.raises(UsageError, match="no images"):
        grid([])


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_gif_keeps_every_frame(tmp_path: Path, mode: str) -> None:
    write_gif(tmp_path / "a.gif", [flat(v, mode=mode) for v in (0, 100, 200)], milliseconds=50, hold=700)
    with Image.open(tmp_path / "a.gif") as film:
        frames = [(f.convert("RGB").getpixel((5, 5))[0], f.info["duration"]) for f in ImageSequence.Iterator(film)]
        assert film.info["loop"] == 0
    assert [abs(v - e) <= 4 for (v, _), e in zip(frames, (0, 100, 200), strict=True)] == [True] * 3
    assert [d for _, d in frames] == [50, 50, 700]


def test_grey_words_under_a_red_picture_stay_grey(tmp_path: Path) -> None:
    reds = np.random.default_rng(0).integers(0, 256, (96, 96), dtype=np.uint8)
    frame = Image.fromarray(np.stack([reds, reds // 8, reds.T // 8], -1))
    words = np.arange(40, 256, 3, dtype=np.uint8)  # a caption that fades
    frame.paste(Image.fromarray(words[None].repeat(2, 0)), (0, 90))
    write_gif(tmp_path / "a.gif", [frame, frame.rotate(180)])
    with Image.open(tmp_path / "a.gif") as film:
        shown = np.asarray(film.convert("RGB")).astype(int)
    assert np.abs(shown[90:92, : len(words)] - words[None, :, None]).max() <= 16
    assert np.abs(shown - np.asarray(frame)).mean() < 3


# --- recipes in PNG files


def test_recipe_travels_and_the_bytes_are_the_same(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        write_png(tmp_path / name, flat(7), dict(reversed(RECIPE.items())) if name == "b.png" else RECIPE)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert read_recipe(tmp_path / "a.png") == RECIPE
    with Image.open(tmp_path / "a.png") as image:
        assert image.getpixel((0, 0)) == 7
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png"]


def chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    return (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) if crc is None else crc)
    )


def text_chunk(text: bytes, *, compressed: bool = False, keyword: str = KEYWORD, crc: int | None = None) -> bytes:
    body = zlib.compress(text) if compressed else text
    return chunk(b"iTXt", keyword.encode() + b"\0" + bytes([compressed]) + b"\0\0\0" + body, crc)


def png(path: Path, *chunks: bytes) -> Path:
    write_png(path, flat(0, 8))
    whole = path.read_bytes()
    path.write_bytes(whole[:33] + b"".join(chunks) + whole[33:])  # after the signature and IHDR
    return path


GOOD = text_chunk(json.dumps(RECIPE).encode())


def test_a_hand_made_recipe_is_read(tmp_path: Path) -> None:
    assert read_recipe(png(tmp_path / "a.png", GOOD)) == RECIPE


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (text_chunk(b" " * (MAX_RECIPE + 1)), "limit"),
        (text_chunk(b"0" * 100_000_000, compressed=True), "compressed"),
        (text_chunk(json.dumps(RECIPE).encode(), crc=1), "checksum"),
        (text_chunk(b"\xff\xfe{}"), "UTF-8"),
        (text_chunk(b"{not json"), "JSON"),
        (text_chunk(b"[" * 200_000), "JSON"),
        (text_chunk(b'{"command": NaN}'), "JSON"),
        (text_chunk(b'{"command": 3}'), "no command"),
        (text_chunk(b"[1]"), "no command"),
        (chunk(b"iTXt", KEYWORD.encode() + b"\0\0\0"), "UTF-8"),
    ],
    ids=["oversized", "bomb", "crc", "bytes", "syntax", "nesting", "nan", "command", "list", "short"],
)
def test_hostile_recipes_are_ignored_with_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, bad: bytes, why: str
) -> None:
    with caplog.at_level(logging.WARNING, "diffkit"):
        with pytest.raises(DataError, match="carries no recipe"):
            read_recipe(png(tmp_path / "a.png", bad))
        assert why in caplog.text
    assert read_recipe(png(tmp_path / "b.png", bad, GOOD)) == RECIPE  # and a sound one after it is still found


def test_other_chunks_are_not_looked_at(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("diffkit", json.dumps(RECIPE))
    flat(0).save(tmp_path / "a.png", pnginfo=info)
    with pytest.raises(DataError, match="carries no recipe"):
        read_recipe(tmp_path / "a.png")
    foreign = text_chunk(json.dumps(RECIPE).encode(), keyword="parameters")
    with pytest.raises(DataError, match="carries no recipe"):
        read_recipe(png(tmp_path / "b.png", foreign))


def test_what_is_no_png_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("hello")
    (tmp_path / "b.png").write_bytes(b"")
    for name in ("a.png", "b.png"):
        with pytest.raises(DataError, match="not a PNG"):
            read_recipe(tmp_path / name)
    for place in (tmp_path / "missing.png", tmp_path):
        with pytest.raises(DataError, match="cannot be read"):
            read_recipe(place)


def test_a_truncated_file_ends_in_one_clear_error(tmp_path: Path) -> None:
    whole = png(tmp_path / "a.png", GOOD).read_bytes()
    for length in range(8, 33 + len(GOOD), 7):
        (tmp_path / "cut.png").write_bytes(whole[:length])
        with pytest.raises(DataError, match="carries no recipe"):
            read_recipe(tmp_path / "cut.png")


def test_a_recipe_too_large_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="larger than"):
        write_png(tmp_path / "a.png", flat(0), {"command": "x" * MAX_RECIPE})
    assert not list(tmp_path.iterdir())


def test_output_folder_is_proven_writable(tmp_path: Path) -> None:
    assert output_folder(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    for bad in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/diffkit")):
        with pytest.raises(UsageError, match="cannot be written"):
            output_folder(bad)
