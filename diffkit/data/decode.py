"""From a source's image to the uint8 pixels of a batch: what the worker processes do, and what is decided for them.

The float conversion and the mirroring happen later, on the device and by one function for all paths.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from diffkit.data import order
from diffkit.data.sources import Source, broken
from diffkit.errors import DataError
from diffkit.pictures.images import cut_square, shorter_side, to_array, with_channels
from diffkit.recipes.schema import DatasetSpec

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
Item = Pixels | DataError
Key = tuple[int, float | None]  # the image, and where to crop it: see `crop_offset`; None: not at all


@dataclass(frozen=True)
class Plan:
    """One micro-batch before any image is read.

    Attributes:
        ids: (B,) positions in the source.
        crops: (B,) in [0, 1), the place of a random crop.
        flips: (B,) bool, or None where nothing is mirrored.
    """

    ids: order.Ints
    crops: order.Floats
    flips: np.ndarray[Any, np.dtype[np.bool_]] | None


def augmentation(ids: order.Ints, epochs: order.Ints, seed: int, spec: DatasetSpec) -> Plan:
    """Decide crop and flip of each image from (seed, epoch, id) alone."""
    if spec.crop == "random":
        crops = order.uniform(order.CROP, seed, epochs, ids)
    else:
        crops = np.full(len(ids), 0.5)
    flips = order.uniform(order.FLIP, seed, epochs, ids) < 0.5 if spec.flip else None
    return Plan(ids, crops, flips)


def crop_offset(extent: Any, size: int, place: Any) -> Any:
    """First pixel of a crop of `size` pixels out of `extent`, at a place in [0, 1); scalars or arrays alike."""
    return np.floor(place * (extent - size + 1)).astype(np.int64)


def prepare(image: Image.Image, spec: DatasetSpec, channels: int) -> Pixels:
    """Resample an image as training reads it: uint8 (C, R, R), or with random crop one side longer than R."""
    cutter = shorter_side if spec.crop == "random" else cut_square
    return to_array(with_channels(cutter(image, spec.resolution), channels))


def crop(pixels: Pixels, size: int, place: float) -> Pixels:
    """Cut size x size out of (C, H, W) at a place in [0, 1)."""
    _, height, width = pixels.shape
    top, left = (int(crop_offset(np.int64(extent), size, place)) for extent in (height, width))
    return np.ascontiguousarray(pixels[:, top : top + size, left : left + size])


class Decoder(TorchDataset[Item]):
    """Reads image k, prepared and cropped; an unreadable one is returned as its error, since only a value comes
    back from a worker process unharmed.
    """

    def __init__(self, source: Source, spec: DatasetSpec, channels: int, name: str) -> None:
        self._source, self._spec, self._channels = source, spec, channels
        self.name = name

    def __getitem__(self, key: Key) -> Item:
        index, place = key
        try:
            # A JPEG may be decoded at a lower size as long as antialiasing still has two pixels for one.
            image = self._source.read(index, draft=2 * self._spec.resolution)
        except DataError as error:
            return error
        pixels = prepare(image, self._spec, self._channels)
        return pixels if place is None else crop(pixels, self._spec.resolution, place)


def _let_the_parent_stop(_: int) -> None:
    """Ctrl-C reaches every process of a terminal; a worker that died of it would cost the parent its last save."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _same(items: list[Item]) -> list[Item]:
    return items


def read_ahead(decoder: Decoder, keys: Iterable[list[Key]], workers: int) -> Iterator[list[Item]]:
    """Decode lists of keys, in order, in `workers` processes (0: in this one)."""
    loader: DataLoader[Any] = DataLoader(
        decoder,
        batch_sampler=keys,
        num_workers=workers,
        collate_fn=_same,
        worker_init_fn=_let_the_parent_stop,
        prefetch_factor=4 if workers else None,
        generator=torch.Generator(),  # else every iterator would draw from the global one
    )
    yield from loader


def stacked(items: Sequence[Item], name: str) -> Tensor:
    """Items of equal shape -> uint8 (B, C, H, W); raises the first error among them."""
    for item in items:
        if isinstance(item, DataError):
            raise broken(item, name)
    return torch.from_numpy(np.stack(items))  # type: ignore[arg-type]


def chunks(ids: order.Ints, size: int = 256) -> Iterator[list[Key]]:
    """Keys of whole images, `size` at a time."""
    for start in range(0, len(ids), size):
        yield [(k, None) for k in ids[start : start + size].tolist()]


def unreadable(decoder: Decoder, ids: order.Ints, workers: int) -> list[int]:
    """Places in `ids` of the images that cannot be read; decodes every one."""
    items = (item for part in read_ahead(decoder, chunks(ids), workers) for item in part)
    return [place for place, item in enumerate(items) if isinstance(item, DataError)]


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Move without making the host wait."""
    if device.type == "cpu":
        return tensor
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)
