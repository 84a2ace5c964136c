"""Small data sets of every kind, made on the spot, and what tests of the data room share."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from diffkit.data import Batch, Dataset, Loader, open_dataset
from diffkit.recipes.schema import DatasetSpec


def picture(seed: int, width: int = 12, height: int = 12, mode: str = "RGB") -> Image.Image:
    """Noise that is different for every seed."""
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_folder(root: Path, count: int, classes: int = 0, mode: str = "RGB") -> Path:
    """Images of different shapes, `img0.png` ...; class k in the sub-folder `ck`."""
    for k in range(count):
        folder = root / f"c{k % classes}" if classes else root
        folder.mkdir(parents=True, exist_ok=True)
        picture(k, 8 + k % 7, 8 + k % 5, mode).save(folder / f"img{k}.png")
    return root


def write_parquet(path: Path, columns: dict[str, list[Any]], **features: Any) -> Path:
    """A parquet file; `features` are those of `datasets`, kept in its metadata."""
    import datasets

    path.parent.mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(features) if features else None)
    table.to_parquet(path)
    return path


def write_shards(root: Path, shards: int = 3, rows: int = 40, names: list[str] | None = None) -> Path:
    """Parquet shards of grey images with a class each."""
    import datasets

    for s in range(shards):
        cells = [{"bytes": png(picture(1000 * s + k, mode="L")), "path": None} for k in range(rows + s)]
        labels = [k % 3 for k in range(rows + s)]
        write_parquet(
            root / f"train-{s:05d}.parquet",
            {"image": cells, "label": labels},
            image=datasets.Image(),
            label=datasets.ClassLabel(names=names or ["a", "b", "c"]),
        )
    return root


def loader(spec: DatasetSpec, batch_size: int = 4, seed: int = 3, **options: Any) -> Loader:
    return Loader(open_dataset(spec, seed=seed), spec, batch_size=batch_size, seed=seed, **options)


def take(batches: Any, count: int) -> list[Batch]:
    return list(itertools.islice(batches, count))


def same(first: list[Batch], second: list[Batch]) -> None:
    """The same images, labels, captions and ids, bit for bit."""
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a.ids, b.ids)
        assert torch.equal(a.images, b.images)
        assert (a.labels is None) == (b.labels is None)
        assert a.labels is None or b.labels is None or torch.equal(a.labels, b.labels)
        assert a.captions == b.captions


TWO = [{"file_name": "img0.png", "text": "zero"}, {"file_name": "img1.png", "text": "one"}]


def opened(path: Path | str, **fields: Any) -> Dataset:
    return open_dataset(DatasetSpec(name=str(path), resolution=8, **fields))


def captions(dataset: Dataset) -> list[str]:
    assert dataset.source is not None
    assert dataset.length is not None
    return [dataset.source.caption(k) for k in range(dataset.length)]


def lines(records: list[dict[str, Any]], end: str = "\n") -> str:
    """The records as JSON Lines."""
    return "".join(json.dumps(record, ensure_ascii=False) + end for record in records)


def below(folder: str, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same entries, of files in a folder."""
    return [{**record, "file_name": f"{folder}/{record['file_name']}"} for record in records]


def write_table(path: Path, records: list[dict[str, Any]]) -> None:
    """A metadata file in the form that the suffix says."""
    import datasets

    if path.suffix == ".jsonl":
        path.write_text(lines(records), encoding="utf-8")
    elif path.suffix == ".csv":
        datasets.Dataset.from_list(records).to_csv(path)
    else:
        datasets.Dataset.from_list(records).to_parquet(path)
