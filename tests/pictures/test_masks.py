"""What a mask file means: as a table of files; what is plain black and white stays as it is, bit for bit."""

from __future__ import annotations

import logging
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps

from diffkit.errors import DataError, UsageError
from diffkit.pictures.images import open_image
from diffkit.pictures.masks import check_mask_size, cut_mask, one_sided, open_mask, read_mask

SIZE = (48, 32)
RIGHT = np.zeros((32, 48), dtype=bool)
RIGHT[:, 24:] = True
NOISE = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)


def file_of(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def halves(left, right, mode: str = "L") -> Image.Image:
    image = Image.new(mode, SIZE, left)
    image.paste(right, (24, 0, *SIZE))
    return image


def with_alpha(image: Image.Image, alpha: Image.Image) -> Image.Image:
    image = image.copy()
    image.putalpha(alpha)
    return image


def palette(left: tuple[int, int, int], right: tuple[int, int, int]) -> Image.Image:
    image = halves(0, 1, "P")
    image.putpalette([*left, *right])
    return image


HOLE = halves(255, 0)  # the alpha of a picture whose right half was erased
PHOTO = Image.fromarray(NOISE)
TURNED = halves(255, 0)  # white is what can be seen of it, under `HOLE`
CHECKS = Image.fromarray(np.indices((32, 48)).sum(0).astype(np.uint8) // 8 % 2 * 255)
RED, GREEN, BLUE, BLACK, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0), (255, 255, 255)


# --- black and white: as ever


@pytest.mark.parametrize(
    "data",
    [
        file_of(halves(0, 255)),
        file_of(halves(0, 255).convert("1")),
        file_of(halves(BLACK, WHITE, "RGB")),
        file_of(palette(BLACK, WHITE)),
        file_of(halves(0, 255).convert("LA")),
        file_of(halves(BLACK, WHITE, "RGB").convert("RGBA")),
        file_of(Image.fromarray(np.where(RIGHT, 65535, 0).astype(np.uint16))),
        file_of(halves(0, 255), "JPEG", quality=60),
        file_of(halves(BLACK, WHITE, "RGB"), "JPEG", quality=60),
        file_of(halves(BLACK, WHITE, "RGB").convert("CMYK"), "JPEG"),
        file_of(halves(0, 255).filter(ImageFilter.GaussianBlur(3))),
        file_of(Image.linear_gradient("L").resize(SIZE)),
        file_of(halves(64, 255)),
        file_of(Image.new("L", SIZE, 0)),
        file_of(Image.new("L", SIZE, 255)),
        file_of(Image.new("L", SIZE, 127)),
    ],
    ids=["L", "1", "RGB", "P", "LA", "RGBA", "I;16", "JPEG", "RGB JPEG", "CMYK", "soft", "ramp", "grey and white",
         "black", "white", "grey"],
)  # fmt: skip
@pytest.mark.parametrize("invert", [False, True])
def test_brightness_is_taken_as_it_is(data: bytes, invert: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "diffkit"):
        mask = open_mask(data, invert)
    plain = open_image(data).convert("L")
    assert mask.mode == "L"
    assert mask.tobytes() == (ImageOps.invert(plain) if invert else plain).tobytes()
    assert not caplog.records


# --- all else: which half is white, and what is said


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (file_of(with_alpha(PHOTO, HOLE)), "has transparency: its transparent part is repainted"),
        (file_of(with_alpha(Image.new("RGB", SIZE, BLACK), HOLE)), "its transparent part is repainted"),
        (file_of(with_alpha(Image.new("RGB", SIZE, WHITE), HOLE)), "its transparent part is repainted"),
        (file_of(with_alpha(Image.new("L", SIZE, 90), HOLE)), "its transparent part is repainted"),
        (file_of(with_alpha(PHOTO.convert("L"), HOLE)), "its transparent part is repainted"),
        (file_of(palette(GREEN, RED), transparency=1), "its transparent part is repainted"),
        (file_of(with_alpha(CHECKS, HOLE)), "black and white, and has transparency, which counts: its transparent"),
        (file_of(with_alpha(TURNED, HOLE)), "its transparent part is repainted"),
        (file_of(halves(0, 1)), "brightest value is 1 of 255: it is stretched to white"),
        (file_of(halves(0, 127)), "brightest value is 127 of 255: it is stretched to white"),
        (file_of(halves(0, 200)), "brightest value is 200 of 255: it is stretched to white"),
        (file_of(halves(100, 200)), "brightest value is 200 of 255: it is stretched to white"),
        (file_of(palette((0, 0, 0), (1, 1, 1))), "brightest value is 1 of 255: it is stretched to white"),
        (file_of(with_alpha(halves(0, 1), Image.new("L", SIZE, 255))), "brightest value is 1 of 255"),
        (file_of(Image.fromarray(RIGHT.astype(np.uint16))), "it is stretched to white"),
        (file_of(Image.fromarray(RIGHT.astype(np.int32)), "TIFF"), "it is stretched to white"),
        (file_of(Image.fromarray(RIGHT.astype(np.uint16) * 32767)), "it is stretched to white"),
        (file_of(halves(BLACK, RED, "RGB")), "two colours: #ff0000 is repainted, #000000 is kept"),
        (file_of(halves(BLACK, BLUE, "RGB")), "two colours: #0000ff is repainted, #000000 is kept"),
        (file_of(halves(RED, WHITE, "RGB")), "two colours: #ffffff is repainted, #ff0000 is kept"),
        (file_of(halves(RED, GREEN, "RGB")), "two colours: #00ff00 is repainted, #ff0000 is kept"),
        (file_of(palette((0, 0, 0), (128, 0, 0))), "two colours: #800000 is repainted, #000000 is kept"),
        (file_of(halves(BLACK, (1, 0, 0), "RGB")), "two colours: #010000 is repainted, #000000 is kept"),
        (file_of(halves(BLACK, RED, "RGB"), "JPEG", quality=85), " is repainted, #000000 is kept"),
    ],
)
@pytest.mark.parametrize("invert", [False, True])
def test_what_a_mask_means_is_said_in_one_line(
    data: bytes, said: str, invert: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "diffkit"):
        mask = open_mask(data, invert, name="hole.png")
    assert set(np.unique(np.asarray(mask))) == {0, 255}
    assert ((np.asarray(mask) == 255) == (invert != RIGHT)).all()
    (record,) = caplog.records
    assert record.message.startswith("hole.png ")
    if not invert:
        assert said in record.message
    elif "transparen" in said:
        assert "its opaque part is repainted, its transparent part is kept" in record.message
    warned = "black and white, and" in said
    assert record.levelno == (logging.WARNING if warned else logging.INFO)


def test_colours_that_are_turned_round_are_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "diffkit"):
        open_mask(file_of(halves(BLACK, RED, "RGB")), True, name="m")
    assert caplog.messages == [
        "m has two colours: #000000 is repainted, #ff0000 is kept (`invert_mask` turns it round)"
    ]


def test_soft_edges_stay_soft() -> None:
    """Of an eraser's alpha, of a dim mask, and of a brush in a colour."""
    edge = HOLE.filter(ImageFilter.GaussianBlur(4))
    alpha = open_mask(file_of(with_alpha(PHOTO, edge)))
    assert alpha.tobytes() == ImageOps.invert(edge).tobytes()
    soft = ImageOps.invert(edge)
    dim = np.asarray(open_mask(file_of(soft.point([v // 2 for v in range(256)])))).astype(int)
    assert np.abs(dim - np.asarray(soft)).max() <= 2
    brush = Image.merge("RGB", [soft, *[Image.new("L", SIZE, 0)] * 2])
    red = np.asarray(open_mask(file_of(brush))).astype(int)
    assert np.abs(red - np.asarray(soft)).max() <= 4


def test_a_mask_of_many_colours_is_its_brightness(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "diffkit"):
        mask = open_mask(file_of(PHOTO))
    assert mask.tobytes() == PHOTO.convert("L").tobytes()
    assert "many colours: its brightness counts, what is light is repainted" in caplog.text


def test_an_opacity_that_is_the_same_everywhere_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "diffkit"):
        for opacity in (255, 253, 200):
            mask = open_mask(file_of(with_alpha(halves(0, 255), Image.new("L", SIZE, opacity))))
            assert ((np.asarray(mask) == 255) == RIGHT).all()
    assert not caplog.records
    erased = open_mask(file_of(with_alpha(PHOTO, Image.new("L", SIZE, 0))))
    assert erased.getextrema() == (255, 255)


def test_every_kind_of_source(tmp_path: Path) -> None:
    image = with_alpha(PHOTO, HOLE)
    image.save(tmp_path / "m.png")
    masks = [
        open_mask(source) for source in (tmp_path / "m.png", str(tmp_path / "m.png"), image, BytesIO(file_of(image)))
    ]
    assert len({mask.tobytes() for mask in masks}) == 1
    (tmp_path / "text.png").write_text("hello")
    for bad in ("text.png", "none.png"):
        with pytest.raises(DataError, match=bad):
            open_mask(tmp_path / bad)


# --- what is done with it


def test_masks_of_another_size_are_refused() -> None:
    with pytest.raises(UsageError, match="`mask` is 16x16 pixels, the image 48x32"):
        check_mask_size(Image.new("L", (16, 16)), Image.new("RGB", SIZE))
    check_mask_size(halves(0, 255), Image.new("RGB", SIZE))


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "nothing is repainted"), (5, "nothing is repainted"), (127, None), (250, "nothing of the image is kept"),
     (255, "nothing of the image is kept")],
)  # fmt: skip
def test_masks_that_ask_for_nothing_or_everything(value: int, said: str | None) -> None:
    line = one_sided(Image.new("L", SIZE, value))
    assert line is None if said is None else said in str(line)
    assert one_sided(halves(0, 255)) is None


def test_a_reading_says_what_opening_logs(caplog: pytest.LogCaptureFixture) -> None:
    data = file_of(with_alpha(CHECKS, HOLE))
    with caplog.at_level(logging.INFO, "diffkit"):
        mask = read_mask(data)
        assert not caplog.records
        assert mask.image.tobytes() == open_mask(data).tobytes()
    assert caplog.messages == [mask.line]
    assert mask.ambiguous
    assert read_mask(file_of(halves(0, 255))).line == ""


def test_a_mask_is_cut_like_its_image() -> None:
    hard = cut_mask(halves(0, 255), 9, 9)
    assert hard.shape == (1, 1, 9, 9)
    assert hard.unique().tolist() == [0.0, 1.0]
    assert hard[..., :4].max() == 0
    assert hard[..., 5:].min() == 1
    noisy = cut_mask(halves(4, 250), 32, 32)  # as a JPEG leaves it
    assert {noisy[..., :10].max().item(), noisy[..., 22:].min().item()} == {0.0, 1.0}
    assert cut_mask(Image.linear_gradient("L"), 64, 64).unique().numel() > 50
