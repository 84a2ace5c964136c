from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from diffkit.errors import UsageError
from diffkit.pictures.animation import write_gif


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_gif_keeps_every_frame(tmp_path: Path, mode: str) -> None:
    write_gif(
        tmp_path / "a.gif",
        [Image.new(mode, (64, 64), v if mode == "L" else (v, 0, 0)) for v in (0, 100, 200)],
        milliseconds=50,
        hold=700,
    )
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


def test_a_gif_needs_frames(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least one frame"):
        write_gif(tmp_path / "a.gif", [])
    assert not list(tmp_path.iterdir())
