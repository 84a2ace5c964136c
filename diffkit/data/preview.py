"""One picture of the first images that training would see, as it would see them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffkit.data.datasets import open_dataset
from diffkit.data.loader import Loader
from diffkit.pictures.files import Destination
from diffkit.pictures.grids import grid
from diffkit.pictures.metadata import write_png
from diffkit.pictures.tensors import from_tensor
from diffkit.recipes.schema import DatasetSpec


def preview(spec: DatasetSpec, *, num: int, seed: int, out: Path | None) -> tuple[Path, dict[str, Any]]:
    """Write a grid of the first `num` images of the training stream, labelled with class or caption.

    Args:
        spec: The recipe's dataset section.
        num: How many images.
        seed: The run's seed: order and augmentation.
        out: A folder, or a .png file; `outputs` when left out.

    Returns:
        The picture's path, and what is in it, JSON-able.
    """
    spec = spec.model_copy(update={"cache": "disk", "workers": 0})  # nothing is read that is not shown
    picture = Destination.of(out, "data-preview").path(seed)
    dataset = open_dataset(spec, seed=seed)
    loader = Loader(dataset, spec, batch_size=num, seed=seed)
    batch = next(loader.stream())
    names, cell = None, 64
    if batch.labels is not None and dataset.class_names:
        names = [dataset.class_names[k] for k in batch.labels.tolist()]
    elif batch.captions is not None:
        names = [caption if len(caption) <= 40 else caption[:39] + "…" for caption in batch.captions]
        cell = 224  # a caption has to fit over its picture
    write_png(picture, grid(from_tensor(batch.images), labels=names, min_cell=cell), None)
    return picture, {
        "dataset": spec.name,
        "seeds": [seed],
        "shape": list(loader.shape),
        "ids": batch.ids.tolist(),
        "labels": names,
        "skipped": loader.skipped,
    }
