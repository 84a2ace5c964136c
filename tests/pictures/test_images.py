"""Users' images: right tones, right way up, and every hostile file ends in one clear error."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from diffkit.errors import DataError, UsageError
from diffkit.pictures import images


def saved(image, suffix="PNG", **options):
    buffer = BytesIO()
    image.save(buffer, suffix, **options)
    return buffer.getvalue()


def ramp(width=32, height=24):
    return np.linspace(0, 255, width * height).reshape(height, width).astype(np.uint8)


def png_header(width, height):
    ihdr = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunk = b"IHDR" + ihdr
    end = struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + end


def test_sixteen_bits_are_scaled_not_clipped():
    eight = ramp()
    image = Image.fromarray(eight.astype(np.uint16) * 257)
    assert image.mode.startswith("I;16")
    for kind in ("PNG", "TIFF"):
        opened = images.open_image(saved(image, kind))
        assert opened.mode == "L"
        assert np.array_equal(np.asarray(opened), eight)


@pytest.mark.parametrize("top", [255, 65535])
def test_thirty_two_bit_integers_take_the_range_that_holds_them(top):
    values = (ramp().astype(np.int64) * top // 255).astype(np.int32)
    opened = images.open_image(saved(Image.fromarray(values), "TIFF"))
    assert np.abs(np.asarray(opened).astype(int) - ramp()).max() <= (0 if top == 255 else 1)


def test_floats_between_zero_and_one_are_scaled_and_nan_is_refused():
    values = (ramp() / 255).astype(np.float32)
    assert np.array_equal(np.asarray(images.open_image(saved(Image.fromarray(values), "TIFF"))), ramp())
    values[0, 0] = np.nan
    with pytest.raises(DataError, match="NaN"):
        images.open_image(saved(Image.fromarray(values), "TIFF"), name="x.tif")


@pytest.mark.parametrize(("background", "seen"), [("white", (255, 255, 255)), ("#204060", (32, 64, 96))])
def test_hidden_colour_under_transparency_never_shows(background, seen):
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image.paste((0, 255, 0, 255), (0, 0, 4, 8))
    opened = images.open_image(saved(image), background)
    assert opened.mode == "RGB"
    assert opened.getpixel((7, 0)) == seen
    assert opened.getpixel((0, 0)) == (0, 255, 0)


def test_grey_with_alpha_stays_grey_on_a_grey_background():
    image = Image.new("LA", (8, 8), (10, 0))
    assert images.open_image(saved(image), "black").tobytes() == bytes(64)
    assert images.open_image(saved(image), "#ff0000").getpixel((0, 0)) == (255, 0, 0)


def test_transparent_colour_and_palette():
    grey = Image.new("L", (8, 8), 7)
    assert images.open_image(saved(grey, transparency=7)).getpixel((0, 0)) == 255
    palette = Image.new("RGB", (8, 8), (1, 2, 3)).quantize(4)
    assert images.open_image(saved(palette)).getpixel((0, 0)) == (1, 2, 3)
    assert images.open_image(saved(palette, transparency=0), "white").getpixel((0, 0)) == (255, 255, 255)


def test_one_bit_and_cmyk():
    bits = Image.fromarray(ramp() > 127)
    opened = images.open_image(saved(bits))
    assert opened.mode == "L"
    assert set(np.unique(np.asarray(opened))) == {0, 255}
    red = Image.new("RGB", (16, 16), (255, 0, 0)).convert("CMYK")
    opened = images.open_image(saved(red, "JPEG", quality=95))
    assert opened.mode == "RGB"
    assert np.abs(np.asarray(opened).astype(int) - [255, 0, 0]).max() <= 8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    corner = Image.new("RGB", (32, 16), "black")
    corner.paste((255, 255, 255), (0, 0, 8, 8))  # the stored image's top left
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened = images.open_image(saved(corner, "JPEG", exif=exif, quality=95))
    assert opened.size == ((32, 16) if orientation < 5 else (16, 32))
    right = orientation in (2, 3, 6, 7)
    bottom = orientation in (3, 4, 7, 8)
    place = (opened.width - 3 if right else 2, opened.height - 3 if bottom else 2)
    assert min(opened.getpixel(place)) > 200


def test_animation_gives_its_first_frame_and_a_notice(caplog):
    frames = [Image.new("L", (8, 8), value) for value in (200, 100, 0)]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    with caplog.at_level("INFO", "diffkit.pictures.images"):
        opened = images.open_image(data, name="a.gif")
    assert opened.getpixel((0, 0)) in (200, (200, 200, 200))
    assert "a.gif has 3 frames" in caplog.text


@pytest.mark.parametrize(("width", "height"), [(60000, 60000), (10000, 10000), (2**31 - 1, 2**31 - 1)])
def test_pixel_bombs_are_refused_by_the_header(width, height, tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(width, height))
    with pytest.raises(DataError, match=r"bomb\.png") as caught:
        images.open_image(path)
    assert caught.value.exit_code == 3


def test_a_real_ten_thousand_square_is_refused():
    with pytest.raises(DataError, match="10000x10000"):
        images.open_image(saved(Image.new("1", (10000, 10000))))


def test_too_small():
    with pytest.raises(DataError, match="1x1 is too small"):
        images.open_image(saved(Image.new("L", (1, 1))))


def noise():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"just some text", "not an image"),
        (saved(noise(), "JPEG")[:900], "cannot be decoded"),
        (saved(noise())[:900], "cannot be decoded"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    ],
)
def test_broken_files_name_the_file_and_the_reason(data, reason, tmp_path):
    path = tmp_path / "ein Bild ü.png"
    path.write_bytes(data)
    with pytest.raises(DataError, match=reason) as caught:
        images.open_image(path)
    assert "ein Bild ü.png" in caught.value.message


def test_random_damage_ends_in_an_image_or_a_data_error():
    rng = np.random.default_rng(1)
    small = Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8))
    refused = 0
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"):
        whole = np.frombuffer(saved(small, kind), dtype=np.uint8)
        for _ in range(40):
            data = whole.copy()
            data[rng.integers(0, len(data), 8)] = rng.integers(0, 256, 8)
            try:
                assert images.open_image(data.tobytes()).mode in ("L", "RGB")
            except DataError:
                refused += 1
    assert refused > 20


def test_missing_file_folder_and_colour(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        images.open_image(tmp_path / "none.png")
    with pytest.raises(DataError, match="is a folder"):
        images.open_image(tmp_path)
    with pytest.raises(UsageError, match="no colour"):
        images.open_image(saved(Image.new("L", (8, 8))), "blurple")


def test_open_file_objects_are_read(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(saved(Image.fromarray(ramp())))
    with path.open("rb") as file:
        assert np.array_equal(np.asarray(images.open_image(file)), ramp())


def test_draft_never_goes_under_the_side_asked_for():
    photo = saved(Image.new("RGB", (1600, 1200), "teal"), "JPEG")
    opened = images.open_image(photo, draft=128)
    assert opened.width < 1600
    assert min(opened.size) >= 128


def test_resampling_down_is_antialiased():
    stripes = np.zeros((64, 64), dtype=np.uint8)
    stripes[:, ::2] = 255
    small = np.asarray(images.cut_square(Image.fromarray(stripes), 16))
    assert np.abs(small[:, 2:-2].astype(int) - 127).max() <= 3


def test_cut_takes_the_centre():
    wide = np.zeros((10, 30), dtype=np.uint8)
    wide[:, 10:20] = 255
    assert np.asarray(images.cut_square(Image.fromarray(wide), 10)).min() == 255
    assert images.cut(Image.fromarray(wide), 40, 20).size == (40, 20)


@pytest.mark.parametrize(("size", "result"), [((30, 10), (48, 16)), ((10, 30), (16, 48)), ((4, 4000), (16, 128))])
def test_shorter_side(size, result):
    assert images.shorter_side(Image.new("L", size), 16).size == result


def test_greyness():
    assert images.is_grey(Image.fromarray(ramp()).convert("RGB"))
    tinted = Image.new("RGB", (8, 8), (9, 9, 9))
    tinted.putpixel((7, 7), (9, 9, 10))
    assert not images.is_grey(tinted)
