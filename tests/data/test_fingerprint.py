"""A dataset of other contents has another fingerprint, a copy has the same; no cache serves what was there before."""

import io
import os
import shutil
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet
import pytest
from data_support import loader, picture, png, take

from diffkit.data import fingerprint, open_dataset
from diffkit.recipes.schema import DatasetSpec


def marks(path, **fields):
    return open_dataset(DatasetSpec(name=str(path), resolution=8, **fields)).fingerprint(captions=True, classes=True)


def changed(path, before, **fields):
    return fingerprint.changes(before, marks(path, **fields))


def keeping_the_time(path, data):
    """Write other contents as rsync and cp -p do: with the time of the old file."""
    times = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def bmp(path, seed, side=12):
    picture(seed, side, side).save(path, "BMP")


def folder(root):
    """Four BMP files, whose sizes are equal whatever they show, in two classes, with captions."""
    for k in range(4):
        (root / f"c{k % 2}").mkdir(parents=True, exist_ok=True)
        bmp(root / f"c{k % 2}" / f"{k}.bmp", k)
    (root / "metadata.csv").write_text("file_name,text\n" + "".join(f"c{k % 2}/{k}.bmp,text {k}\n" for k in range(4)))
    return root


def repaint(root):
    bmp(root / "other.bmp", 99)
    keeping_the_time(root / "c1" / "3.bmp", (root / "other.bmp").read_bytes())
    (root / "other.bmp").unlink()


def rename(root):
    (root / "c0" / "0.bmp").rename(root / "c0" / "1.bmp")
    (root / "metadata.csv").unlink()


def swap(root):
    first, second = root / "c0" / "0.bmp", root / "c0" / "2.bmp"
    one, two = first.read_bytes(), second.read_bytes()
    keeping_the_time(first, two)
    keeping_the_time(second, one)


def recaption(root):
    file = root / "metadata.csv"
    keeping_the_time(file, file.read_bytes().replace(b"text 2", b"text 5"))


def reclass(root):
    (root / "c1").rename(root / "d1")
    (root / "metadata.csv").write_text((root / "metadata.csv").read_text().replace("c1", "d1"))


def add(root):
    bmp(root / "c0" / "9.bmp", 9)


def touch(root):
    for path in root.rglob("*"):
        os.utime(path, (1, 1))


def add_notes(root):
    (root / "notes.md").write_text("x")


CHANGES = {
    repaint: ["other images or file names"],
    swap: ["other images or file names"],
    rename: ["other images or file names", "other captions"],
    recaption: ["other captions"],
    reclass: ["other images or file names", "other classes"],
    add: ["4 images have become 5"],
    add_notes: [],
    touch: [],
}


@pytest.mark.parametrize(("change", "said"), CHANGES.items(), ids=lambda x: getattr(x, "__name__", ""))
def test_a_folder_that_changes(tmp_path, change, said):
    before = marks(folder(tmp_path / "set"))
    change(tmp_path / "set")
    assert changed(tmp_path / "set", before) == said


def test_a_copy_elsewhere_is_the_same(tmp_path):
    before = marks(folder(tmp_path / "set"))
    shutil.copytree(tmp_path / "set", tmp_path / "other" / "place")
    assert changed(tmp_path / "other" / "place", before) == []


def test_only_what_is_trained_on_counts(tmp_path):
    folder(tmp_path)
    dataset = open_dataset(DatasetSpec(name=str(tmp_path), resolution=8))
    assert set(dataset.fingerprint(captions=False, classes=False)) == {"count", "images"}
    assert set(dataset.fingerprint(captions=True, classes=True)) == {"count", "images", "captions", "classes"}
    before = marks(tmp_path, limit=2)
    repaint(tmp_path)  # an image beyond the limit
    assert changed(tmp_path, before, limit=2) == []


def test_what_is_not_known_is_no_difference():
    assert fingerprint.changes({}, {"source": "x"}) == []
    assert fingerprint.changes({"source": "x"}, {}) == []


@pytest.mark.parametrize("place", [0, 40_000, 500_000, 999_999])
def test_a_large_file_is_read_in_pieces_up_to_its_end(tmp_path, place):
    data = bytearray(1_000_000)
    (tmp_path / "x").write_bytes(data)
    before = fingerprint.of_files(tmp_path, ["x"], fingerprint.SHARD_PIECES)
    data[place : place + 20_000] = b"\x01" * len(data[place : place + 20_000])
    (tmp_path / "x").write_bytes(data)
    assert fingerprint.of_files(tmp_path, ["x"], fingerprint.SHARD_PIECES) != before


@pytest.mark.parametrize("length", [0, 1, 100, fingerprint.SAMPLE, fingerprint.SAMPLE + 1, 10**6])
def test_a_sample_is_bounded_and_has_both_ends(length):
    chosen = fingerprint.sample(length)
    assert len(set(chosen)) == len(chosen) == min(length, fingerprint.SAMPLE)
    assert not length or (chosen[0], chosen[-1]) == (0, length - 1)


def table(seed):
    cells = [{"bytes": _bmp(seed + k), "path": None} for k in range(5)]
    features = datasets.Features(image=datasets.Image(), text=datasets.Value("string"))
    return datasets.Dataset.from_dict({"image": cells, "text": ["a", "b", "c", "d", "e"]}, features=features)


def _bmp(seed):
    buffer = io.BytesIO()
    picture(seed).save(buffer, "BMP")
    return buffer.getvalue()


def parquet(root, seed):
    root.mkdir(exist_ok=True)
    file = root / "train.parquet"
    times = file.stat() if file.exists() else None
    # Uncompressed, so that other pixels make a file of the same size.
    pyarrow.parquet.write_table(table(seed).data.table, file, compression="none", use_dictionary=False)
    if times:
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def saved(root, seed):
    shutil.rmtree(root, ignore_errors=True)
    table(seed).save_to_disk(root)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("write", [parquet, saved])
def test_a_table_that_changes_and_one_that_is_written_again(tmp_path, write, streaming):
    write(tmp_path / "set", 0)
    before = marks(tmp_path / "set", streaming=streaming)
    assert before
    write(tmp_path / "set", 0)
    assert changed(tmp_path / "set", before, streaming=streaming) == []
    write(tmp_path / "set", 50)
    said = "other files or revision" if streaming else "other images or file names"
    assert changed(tmp_path / "set", before, streaming=streaming) == [said]


def pixels(path, **fields):
    spec = DatasetSpec(name=str(path), resolution=12, workers=0, **fields)
    batch = take(loader(spec, batch_size=4).stream(), 1)[0]
    return {int(k): np.asarray(image) for k, image in zip(batch.ids, batch.images, strict=True)}


@pytest.mark.parametrize("cache", ["memory", "disk"])
@pytest.mark.parametrize("kind", ["folder", "parquet", "saved"])
def test_changed_contents_are_read_anew_though_size_and_time_are_the_same(tmp_path, kind, cache):
    if kind == "folder":
        folder(tmp_path / "set")
    else:
        {"parquet": parquet, "saved": saved}[kind](tmp_path / "set", 0)
    before = pixels(tmp_path / "set", cache=cache)
    if kind == "folder":
        for k in range(4):
            keeping_the_time(tmp_path / "set" / f"c{k % 2}" / f"{k}.bmp", _bmp(50 + k))
    else:
        size = sum(p.stat().st_size for p in Path(tmp_path / "set").iterdir())
        {"parquet": parquet, "saved": saved}[kind](tmp_path / "set", 50)
        assert kind == "saved" or sum(p.stat().st_size for p in Path(tmp_path / "set").iterdir()) == size
    after = pixels(tmp_path / "set", cache=cache)
    assert before.keys() == after.keys()
    assert all(not np.array_equal(before[k], after[k]) for k in before)


def test_an_image_that_is_not_there_is_a_content_like_any_other(tmp_path):
    gone = {"bytes": None, "path": str(tmp_path / "gone.png")}
    cells = pyarrow.array(
        [{"bytes": png(picture(0)), "path": None}, gone, None],
        pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())]),
    )
    pyarrow.parquet.write_table(pyarrow.table({"image": cells}), tmp_path / "a.parquet")
    before = marks(tmp_path / "a.parquet", on_error="skip")
    assert before["count"] == "3"
    picture(1).save(tmp_path / "gone.png")
    assert changed(tmp_path / "a.parquet", before) == ["other images or file names"]


def test_registered_sets_know_themselves():
    assert marks("digits") == marks("digits")
    assert marks("digits", limit=5)["images"] != marks("digits", limit=6)["images"]
