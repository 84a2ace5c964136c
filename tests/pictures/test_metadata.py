from __future__ import annotations

import json
import logging
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from diffkit.errors import DataError, UsageError
from diffkit.pictures.metadata import KEYWORD, MAX_RECIPE, read_recipe, write_png

RECIPE = {"command": "sample", "seed": 3, "arguments": {"prompt": "ein Kätzchen 猫"}}


def flat(value: int, size: int = 64) -> Image.Image:
    return Image.new("L", (size, size), value)


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
