"""Folders, captions, parquet: what is found in them, in which order, and the errors that name what is there."""

import json
import os

import numpy as np
import pytest
from data_support import loader, picture, png, write_folder, write_parquet, write_shards
from PIL import Image

from diffkit.data import DATASETS, open_dataset
from diffkit.data.columns import encode_classes, find_columns
from diffkit.errors import DataError, ModelError, UsageError
from diffkit.recipes.schema import DatasetSpec


def opened(path, **fields):
    return open_dataset(DatasetSpec(name=str(path), resolution=8, **fields))


def names(dataset):
    return [os.path.basename(dataset.source.where(k)) for k in range(dataset.length)]


def test_natural_order_whatever_the_file_system_says(tmp_path):
    for name in ("img10.png", "img2.png", "img1.png", "b.PNG", "a b.jpg"):
        picture(1).save(tmp_path / name)
    assert names(opened(tmp_path)) == ["a b.jpg", "b.PNG", "img1.png", "img2.png", "img10.png"]


def test_sub_folders_are_classes_and_deeper_ones_belong_to_them(tmp_path):
    write_folder(tmp_path, 6, classes=2)
    (tmp_path / "c1" / "more").mkdir()
    picture(9).save(tmp_path / "c1" / "more" / "x.png")
    dataset = opened(tmp_path)
    assert dataset.class_names == ["c0", "c1"]
    assert dataset.source.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]


def test_one_sub_folder_is_no_class(tmp_path):
    write_folder(tmp_path / "images", 3)
    assert opened(tmp_path).class_names is None
    write_folder(tmp_path / "wrapped" / "images", 4, classes=2)
    assert opened(tmp_path / "wrapped").class_names == ["c0", "c1"]


def test_images_beside_sub_folders_mean_no_classes(tmp_path, caplog):
    write_folder(tmp_path, 4, classes=2)
    picture(9).save(tmp_path / "x.png")
    with caplog.at_level("INFO", "diffkit.data"):
        assert opened(tmp_path).class_names is None
    assert "not taken as classes" in caplog.text


def test_split_folders(tmp_path):
    write_folder(tmp_path / "train", 6, classes=2)
    write_folder(tmp_path / "val", 2, classes=2)
    assert opened(tmp_path).length == 6
    assert opened(tmp_path, split="validation").length == 2
    with pytest.raises(DataError, match="train, val"):
        opened(tmp_path, split="test")
    with pytest.raises(DataError, match="no split 'test'"):
        opened(tmp_path / "train", split="test")


def test_links_that_lead_back_end(tmp_path):
    write_folder(tmp_path, 2)
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert opened(tmp_path).length == 2


def test_hidden_files_are_left_out(tmp_path):
    write_folder(tmp_path, 2)
    (tmp_path / "._img0.png").write_bytes(b"x")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "y.png").write_bytes(b"x")
    assert opened(tmp_path).length == 2


def test_empty_folder_says_what_was_looked_for(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="no images in") as caught:
        opened(tmp_path)
    assert str(tmp_path) in caught.value.message
    assert ".png" in caught.value.hint
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("name", ["./not/here", "/not/here", "~/not-here-at-all"])
def test_missing_folder(name):
    with pytest.raises(DataError, match="no such folder"):
        opened(name)


def test_a_word_that_names_nothing():
    with pytest.raises(DataError, match="unknown dataset 'digitz'") as caught:
        opened("digitz")
    assert "digits" in caught.value.hint
    with pytest.raises(DataError):
        opened("x" * 5000)


def test_unicode_spaces_and_a_leading_dash(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "-Bilder für mich 像", 2)
    assert opened("-Bilder für mich 像").length == 2


def write_metadata(folder, records):
    (folder / "metadata.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_metadata_gives_captions_nested_too(tmp_path):
    write_folder(tmp_path, 3)
    write_folder(tmp_path / "sub", 2)
    write_metadata(tmp_path, [{"file_name": f"img{k}.png", "text": f"top {k}"} for k in range(3)])
    write_metadata(tmp_path / "sub", [{"file_name": "./img1.png", "text": "below 1"}])
    dataset = opened(tmp_path)
    assert dataset.has_captions
    assert [dataset.source.caption(k) for k in range(5)] == ["top 0", "top 1", "top 2", "", "below 1"]
    assert dataset.class_names is None


def test_metadata_can_give_classes(tmp_path):
    write_folder(tmp_path, 4)
    write_metadata(tmp_path, [{"file_name": f"img{k}.png", "label": "ab"[k % 2]} for k in range(4)])
    dataset = opened(tmp_path)
    assert dataset.class_names == ["a", "b"]
    assert dataset.source.labels.tolist() == [0, 1, 0, 1]
    assert opened(tmp_path, class_column="none").class_names is None


@pytest.mark.parametrize("line", ["{", "[]", '{"text": "x"}', '{"file_name": 5}', "[" * 100_000])
def test_broken_metadata_names_file_and_line(tmp_path, line):
    write_folder(tmp_path, 1)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "img0.png", "text": "x"}\n' + line + "\n")
    with pytest.raises(DataError, match=r"metadata\.jsonl, line 2"):
        opened(tmp_path)


def test_metadata_that_names_missing_files(tmp_path):
    write_folder(tmp_path, 1)
    write_metadata(tmp_path, [{"file_name": "img0.png", "text": "x"}, {"file_name": "gone.png", "text": "y"}])
    with pytest.raises(DataError, match=r"line 2: no file 'gone\.png'"):
        opened(tmp_path)
    assert opened(tmp_path, on_error="skip").length == 1


def test_a_metadata_column_that_is_not_there(tmp_path):
    write_folder(tmp_path, 1)
    write_metadata(tmp_path, [{"file_name": "img0.png", "text": "x"}])
    with pytest.raises(DataError, match=r"caption_column 'txt' .* text \(text\)"):
        opened(tmp_path, caption_column="txt")


def test_grey_is_inferred_from_the_pixels_not_the_mode(tmp_path):
    for k in range(4):
        picture(k, mode="L").convert("RGB").save(tmp_path / f"{k}.png")
    assert opened(tmp_path).channels == 1
    assert opened(tmp_path, channels=3).channels == 3
    picture(9).save(tmp_path / "9.png")
    assert opened(tmp_path).channels == 3
    assert opened(tmp_path, channels=1).channels == 1


def test_background_and_exif_reach_the_batch(tmp_path):
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert next(loader(DatasetSpec(name=str(tmp_path), resolution=8, background="black")).stream()).images.max() == -1
    with pytest.raises(UsageError, match="no colour"):
        opened(tmp_path, background="nocolour")


def test_parquet_shards_with_features(tmp_path):
    dataset = opened(write_shards(tmp_path / "set"))
    assert dataset.length == 123
    assert dataset.class_names == ["a", "b", "c"]
    assert dataset.channels == 1
    assert np.asarray(dataset.source.read(41)).tobytes() == picture(1001, mode="L").tobytes()
    assert "row 41" in dataset.source.where(41)


def test_parquet_with_a_column_of_bytes_and_plain_classes(tmp_path):
    columns = {"id": ["x", "y", "z"], "jpg": [png(picture(k)) for k in range(3)], "label": [7, 3, 7]}
    dataset = opened(write_parquet(tmp_path / "a.parquet", columns))
    assert dataset.class_names == ["3", "7"]
    assert dataset.source.labels.tolist() == [1, 0, 1]
    assert np.asarray(dataset.source.read(2)).tobytes() == picture(2).tobytes()


def test_parquet_splits_by_file_name(tmp_path):
    for split, count in (("train", 3), ("test", 2)):
        columns = {"image": [png(picture(k)) for k in range(count)]}
        write_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet", columns)
    assert opened(tmp_path).length == 3
    assert opened(tmp_path, split="test").length == 2
    with pytest.raises(DataError, match="test, train"):
        opened(tmp_path, split="validation")


def test_parquet_errors(tmp_path):
    write_parquet(tmp_path / "a" / "x.parquet", {"name": ["a"], "size": [1]})
    with pytest.raises(DataError, match=r"no image column .* name \(text\), size \(int\)"):
        opened(tmp_path / "a")
    with pytest.raises(DataError, match=r"image_column 'img' .* name \(text\)"):
        opened(tmp_path / "a", image_column="img")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "y.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match=r"y\.parquet: cannot be read as parquet"):
        opened(tmp_path / "b")
    write_parquet(tmp_path / "c" / "z.parquet", {"image": [None, png(picture(0))]})
    with pytest.raises(DataError, match="row 0: no image"):
        opened(tmp_path / "c")
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(DataError, match="is a file"):
        opened(tmp_path / "file.txt")


def test_columns_are_found_by_type_before_name():
    kinds = {"id": "int", "photo": "image", "class_id": "class", "label": "int", "description": "text"}
    found = find_columns(kinds)
    assert (found.image, found.label, found.caption) == ("photo", "class_id", "description")
    found = find_columns({"image": "image", "fine_label": "class", "coarse_label": "class", "text": "texts"})
    assert (found.image, found.label, found.caption) == ("image", "fine_label", "text")
    found = find_columns(kinds, label="label", caption="none")
    assert (found.label, found.caption) == ("label", None)


def test_missing_classes_are_refused_only_where_the_user_named_the_column():
    assert encode_classes([0, -1], ["a"], "label", named=False, what="x") == (None, None)
    with pytest.raises(DataError, match="1 of 2 images have no class"):
        encode_classes([0, None], ["a"], "label", named=True, what="x")
    with pytest.raises(DataError, match="names 1 classes"):
        encode_classes([0, 1], ["a"], "label", named=True, what="x")
    assert encode_classes([f"t{k}" for k in range(9)], None, "class", named=False, what="x") == (None, None)


def test_limit(tmp_path):
    dataset = opened(write_folder(tmp_path, 5), limit=3)
    assert dataset.length == 3
    assert opened(tmp_path, limit=30).length == 5


@pytest.mark.parametrize("name", sorted(set(DATASETS) - {"digits", "glyphs"}))
def test_rows_for_the_hub_say_how_to_fetch_them(name):
    row = DATASETS.parse(name)
    with pytest.raises(ModelError) as caught:
        opened(name)
    assert caught.value.exit_code == 4
    assert f"hf download --repo-type dataset {row.id}" in caught.value.hint


def test_summary_is_one_line(tmp_path):
    text = opened(write_folder(tmp_path, 6, classes=2)).summary()
    assert "6 images, RGB, 2 classes (c0, c1)" in text
    assert "\n" not in text
