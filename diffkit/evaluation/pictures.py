"""Real pictures for an evaluation: some of a dataset or a folder, in an order without meaning, in batches.

They are prepared as training prepares them, by the data room. Holds no features and no metrics.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from diffkit.data import DATASETS, fingerprint, open_dataset, order
from diffkit.data.datasets import Dataset
from diffkit.data.decode import Decoder, Key, prepare, read_ahead, stacked, unreadable
from diffkit.data.folder import has_images
from diffkit.data.sources import Source
from diffkit.errors import UsageError
from diffkit.pictures.tensors import to_float
from diffkit.recipes.schema import DatasetSpec

BATCH = 64
RESIZE = "bicubic, antialiased"  # what `resized` does, as it is told beside numbers


@dataclass(frozen=True)
class Pictures:
    """The pictures of a dataset.

    Attributes:
        spec: The dataset, and how its pictures are prepared: their size above all.
        channels: 1 or 3; as the dataset has it when left out.
        opened: The dataset, where it is open already.
    """

    spec: DatasetSpec
    channels: int | None = None
    opened: Dataset | None = None

    def __post_init__(self) -> None:
        if self.channels not in (None, 1, 3):
            raise UsageError(f"`channels` {self.channels}: images have 1 channel (grey) or 3 (RGB)")

    @cached_property
    def dataset(self) -> Dataset:
        """The dataset, opened on first use; raises as `open_dataset`."""
        if self.spec.streaming:
            raise UsageError(f"dataset {self.spec.name}: a stream cannot be evaluated", "Read it without streaming.")
        return self.opened or open_dataset(self.spec)

    @cached_property
    def source(self) -> Source:
        """Its images."""
        source = self.dataset.source
        assert source is not None, "only streams have none"
        return source

    @property
    def depth(self) -> int:
        """Channels of its pictures."""
        return self.channels or self.dataset.channels

    def __len__(self) -> int:
        assert self.dataset.length is not None, "only streams have none"
        return self.dataset.length

    @cached_property
    def identity(self) -> str:
        """A text that is another one where the pictures, their preparation or their classes are others."""
        marks = self.dataset.fingerprint(captions=False, classes=True)
        prepared = (self.spec.resolution, self.depth, self.spec.background, "center")
        return fingerprint.of_texts([*(f"{key}={marks[key]}" for key in sorted(marks)), repr(prepared)])

    def chosen(self, count: int | None) -> order.Ints:
        """Return up to `count` positions (all when None), in an order that depends on the number of pictures alone."""
        return self._usable[:count]

    @cached_property
    def _usable(self) -> order.Ints:
        """All positions in that order, without those that `on_error: skip` leaves out."""
        everything = order.permutation(len(self), order.EVALUATE)
        if self.spec.on_error == "error":
            return everything
        return np.delete(everything, unreadable(self._decoder, everything, self.spec.workers))

    @cached_property
    def _decoder(self) -> Decoder:
        return Decoder(self.source, self.spec, self.depth, self.spec.name)

    def batches(self, positions: order.Ints, size: int = BATCH) -> Iterator[Tensor]:
        """Yield the pictures at these positions, (B, C, R, R) in [-1, 1]; raises a DataError for a broken one."""
        keys: list[list[Key]] = [
            [(int(k), None) for k in positions[n : n + size]] for n in range(0, len(positions), size)
        ]
        workers = self.spec.workers if len(positions) > 20_000 else 0
        for items in read_ahead(self._decoder, keys, workers):
            yield to_float(stacked(items, self.spec.name))

    def like(self, images: Sequence[Image.Image]) -> Tensor:
        """Prepare other pictures as these are, (B, C, R, R) in [-1, 1]."""
        made = [torch.from_numpy(prepare(image, self.spec, self.depth)) for image in images]
        return to_float(torch.stack(made))

    def classes(self, hint: str = "Give one that has classes.") -> list[str]:
        """Return the names of the classes.

        Args:
            hint: What to do where there are none.

        Raises:
            UsageError: There are none, or one alone.
        """
        names = self.dataset.class_names or []
        if self.source.labels is None or len(names) < 2:
            raise UsageError(f"dataset {self.spec.name} has no classes to learn", hint)
        return names

    def labelled(self, count: int) -> tuple[Tensor, Tensor]:
        """Return up to `count` pictures (N, C, R, R) and their classes (N,); raises as `classes`."""
        self.classes()
        labels, positions = self.source.labels, self.chosen(count)
        assert labels is not None, "classes have labels"
        return torch.cat(list(self.batches(positions))), torch.from_numpy(np.ascontiguousarray(labels[positions]))

    def captions(self, count: int) -> list[str]:
        """Return the captions of the first `count` chosen pictures; none where there are no captions."""
        if not self.dataset.has_captions:
            return []
        found = [self.source.caption(int(k)) for k in self.chosen(count)]
        return [caption for caption in found if caption]


def resized(images: Tensor, size: int) -> Tensor:
    """(N, C, H, W) in [-1, 1] -> (N, C, size, size), by the filter that `RESIZE` names."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bicubic", antialias=True).clamp(-1, 1)


def holds_pictures(name: str) -> bool:
    """Whether a name stands for pictures rather than for a model: a registered dataset, or a folder or file of them."""
    path = Path(name).expanduser()
    if path.is_dir():
        if any((path / file).is_file() for file in ("model_index.json", "config.json")):
            return False
        return has_images(path) or any(path.rglob("*.parquet")) or any(path.glob("*.arrow"))
    return path.suffix == ".parquet" or re.split(":", name)[0] in DATASETS


def side_of(name: str, split: str) -> int:
    """Return the shorter side of the first picture of a dataset, pixels; raises as `open_dataset`."""
    pictures = Pictures(DatasetSpec(name=name, split=split))
    return min(pictures.source.read(0).size)
