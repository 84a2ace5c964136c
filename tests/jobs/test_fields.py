"""Fields of jobs that are read from texts: sizes."""

from __future__ import annotations

import pytest

from diffkit.errors import UsageError
from diffkit.jobs.base import build
from diffkit.jobs.sample import Sample


@pytest.mark.parametrize(
    ("text", "size"), [("512", (512, 512)), ("768x512", (512, 768)), ("768X512", (512, 768)), ("8x99999", (99999, 8))]
)
def test_sizes_are_width_by_height(text: str, size: tuple[int, int]) -> None:
    assert build(Sample, {"resolution": text}).picture_size() == size
    assert build(Sample, {}).picture_size() is None


def test_in_python_a_square_may_be_a_number() -> None:
    job = build(Sample, {"resolution": 64})
    assert job.picture_size() == (64, 64)
    assert job.resolution == "64"  # what a picture's file remembers is the text of the command line


@pytest.mark.parametrize("wrong", [True, 64.0, (64, 32), 0, -8])
def test_other_numbers_are_no_size(wrong: object) -> None:
    with pytest.raises(UsageError, match="resolution"):
        build(Sample, {"resolution": wrong})


@pytest.mark.parametrize("text", ["", "x", "512x", "x512", "0", "512x0", "-8", "8.5", "1x2x3", "999999", "²", "wide"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="resolution"):
        build(Sample, {"resolution": text})
