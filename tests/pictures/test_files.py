from __future__ import annotations

from pathlib import Path

import pytest

from diffkit.errors import UsageError
from diffkit.pictures.files import Destination, output_folder, write_whole


def test_output_folder_is_proven_writable(tmp_path: Path) -> None:
    assert output_folder(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    for bad in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/diffkit")):
        with pytest.raises(UsageError, match="cannot be written"):
            output_folder(bad)


@pytest.mark.parametrize(
    ("out", "picture"),
    [
        (None, "outputs/sample-3-x.png"),
        ("a.png", "a.png"),
        ("a.PNG", "a.PNG"),
        ("b/c/a.png", "b/c/a.png"),
        ("r", "r/sample-3-x.png"),
        ("r.v2", "r.v2/sample-3-x.png"),
        ("b/0.5", "b/0.5/sample-3-x.png"),
        (".png", ".png/sample-3-x.png"),
        ("folder.png", "folder.png/sample-3-x.png"),
        ("folder.jpg", "folder.jpg/sample-3-x.png"),
    ],
)
def test_out_names_a_png_or_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str | None, picture: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("folder.png", "folder.jpg"):
        Path(name).mkdir()
    to = Destination.of(None if out is None else Path(out), "sample", 1)
    assert to.path(3, "x") == Path(picture)
    assert to.path(3, "x").parent.is_dir()
    assert (to.file is None) == picture.endswith("sample-3-x.png")
    assert not Path(picture).exists()


@pytest.mark.parametrize(
    "suffix", [".jpg", ".JPG", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".mp4"]
)
def test_out_is_no_other_kind_of_picture(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(UsageError, match="written as PNG files") as raised:
        Destination.of(tmp_path / "sub" / f"a{suffix}", "sample")
    assert raised.value.exit_code == 2
    assert f"{tmp_path}/sub/a.png" in str(raised.value.hint)
    assert not list(tmp_path.iterdir())


def test_one_file_is_for_one_picture(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one file, and there are 2 pictures"):
        Destination.of(tmp_path / "a.png", "sample", 2)
    assert Destination.of(tmp_path, "sample", 2).path(7) == tmp_path / "sample-7.png"


def test_names_of_what_is_written_beside_the_pictures(tmp_path: Path) -> None:
    folder, file = Destination.of(tmp_path, "anagram", 2), Destination.of(tmp_path / "a.png", "anagram")
    for to, gif in ((folder, "anagram.gif"), (file, "a.gif")):
        assert to.beside(".gif") == tmp_path / gif
        assert to.beside("grid.png") == tmp_path / "anagram-grid.png"
        assert to.beside("candidates-steps4.png") == tmp_path / "anagram-candidates-steps4.png"
    assert (folder.named("views.png"), file.named("views.png")) == (tmp_path / "views.png", tmp_path / "a.png")


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", b"old")
    write_whole(tmp_path / "a", b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a", b"new")]
