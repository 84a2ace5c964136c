"""Captions of image folders: where metadata is found, in which forms, and the errors that name file and line."""

import pytest
from data_support import TWO, below, captions, lines, opened, write_folder, write_table

from diffkit.errors import DataError

PLACES = {  # the images' folder, the metadata's, the prefix of its file names
    "beside": ("", "", ""),
    "above the image folder": ("images", "", "images"),
    "above two levels": ("data/images", "", "data/images"),
    "between": ("data/images", "data", "images"),
    "above train": ("train", "", "train"),
    "in train": ("train", "train", ""),
    "above train and a wrapper": ("all/train/images", "", "all/train/images"),
    "beside, named from the top": ("images", "texts", "../images"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "metadata.parquet", "Metadata.JSONL"])
def test_metadata_is_found_above_and_beside_in_every_form(tmp_path, place, name):
    images, table, prefix = PLACES[place]
    write_folder(tmp_path / images, 2)
    (tmp_path / table).mkdir(exist_ok=True)
    write_table(tmp_path / table / name.replace("JSONL", "jsonl"), below(prefix, TWO) if prefix else TWO)
    (tmp_path / table / name.replace("JSONL", "jsonl")).rename(tmp_path / table / name)
    dataset = opened(tmp_path)
    assert dataset.length == 2
    assert captions(dataset) == ["zero", "one"]


@pytest.mark.parametrize("split", ["train", "test"])
def test_metadata_above_splits_serves_each(tmp_path, split):
    for folder in ("train", "test"):
        write_folder(tmp_path / folder, 2)
    rows = [{"file_name": f"{f}/img{k}.png", "text": f"{f} {k}"} for f in ("train", "test") for k in range(2)]
    write_table(tmp_path / "metadata.jsonl", rows)
    assert captions(opened(tmp_path, split=split)) == [f"{split} 0", f"{split} 1"]
    (tmp_path / "test" / "img1.png").unlink()  # the other split's loss is not train's
    assert captions(opened(tmp_path)) == ["train 0", "train 1"]
    with pytest.raises(DataError, match=r"metadata\.jsonl, line 4: no file 'test/img1\.png'"):
        opened(tmp_path, split="test")


def test_sub_folders_stay_classes_beside_metadata(tmp_path):
    write_folder(tmp_path, 4, classes=2)
    write_table(tmp_path / "metadata.csv", [{"file_name": "c0/img0.png", "text": "zero", "style": 3}])
    dataset = opened(tmp_path)
    assert dataset.class_names == ["c0", "c1"]
    assert captions(dataset) == ["zero", "", "", ""]


def test_a_nearer_file_wins_and_repeated_entries_are_said(tmp_path, caplog):
    write_folder(tmp_path / "a", 2)
    write_folder(tmp_path / "b", 1)
    write_table(tmp_path / "metadata.jsonl", below("a", [*TWO, *TWO]))
    write_table(tmp_path / "a" / "metadata.jsonl", [{"file_name": "img1.png", "text": "near"}])
    assert captions(opened(tmp_path)) == ["zero", "near", ""]
    assert "2 files are listed more than once" in caplog.text


TEXTS = {
    "line separators in texts": lines([{**TWO[0], "text": "a\u2028b\u0085c\u2029"}, TWO[1]]),
    "a byte-order mark": "\ufeff" + lines(TWO),
    "lines of Windows": lines(TWO, "\r\n"),
    "empty lines": "\n" + lines(TWO, "\n\n \n"),
    "no last line end": lines(TWO).rstrip("\n"),
    "a null first": lines([{**TWO[0], "text": None}, TWO[1]]),
    "a missing first": lines([{"file_name": "img0.png"}, TWO[1]]),
    "lists": lines([{**TWO[0], "text": ["a", "b"]}, TWO[1]]),
    "a number among texts": lines([{**TWO[0], "text": 7}, TWO[1]]),
    "slashes of Windows": lines([{**TWO[0], "file_name": ".\\img0.png"}, TWO[1]]),
    "another name for the column": lines([{"image_file_name": r["file_name"], "text": r["text"]} for r in TWO]),
}
FIRST = {
    "line separators in texts": "a\u2028b\u0085c\u2029",
    "a null first": "",
    "a missing first": "",
    "lists": "a",
    "a number among texts": "7",
}


@pytest.mark.parametrize("kind", TEXTS)
def test_forms_of_json_lines(tmp_path, kind):
    write_folder(tmp_path, 2)
    (tmp_path / "metadata.jsonl").write_bytes(TEXTS[kind].encode())
    assert captions(opened(tmp_path)) == [FIRST.get(kind, "zero"), "one"]


CSVS = {
    "plain": "file_name,text\nimg0.png,zero\nimg1.png,one\n",
    "a byte-order mark and lines of Windows": "\ufefffile_name,text\r\nimg0.png,zero\r\nimg1.png,one\r\n",
    "commas, quotes and line ends": 'text,file_name\n"a, ""b""\nc\u2028",img0.png\none,img1.png\n',
    "an empty cell": "file_name,text\nimg0.png,\nimg1.png,one\n",
}


@pytest.mark.parametrize("kind", CSVS)
def test_forms_of_csv(tmp_path, kind):
    write_folder(tmp_path, 2)
    (tmp_path / "metadata.csv").write_bytes(CSVS[kind].encode())
    first = {"commas, quotes and line ends": 'a, "b"\nc\u2028', "an empty cell": ""}.get(kind, "zero")
    assert captions(opened(tmp_path)) == [first, "one"]


BROKEN = {
    "not utf-8": ("metadata.jsonl", lines(TWO).replace("one", "één").encode("latin-1"), r"jsonl, line 2: not UTF-8"),
    "utf-16": ("metadata.jsonl", lines(TWO).encode("utf-16"), r"jsonl, line 1: not UTF-8"),
    "csv not utf-8": ("metadata.csv", b"file_name,text\nimg0.png,\xe9\n", r"csv, line 2: not UTF-8"),
    "csv with a cell too many": (
        "metadata.csv",
        b"file_name,text\nimg0.png,a\nimg1.png,b, c\n",
        r"csv, line 3: 3 cells",
    ),
    "csv with an open quote": ("metadata.csv", b'file_name,text\nimg0.png,a\nimg1.png,"b\n', r"csv, line 3: not CSV"),
    "csv without names": ("metadata.csv", b"file,text\nimg0.png,a\n", r"no column file_name; its columns: file, text"),
    "csv with semicolons": ("metadata.csv", b"file_name;text\nimg0.png;a\n", r"its columns: file_name;text"),
    "an empty name": ("metadata.csv", b"file_name,text\n,a\n", r"csv, line 2: not an object with a file_name"),
    "parquet that is none": ("metadata.parquet", b"PAR1 nothing", r"metadata\.parquet: cannot be read as parquet"),
    "outside": ("metadata.jsonl", lines(below("..", TWO)).encode(), r"line 1: '\.\./img0\.png' lies outside"),
    "absolute": ("metadata.jsonl", lines(below("/", TWO)).encode(), r"line 1: '//img0\.png' lies outside"),
    "no such folder": ("metadata.jsonl", lines(below("x", TWO)).encode(), r"line 1: no file 'x/img0\.png' \(2 in all"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_metadata_is_one_line_that_names_file_and_line(tmp_path, fault, run_cli):
    name, data, said = BROKEN[fault]
    write_folder(tmp_path, 2)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=said) as caught:
        opened(tmp_path)
    assert str(tmp_path) in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint
    assert run_cli("data", "check", tmp_path).code == 3


@pytest.mark.parametrize("extension", [".txt", ".TXT", ".caption"])
def test_texts_beside_images_are_captions(tmp_path, extension):
    write_folder(tmp_path / "images", 3)
    for k in range(3):
        (tmp_path / "images" / f"img{k}{extension}").write_text(f"\ufeff text {k}\n", encoding="utf-8")
    assert captions(opened(tmp_path)) == ["text 0", "text 1", "text 2"]
    assert not opened(tmp_path, caption_column="none").has_captions


@pytest.mark.parametrize(("texts", "column", "read"), [(9, None, True), (8, None, False), (1, "txt", True)])
def test_nearly_all_images_need_a_text_unless_the_column_is_named(tmp_path, caplog, texts, column, read):
    write_folder(tmp_path, 10)
    for k in range(texts):
        (tmp_path / f"img{k}.txt").write_text("text")
    with caplog.at_level("INFO", "diffkit.data"):
        assert opened(tmp_path, caption_column=column).has_captions == read
    said = f"{10 - texts} of 10 images" if read else "found and not used: img0.txt and 7 more .txt"
    assert said in caplog.text


def test_texts_beside_images_give_way_to_metadata(tmp_path, caplog):
    write_folder(tmp_path, 2)
    write_table(tmp_path / "metadata.jsonl", TWO)
    for k in range(2):
        (tmp_path / f"img{k}.txt").write_text("text")
    with caplog.at_level("INFO", "diffkit.data"):
        assert captions(opened(tmp_path)) == ["zero", "one"]
    assert "not used: img0.txt and 1 more .txt" in caplog.text


def test_a_text_that_is_no_text_names_its_file(tmp_path):
    write_folder(tmp_path, 1)
    (tmp_path / "img0.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"img0\.txt: not UTF-8"):
        opened(tmp_path)
