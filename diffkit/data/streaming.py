"""Sets that fit on no disk: shards divided among the processes, shuffled block by block, resumed within one block.

The order is a function of (seed, epoch): the shards are permuted and dealt out to the processes, each process reads
its shards in blocks of `BLOCK` examples, and each block is permuted. Which process reads what therefore depends on
the number of processes, unlike a finite set's order; within one number it is exact and can be resumed anywhere.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from diffkit.data import order
from diffkit.data.columns import Columns, feature_kinds, find_columns, first_text, names_of
from diffkit.data.decode import Pixels, augmentation, crop, prepare
from diffkit.data.sources import broken, encoded_bytes
from diffkit.errors import DataError
from diffkit.pictures.images import open_image
from diffkit.recipes.schema import DatasetSpec

LOG = logging.getLogger("diffkit.data")

BLOCK = 1024
WINDOW = 64  # examples decoded ahead
_ROWS = 2**40  # more than a shard has; an example's id is shard * _ROWS + row


class Examples:
    """A `datasets.IterableDataset` with its columns found.

    Args:
        table: The dataset.
        spec: The recipe's dataset section.
        identity: A text that is another one where the contents are others, such as the Hub's commit; None: not known.

    Attributes:
        identity: As given.
        class_names: Names of the classes, where the column says them beforehand.
        has_captions: Whether there are captions.
        length: Number of examples, or None where the set does not say.
        shards: Number of pieces that can be read separately.

    Raises:
        DataError: No image column, a named column is not there, or a named class column without names.
    """

    def __init__(self, table: Any, spec: DatasetSpec, identity: str | None = None) -> None:
        from datasets import Image as ImageFeature

        self.identity = identity
        self.name, self._background = spec.name, spec.background
        if table.features is None:
            table = table._resolve_features()
        kinds = feature_kinds(table.features)
        self.columns = self._columns(table, kinds, spec)
        self.class_names: list[str] | None = None
        self._caption_names = names_of(table.features.get(self.columns.caption))
        if self.columns.label:
            self.class_names = names_of(table.features[self.columns.label])
        self.has_captions = self.columns.caption is not None
        splits = table.info.splits or {}
        known = splits[spec.split].num_examples or None if spec.split in splits else None
        self.length: int | None = known if spec.limit is None else min(spec.limit, known or spec.limit)
        names = [name for name in (self.columns.image, self.columns.label, self.columns.caption) if name]
        if kinds[self.columns.image] == "image":
            table = table.cast_column(self.columns.image, ImageFeature(decode=False))
        table = table.select_columns(names)
        self._table = table if spec.limit is None else table.take(spec.limit)
        self.shards = int(self._table.num_shards)

    def _columns(self, table: Any, kinds: dict[str, str], spec: DatasetSpec) -> Columns:
        found = find_columns(
            kinds, image=spec.image_column, label=spec.class_column, caption=spec.caption_column, what=spec.name
        )
        if found.label is None or names_of(table.features[found.label]):
            return found
        if spec.class_column is not None:
            raise DataError(
                f"class_column {found.label!r} of {spec.name} does not name its classes; a stream cannot be counted",
                "Read the dataset without streaming, or give `dataset.class_column=none`.",
            )
        LOG.info("column %r of %s does not name its classes; classes are not used", found.label, spec.name)
        return Columns(found.image, None, found.caption)

    def shard(self, index: int) -> Any:
        """The iterable of one shard's rows, with `state_dict` and `load_state_dict`."""
        return self._table.shard(num_shards=self.shards, index=index)

    def image(self, row: dict[str, Any], where: str, draft: int | None = None) -> Image.Image:
        """Decode a row's image; raises the DataErrors of `open_image`."""
        data = encoded_bytes(row[self.columns.image], where)
        return open_image(data, self._background, name=where, draft=draft, notices=False)

    def label(self, row: dict[str, Any], where: str) -> int:
        """A row's class, 0 where there are none; raises DataError for a row without."""
        if self.columns.label is None:
            return 0
        value = row[self.columns.label]
        if value is None or value < 0:
            raise DataError(f"{where}: no class in column {self.columns.label!r}")
        return int(value)

    def caption(self, row: dict[str, Any]) -> str:
        """A row's caption; empty where there is none."""
        return first_text(row[self.columns.caption], self._caption_names) if self.columns.caption else ""

    def probe(self, count: int) -> list[Image.Image]:
        """The first readable images among the first `count` rows."""
        images, error = [], None
        for row, _ in zip(self.shard(0), range(count), strict=False):
            try:
                images.append(self.image(row, f"{self.name}, among the first {count}", draft=64))
            except DataError as caught:
                error = caught
        if not images:
            raise error or DataError(f"dataset {self.name!r}: the stream is empty", "Choose another split.")
        return images


@dataclass
class Group:
    """The examples of one micro-batch."""

    pixels: list[Pixels] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)  # (id, epoch)

    @property
    def ids(self) -> order.Ints:
        return np.asarray([index for index, _ in self.places], dtype=np.int64)

    @property
    def epochs(self) -> order.Ints:
        return np.asarray([epoch for _, epoch in self.places], dtype=np.int64)


@dataclass
class _Block:
    start: dict[str, Any]  # the state before its first row
    epoch: int
    rows: list[tuple[int, dict[str, Any]]]  # (id, row), in shuffled order


Decoded = tuple[Pixels, int, str]


class StreamReader:
    """One process's part of a stream.

    Args:
        examples: The stream.
        spec: The recipe's dataset section.
        channels: 1 or 3.
        seed: Fixes order and augmentation.
        rank: This process's number.
        world: Number of processes.
    """

    def __init__(
        self, examples: Examples, spec: DatasetSpec, channels: int, *, seed: int, rank: int, world: int
    ) -> None:
        self._examples, self._spec, self._channels = examples, spec, channels
        self._seed, self._rank, self._world = seed, rank, world
        self._state: dict[str, Any] = {}
        self.skipped = 0

    def state(self) -> dict[str, Any]:
        """Where the last group of `batches` ended."""
        return dict(self._state)

    def batches(self, size: int, start: int, state: dict[str, Any] | None) -> Iterator[Group]:
        """Yield groups of `size` examples without end, from `state`, or after the first `start` groups."""
        self.skipped = int((state or {}).get("skipped", 0))
        if not state and start:
            LOG.warning("no position saved for the stream: reading %d micro-batches again", start)
        drop = 0 if state else start
        group = Group()
        for after, place, item in self._decoded(state or {}):
            if isinstance(item, DataError):
                if self._spec.on_error == "error":
                    raise broken(item, self._examples.name)
                self.skipped += 1
                continue
            pixels, label, caption = item
            group.pixels.append(pixels)
            group.labels.append(label)
            group.captions.append(caption)
            group.places.append(place)
            if len(group.places) < size:
                continue
            self._state = {**after, "skipped": self.skipped}
            if drop > 0:
                drop -= 1
            else:
                yield group
            group = Group()

    def _decoded(self, state: dict[str, Any]) -> Iterator[tuple[dict[str, Any], tuple[int, int], Decoded | DataError]]:
        """Decode ahead in threads (Pillow lets go of the interpreter while it decodes), in order."""
        waiting: deque[tuple[dict[str, Any], tuple[int, int], Future[Decoded | DataError]]] = deque()
        pool = ThreadPoolExecutor(max(1, self._spec.workers), "diffkit-decode")
        try:
            for number, block in enumerate(self._read_ahead(state)):
                used = int(state.get("used", 0)) if number == 0 else 0
                for k, (index, row) in enumerate(block.rows[used:], used):
                    job = pool.submit(self._decode, index, block.epoch, row)
                    waiting.append(({**block.start, "used": k + 1}, (index, block.epoch), job))
                    if len(waiting) >= WINDOW:
                        after, place, job = waiting.popleft()
                        yield after, place, job.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _decode(self, index: int, epoch: int, row: dict[str, Any]) -> Decoded | DataError:
        where = f"{self._examples.name}, shard {index // _ROWS}, row {index % _ROWS}"
        plan = augmentation(np.asarray([index]), np.asarray([epoch]), self._seed, self._spec)
        try:
            image = self._examples.image(row, where, draft=2 * self._spec.resolution)
            label = self._examples.label(row, where)
        except DataError as error:
            return error
        pixels = crop(prepare(image, self._spec, self._channels), self._spec.resolution, float(plan.crops[0]))
        return pixels, label, self._examples.caption(row)

    def _read_ahead(self, state: dict[str, Any]) -> Iterator[_Block]:
        """Read the next block in a thread while this one is used."""
        blocks = self._blocks(state)
        pool = ThreadPoolExecutor(1, "diffkit-read")
        try:
            ahead = pool.submit(next, blocks)
            while True:
                block = ahead.result()
                ahead = pool.submit(next, blocks)
                yield block
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _blocks(self, state: dict[str, Any]) -> Iterator[_Block]:
        shards, epoch = self._examples.shards, int(state.get("epoch", 0))
        while True:
            mine = order.permutation(shards, order.SHARDS, self._seed, epoch)
            if shards >= self._world:
                mine = mine[self._rank :: self._world]
            blocks = self._epoch(mine.tolist(), epoch, state)
            first = next(blocks, None)
            if first is None:
                raise DataError(
                    f"dataset {self._examples.name!r}: no rows for process {self._rank} of {self._world}",
                    "Use fewer processes.",
                )
            yield first
            yield from blocks
            epoch, state = epoch + 1, {}

    def _epoch(self, shards: list[int], epoch: int, state: dict[str, Any]) -> Iterator[_Block]:
        """The blocks of one pass over some shards; where there are too few, every process takes every n-th row."""
        shared = self._examples.shards < self._world
        position, row, number = (int(state.get(key, 0)) for key in ("shard", "row", "block"))
        inner = state.get("inner")
        rows: list[tuple[int, dict[str, Any]]] = []
        start = {"epoch": epoch, "shard": position, "row": row, "block": number, "inner": inner}
        while position < len(shards):
            table = self._examples.shard(shards[position])
            if inner is not None:
                table.load_state_dict(inner)
            for example in table:
                if not shared or row % self._world == self._rank:
                    rows.append((shards[position] * _ROWS + row, example))
                row += 1
                if len(rows) == BLOCK:
                    yield self._block(start, rows, number)
                    number, rows = number + 1, []
                    start = {
                        "epoch": epoch,
                        "shard": position,
                        "row": row,
                        "block": number,
                        "inner": table.state_dict(),
                    }
            position, row, inner = position + 1, 0, None
            if not rows:
                start = {"epoch": epoch, "shard": position, "row": 0, "block": number, "inner": None}
        if rows:
            yield self._block(start, rows, number)

    def _block(self, start: dict[str, Any], rows: list[tuple[int, dict[str, Any]]], number: int) -> _Block:
        shuffled = order.permutation(len(rows), order.BLOCK, self._seed, start["epoch"], self._rank, number)
        return _Block(start, start["epoch"], [rows[k] for k in shuffled])
