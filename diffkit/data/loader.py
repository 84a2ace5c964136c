"""Batches: the stream of micro-batches that training reads, from memory or from disk, with the same bits.

Micro-batch m of rank r is the places [(m * world + r) * B, +B) of the stream of `order.Order`. So every epoch is an
exact permutation, two processes read what one reads with twice the batch, and starting at micro-batch k replays
nothing. Nothing in the in-memory path waits for the device.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffkit.data import order
from diffkit.data.datasets import Dataset
from diffkit.data.decode import Decoder, Plan, augmentation, read_ahead, stacked, to_device, unreadable
from diffkit.data.store import MemoryStore, fits
from diffkit.data.streaming import StreamReader
from diffkit.errors import DataError, UsageError
from diffkit.pictures.tensors import to_float
from diffkit.recipes.schema import DatasetSpec

LOG = logging.getLogger("diffkit.data")


@dataclass
class Batch:
    """Some images with what is known of them.

    Attributes:
        images: (B, C, H, W) float32 in [-1, 1], on the loader's device.
        labels: (B,) int64 on the device, or None.
        captions: B texts, or None.
        ids: (B,) int64, the images' positions in their source; stays on the host.
    """

    images: Tensor
    labels: Tensor | None
    captions: list[str] | None
    ids: np.ndarray[Any, np.dtype[np.int64]]


class Loader:
    """The training stream and the validation part of a dataset.

    Args:
        dataset: From `open_dataset`.
        spec: The recipe's dataset section.
        batch_size: Images per micro-batch and process.
        seed: Fixes the order and the augmentation.
        rank: This process's number.
        world: Number of processes.
        device: Where the batches go.

    Attributes:
        length: Number of images in the training part, or None where a stream does not say.
        shape: (C, H, W).
        skipped: Images that could not be read and were left out (`on_error: skip`); a stream counts as it goes.

    Raises:
        DataError: An image cannot be read under `on_error: error` (sets that fit in memory), none can, or nothing is
            left for training.
    """

    def __init__(
        self,
        dataset: Dataset,
        spec: DatasetSpec,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        device: str | torch.device = "cpu",
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world:
            raise UsageError(
                f"batch_size={batch_size}, rank={rank}, world={world}: need batch_size >= 1, 0 <= rank < world"
            )
        self.dataset, self.spec = dataset, spec
        self.batch_size, self.seed, self.rank, self.world = batch_size, seed, rank, world
        self.device = torch.device(device)
        self.shape = (dataset.channels, spec.resolution, spec.resolution)
        self._stream: StreamReader | None = None
        self._store: MemoryStore | None = None
        self._skipped = 0
        if dataset.examples is not None:
            LOG.info("%s; read in blocks that seed and epoch shuffle", dataset.summary())
            self._stream = StreamReader(dataset.examples, spec, dataset.channels, seed=seed, rank=rank, world=world)
            self.length = dataset.length
            self._train = self._held = np.zeros(0, dtype=np.int64)
            return
        self._open(dataset, spec)
        self.length = len(self._train)
        source = dataset.source
        assert source is not None
        self._labels = None if source.labels is None else torch.from_numpy(source.labels).to(self.device)

    def _open(self, dataset: Dataset, spec: DatasetSpec) -> None:
        """Choose memory or disk, decode, and divide the readable images into training and validation part."""
        assert dataset.source is not None
        assert dataset.length is not None
        self._decoder = Decoder(dataset.source, spec, dataset.channels, dataset.name)
        in_memory, why = fits(dataset.length, dataset.channels, spec, self.device)
        LOG.info("%s; %s", dataset.summary(), why)
        everything = np.arange(dataset.length)
        usable = everything
        if in_memory:
            self._store = MemoryStore(self._decoder, everything, spec, self.device)
            usable = self._store.ids
        elif spec.on_error == "skip":
            LOG.info("looking for unreadable images once, because dataset.on_error is skip")
            usable = np.delete(everything, unreadable(self._decoder, everything, spec.workers))
        self._skipped = len(everything) - len(usable)
        if self._skipped:
            LOG.warning("%d of %d images cannot be read and are skipped", self._skipped, len(everything))
        held = round(spec.validation * len(usable)) if spec.validation else 0
        held = max(1, held) if spec.validation else 0
        if len(usable) - held < 1:
            raise DataError(
                f"dataset {dataset.name!r}: {len(usable)} readable images, {held} held out, none left for training",
                f"Run `diffkit data check {dataset.name}`.",
            )
        # The held-out part does not depend on the seed, so that runs can be compared.
        chosen = np.sort(order.permutation(len(usable), order.HOLD_OUT)[:held])
        self._held = usable[chosen]
        self._train = np.delete(usable, chosen)

    @property
    def skipped(self) -> int:
        return self._stream.skipped if self._stream is not None else self._skipped

    def state(self) -> dict[str, Any]:
        """What `stream` needs to go on without replay, JSON-able; empty unless the dataset is streamed."""
        return self._stream.state() if self._stream is not None else {}

    def stream(self, start: int = 0, state: dict[str, Any] | None = None) -> Iterator[Batch]:
        """Yield micro-batches without end.

        Args:
            start: Number of micro-batches this process has consumed since the start of the run.
            state: From `state()` after the last of them; only streamed datasets need it.

        Raises:
            DataError: An image cannot be read (from disk, under `on_error: error`).
        """
        if self._stream is not None:
            yield from self._streamed(start, state)
            return
        places = order.Order(len(self._train), self.seed)

        def plan(m: int) -> Plan:
            positions, epochs = places.slice((m * self.world + self.rank) * self.batch_size, self.batch_size)
            return augmentation(self._train[positions], epochs, self.seed, self.spec)

        yield from self._batches(map(plan, itertools.count(start)))

    def validation(self) -> Iterator[Batch]:
        """Return this process's share of the held-out part once, in fixed order and without augmentation.

        The last batch may be short; without a validation part there is none.
        """
        return self._once(self._held[self.rank :: self.world])

    def first(self, count: int) -> Iterator[Batch]:
        """Return the first `count` training images once, or all there are, without augmentation; every process all.

        A stream has none.
        """
        return self._once(self._train[:count])

    def _once(self, chosen: order.Ints) -> Iterator[Batch]:
        parts = [chosen[k : k + self.batch_size] for k in range(0, len(chosen), self.batch_size)]
        return self._batches(Plan(ids, np.full(len(ids), 0.5), None) for ids in parts)

    def _batches(self, plans: Iterator[Plan]) -> Iterator[Batch]:
        if self._store is not None:
            for plan in plans:
                yield self._batch(self._store.gather(plan.ids, plan.crops), plan)
            return
        plans, ahead = itertools.tee(plans)  # the workers run ahead of what is yielded
        keys = (list(zip(plan.ids.tolist(), plan.crops.tolist(), strict=True)) for plan in ahead)
        for plan, items in zip(plans, read_ahead(self._decoder, keys, self.spec.workers), strict=False):
            yield self._batch(to_device(stacked(items, self.dataset.name), self.device), plan)

    def _finish(self, pixels: Tensor, plan: Plan) -> Tensor:
        """Cropped uint8 pixels on the device -> mirrored, in [-1, 1]."""
        if plan.flips is not None:
            mirrored = to_device(torch.from_numpy(plan.flips), self.device)[:, None, None, None]
            pixels = torch.where(mirrored, pixels.flip(-1), pixels)
        return to_float(pixels)

    def _batch(self, pixels: Tensor, plan: Plan) -> Batch:
        source = self.dataset.source
        assert source is not None
        labels = None
        if self._labels is not None:
            labels = self._labels[to_device(torch.from_numpy(plan.ids), self.device)]
        captions = [source.caption(k) for k in plan.ids.tolist()] if self.dataset.has_captions else None
        return Batch(self._finish(pixels, plan), labels, captions, plan.ids)

    def _streamed(self, start: int, state: dict[str, Any] | None) -> Iterator[Batch]:
        assert self._stream is not None
        for group in self._stream.batches(self.batch_size, start, state):
            plan = augmentation(group.ids, group.epochs, self.seed, self.spec)
            labels = to_device(torch.tensor(group.labels), self.device) if self.dataset.class_names else None
            captions = group.captions if self.dataset.has_captions else None
            yield Batch(
                self._finish(to_device(torch.from_numpy(np.stack(group.pixels)), self.device), plan),
                labels,
                captions,
                plan.ids,
            )
