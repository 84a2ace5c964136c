"""Columns of image folders and tables: found by all their values, named, or missing; and what is not used is said."""

import json
from pathlib import Path

import datasets
import pytest
from data_support import TWO, below, captions, opened, picture, write_folder, write_table

from diffkit.errors import DataError


@pytest.mark.parametrize(
    "name",
    ["metadata.json", "metdata.jsonl", "Metadata.jsonl.txt", "meta_data.csv", "metadata.jsonlines", "metadata.tsv"],
)
def test_a_misspelt_metadata_file_is_said_once(tmp_path, caplog, name):
    write_folder(tmp_path, 1)
    (tmp_path / name).write_text("[]")
    opened(tmp_path)
    assert caplog.text.count(f"{name} is not read") == 1
    assert "metadata.jsonl, metadata.csv, metadata.parquet" in caplog.text


@pytest.mark.parametrize("name", ["captions.json", "x/photo.heic", "labels.xlsx", "images.zip", "film.mp4"])
def test_other_files_are_named_and_read_mes_are_not(tmp_path, caplog, name):
    write_folder(tmp_path / "train", 1)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    for file in (name, "README.md", "LICENSE", ".hidden"):
        (tmp_path / file).write_bytes(b"x")
    with caplog.at_level("INFO", "diffkit.data"):
        opened(tmp_path)
    assert f"{tmp_path}: found and not used: {name}\n" in caplog.text


def test_two_metadata_files_in_one_folder(tmp_path, caplog):
    write_folder(tmp_path, 2)
    write_table(tmp_path / "metadata.csv", [{**TWO[0], "text": "from csv"}])
    write_table(tmp_path / "metadata.jsonl", TWO)
    assert captions(opened(tmp_path)) == ["zero", "one"]
    assert "metadata.csv is not used: metadata.jsonl beside it is" in caplog.text


def test_entries_of_files_that_are_not_images_are_said(tmp_path, caplog):
    write_folder(tmp_path, 2)
    (tmp_path / "film.mp4").write_bytes(b"x")
    write_table(tmp_path / "metadata.jsonl", [*TWO, {"file_name": "film.mp4", "text": "a film"}])
    assert captions(opened(tmp_path)) == ["zero", "one"]
    assert "1 entries of metadata name files that are not read as images: film.mp4" in caplog.text


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    (tmp_path / "a.arrow").write_bytes(b"x")
    with pytest.raises(DataError, match=r"no images in .*; it holds a\.arrow"):
        opened(tmp_path)


@pytest.mark.parametrize("name", ["a.jfif", "a.jpe", "a.JPE", "a.apng", "a.pnm", "a.mpo"])
def test_less_usual_extensions_of_formats_that_are_read(tmp_path, name):
    form = {"jfif": "JPEG", "jpe": "JPEG", "mpo": "JPEG", "apng": "PNG", "pnm": "PPM"}[name[2:].lower()]
    picture(0).save(tmp_path / name, form)
    assert opened(tmp_path).length == 1


def test_parquet_beside_images_is_said(tmp_path, caplog):
    write_folder(tmp_path, 2)
    cells = [{"bytes": (tmp_path / "img0.png").read_bytes(), "path": None}] * 3
    datasets.Dataset.from_dict({"image": cells}, features=datasets.Features(image=datasets.Image())).to_parquet(
        tmp_path / "train.parquet"
    )
    assert opened(tmp_path).length == 3
    assert "parquet files are read, the images not" in caplog.text


def plain(root):
    write_folder(root, 4, classes=2)


def listed(root):
    write_folder(root, 4, classes=2)
    write_table(root / "metadata.jsonl", [{"file_name": "c0/img0.png", "text": "zero", "size": 1.5, "none": None}])


def with_texts(root):
    write_folder(root, 2)
    for k in range(2):
        (root / f"img{k}.txt").write_text("text")


MISSING = [  # the folder, the field, the value, the columns that the error names
    (plain, "caption_column", "text", "image (image), label (class)"),
    (plain, "class_column", "kind", "image (image), label (class)"),
    (plain, "image_column", "img", "image (image), label (class)"),
    (plain, "class_column", "image", "image (image), label (class)"),
    (listed, "caption_column", "txt", "file_name (image), label (class), text (text), size (float), none (empty)"),
    (listed, "caption_column", "none_", "none (empty)"),
    (listed, "class_column", "Text", "text (text)"),
    (listed, "image_column", "path", "file_name, text, size, none"),
    (listed, "caption_column", "file_name", "file_name (image)"),
    (with_texts, "caption_column", "caption", "image (image), txt (text)"),
    ("digits", "caption_column", "text", "image (image), label (class)"),
    ("digits", "class_column", "digit", "image (image), label (class)"),
    ("glyphs", "class_column", "label", "image (image), caption (text)"),
]


@pytest.mark.parametrize(("make", "field", "value", "columns"), MISSING)
def test_a_named_column_that_is_not_there_is_an_error_that_lists_those_there_are(
    tmp_path, make, field, value, columns, run_cli, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    name = make
    if callable(make):
        make(tmp_path)
        name = str(tmp_path)
    with pytest.raises(DataError, match=f"{field} {value!r}") as caught:
        opened(name, **{field: value})
    assert columns in caught.value.message
    assert caught.value.hint
    for command in ("check", "preview"):
        ran = run_cli("data", command, name, f"--{field.replace('_', '-')}", value)
        assert ran.code == 3
        assert value in ran.stderr


def test_columns_of_folders_have_the_names_that_datasets_gives_them(tmp_path):
    plain(tmp_path)
    assert opened(tmp_path, image_column="image", class_column="label").class_names == ["c0", "c1"]
    assert captions(opened(tmp_path, caption_column="label")) == ["c0", "c0", "c1", "c1"]
    assert opened(tmp_path, class_column="none").class_names is None
    assert captions(opened("digits", caption_column="label", limit=3)) == ["0", "1", "2"]
    assert opened("digits", class_column="none").class_names is None


KINDS = [  # the values of a column, and the classes made of it; None: it is not taken for classes
    ([None, "a", "b", "a"], None),
    (["a", "b", "a", "b"], ["a", "b"]),
    ([2, 10, 2, 10], ["2", "10"]),
    ([2, "x", 2, "x"], ["2", "x"]),
    ([True, False, True, True], ["False", "True"]),
    ([None, None, None, None], None),
    ([0.5, 0.25, 0.5, 0.5], None),
    ([["a"], ["b"], ["a"], ["b"]], None),  # in JSON Lines only
]


@pytest.mark.parametrize(
    ("values", "classes", "form"),
    [
        (v, c, form)
        for v, c in KINDS
        for form in ("metadata.jsonl", "metadata.csv")
        if "csv" not in form or v[:1] != [["a"]]
    ],
)
def test_a_column_is_judged_by_all_its_values(tmp_path, values, classes, form, caplog):
    write_folder(tmp_path, 4)
    rows = [{"file_name": f"img{k}.png", "label": value} for k, value in enumerate(values)]
    if form == "metadata.csv":
        cells = ["" if value is None else str(value) for value in values]
        (tmp_path / form).write_text("file_name,label\n" + "".join(f"img{k}.png,{c}\n" for k, c in enumerate(cells)))
    else:
        write_table(tmp_path / form, rows)
    with caplog.at_level("INFO", "diffkit.data"):
        assert opened(tmp_path).class_names == classes
    if None in values and any(values):
        assert "1 of 4 images have no class" in caplog.text
        with pytest.raises(DataError, match="1 of 4 images have no class") as caught:
            opened(tmp_path, class_column="label")
        assert "class_column=none" in caught.value.hint


def test_what_a_null_caption_means_is_said(tmp_path, caplog):
    write_folder(tmp_path, 4)
    write_table(tmp_path / "metadata.jsonl", [{**TWO[0], "text": None}, TWO[1], {"file_name": "img2.png"}])
    with caplog.at_level("INFO", "diffkit.data"):
        assert captions(opened(tmp_path)) == ["", "one", "", ""]
    assert "3 of 4 images" in caplog.text
    assert "no caption; theirs is the empty text" in caplog.text


def test_null_captions_and_empty_columns_of_tables(tmp_path, caplog):
    cells = [{"bytes": (write_folder(tmp_path / "x", 1) / "img0.png").read_bytes(), "path": None}] * 3
    table = datasets.Dataset.from_dict({"image": cells, "text": [None, "one", ""], "title": [None] * 3})
    table.to_parquet(tmp_path / "set" / "a.parquet")
    with caplog.at_level("INFO", "diffkit.data"):
        assert captions(opened(tmp_path / "set")) == ["", "one", ""]
    assert "1 of 3 images" in caplog.text
    with pytest.raises(DataError, match=r"caption_column 'title' .* is null everywhere"):
        opened(tmp_path / "set", caption_column="title")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_of_save_to_disk_is_read(tmp_path, streaming):
    write_folder(tmp_path / "x", 3)
    cells = [{"bytes": (tmp_path / "x" / f"img{k}.png").read_bytes(), "path": None} for k in range(3)]
    features = datasets.Features(image=datasets.Image(), text=datasets.Value("string"))
    table = datasets.Dataset.from_dict({"image": cells, "text": ["a", "b", "c"]}, features=features)
    table.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=table, test=table.select([0, 2])).save_to_disk(tmp_path / "two")
    for name in ("one", "two"):
        dataset = opened(tmp_path / name, streaming=streaming)
        assert dataset.has_captions
        if not streaming:
            assert captions(dataset) == ["a", "b", "c"]
    assert streaming or captions(opened(tmp_path / "two", split="test")) == ["a", "c"]
    for name, said in (("one", "it is one table"), ("two", "there are: train, test")):
        with pytest.raises(DataError, match=said):
            opened(tmp_path / name, split="validation")
    next(Path(tmp_path / "one").glob("*.arrow")).unlink()
    with pytest.raises(DataError, match="cannot be read as a dataset of save_to_disk"):
        opened(tmp_path / "one", streaming=streaming)


def test_check_and_preview_agree_with_training(tmp_path, run_cli):
    write_folder(tmp_path / "set" / "images", 3)
    write_table(tmp_path / "set" / "metadata.csv", below("images", TWO))
    found = json.loads(run_cli("data", "check", tmp_path / "set", "--json").stdout)
    assert found["captioned"] == 2
    assert found["training"]["captions"] is True
    shown = run_cli("data", "preview", tmp_path / "set", "-n", "3", "--out", tmp_path / "grid.png", "--json")
    assert sorted(json.loads(shown.stdout)["labels"]) == ["", "one", "zero"]
    write_table(tmp_path / "set" / "metadata.csv", below("images", [*TWO, {"file_name": "gone.png", "text": "x"}]))
    ran = run_cli("data", "check", tmp_path / "set")
    assert ran.code == 3
    assert "metadata.csv, line 4: no file 'images/gone.png'" in ran.stdout + ran.stderr
    assert run_cli("data", "check", tmp_path / "set", "--on-error", "skip").code == 0
