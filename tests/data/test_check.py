"""`diffkit data check` and `data preview`, as a user runs them."""

import json

import numpy as np
import pytest
from data_support import loader, picture, png, write_folder, write_shards
from PIL import Image

from diffkit.data.check import check
from diffkit.errors import DataError
from diffkit.recipes.schema import DatasetSpec


@pytest.fixture
def mixed(tmp_path):
    """Nine good images in two classes, three broken ones, one copy."""
    root = write_folder(tmp_path / "set", 8, classes=2)
    (root / "c1" / "copy.png").write_bytes((root / "c0" / "img0.png").read_bytes())
    (root / "c0" / "zero.png").write_bytes(b"")
    (root / "c0" / "text.png").write_text("hello")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "c1" / "cut.jpg")
    data = (root / "c1" / "cut.jpg").read_bytes()
    (root / "c1" / "cut.jpg").write_bytes(data[: len(data) // 2])
    return root


def test_check_lists_everything(mixed, run_cli):
    ran = run_cli("data", "check", mixed, "--json")
    assert ran.code == 3
    found = json.loads(ran.stdout)
    assert (found["images"], found["readable"], found["colour"]) == (12, 9, 9)
    reasons = {row["file"].rpartition("/")[2]: row["reason"] for row in found["broken"]}
    assert set(reasons) == {"zero.png", "text.png", "cut.jpg"}
    assert "empty" in reasons["zero.png"]
    assert "not an image" in reasons["text.png"]
    assert "truncated" in reasons["cut.jpg"]
    assert found["classes"] == {"c0": 6, "c1": 6}
    assert found["modes"] == {"RGB": 9}
    assert found["sizes"]["8x8"] == 2
    assert [[name.rpartition("/")[2] for name in group] for group in found["duplicates"]] == [["img0.png", "copy.png"]]
    assert "stops at the first of 3 broken" in found["training"]["error"]
    assert found["error"]["code"] == 3
    assert "3 of 12" in found["error"]["message"]


def test_check_in_words_names_every_broken_file(mixed, run_cli):
    ran = run_cli("data", "check", mixed)
    assert ran.code == 3
    for name in ("zero.png", "text.png", "cut.jpg"):
        assert str(mixed) in ran.stdout
        assert name in ran.stdout


def test_what_check_says_training_would_read_is_what_it_reads(mixed, run_cli):
    ran = run_cli("data", "check", mixed, "--on-error", "skip", "--resolution", "8", "--json")
    plan = json.loads(ran.stdout)["training"]
    one = loader(DatasetSpec(name=str(mixed), resolution=8, on_error="skip"))
    assert plan["images"] == one.length == 9
    assert (plan["channels"], plan["resolution"]) == (one.shape[0], one.shape[1])


def test_check_of_a_clean_set(tmp_path, run_cli):
    ran = run_cli("data", "check", write_shards(tmp_path / "set"))
    assert ran.code == 0
    assert "images      123 (123 readable, 0 with colour)" in ran.stdout
    assert run_cli("data", "check", "digits").code == 0


def test_check_of_nothing(tmp_path, run_cli):
    ran = run_cli("data", "check", tmp_path)
    assert ran.code == 3
    assert str(tmp_path) in ran.stderr
    assert ".png" in ran.stderr


def test_check_when_nothing_can_be_read(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    report = check(DatasetSpec(name=str(tmp_path), on_error="skip"))
    assert len(report.broken) == 1
    assert "none of the" in report.training["error"]


def test_check_warns_of_colour_that_the_sample_misses(tmp_path, caplog):
    for k in range(100):
        picture(k, mode="RGB" if k == 1 else "L").save(tmp_path / f"{k:03d}.png")
    report = check(DatasetSpec(name=str(tmp_path)))
    assert (report.colour, report.training["channels"]) == (1, 1)
    assert "`dataset.channels=3`" in caplog.text


def test_preview_shows_what_training_sees(mixed, tmp_path, run_cli):
    out = tmp_path / "grid.png"
    flags = ("--on-error", "skip", "--resolution", "16", "--flip", "--crop", "random", "--seed", "5", "-n", "6")
    ran = run_cli("data", "preview", mixed, *flags, "--out", out, "--json")
    assert ran.code == 0
    said = json.loads(ran.stdout)
    spec = DatasetSpec(name=str(mixed), resolution=16, flip=True, crop="random", on_error="skip")
    one = loader(spec, batch_size=6, seed=5)
    batch = next(one.stream())
    assert said["ids"] == batch.ids.tolist()
    assert said["labels"] == [one.dataset.class_names[k] for k in batch.labels.tolist()]
    assert said["skipped"] == 3
    with Image.open(out) as grid:
        assert min(grid.size) >= 32


def test_preview_of_the_default_set(tmp_path, run_cli, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = run_cli("data", "preview", "--resolution", "16", "-n", "4")
    assert ran.code == 0
    assert ran.stdout.strip() == "outputs/data-preview-0.png"
    assert (tmp_path / "outputs" / "data-preview-0.png").is_file()


def test_preview_fails_early_where_nothing_can_be_written(tmp_path, run_cli):
    (tmp_path / "file").write_text("x")
    ran = run_cli("data", "preview", "--out", tmp_path / "file" / "x.png")
    assert ran.code == 2


def test_wrong_channels(run_cli):
    assert run_cli("data", "check", "digits", "--channels", "2").code == 2


def test_large_files_are_not_read_whole(tmp_path, monkeypatch):
    from diffkit.data import folder

    monkeypatch.setattr(folder, "MAX_BYTES", 100)
    (tmp_path / "big.png").write_bytes(png(picture(0, 64, 64)))
    report = check(DatasetSpec(name=str(tmp_path), on_error="skip"))
    assert "too large" in report.broken[0][1]
    with pytest.raises(DataError):
        check(DatasetSpec(name=str(tmp_path / "none")))
