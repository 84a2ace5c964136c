"""Sources: where images lie, and how the k-th is read. Map-style only; streaming has its own room.

A source knows nothing of resolutions, crops or batches. It must be picklable and read images without shared state,
since the loader's worker processes hold copies of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffkit.data import fingerprint
from diffkit.data.columns import (
    Columns,
    encode_classes,
    feature_kinds,
    find_columns,
    first_text,
    names_of,
    say_uncaptioned,
)
from diffkit.errors import DataError
from diffkit.pictures.images import open_image
from diffkit.recipes.schema import DatasetSpec

Labels = np.ndarray[Any, np.dtype[np.int64]]
SPLITS = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "validation": ("validation", "valid", "val", "dev"),
}


class Source(ABC):
    """A finite list of images.

    Attributes:
        labels: (N,) classes 0..K-1, or None.
        class_names: K names, or None.
        captions: N texts, or None; of sources that hold them all.
    """

    labels: Labels | None = None
    class_names: list[str] | None = None
    captions: list[str] | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int, draft: int | None = None) -> Image.Image:
        """Return image `index` as `diffkit.pictures.images.open_image` does; raises its DataError."""

    @abstractmethod
    def where(self, index: int) -> str:
        """Name image `index` for a person."""

    @abstractmethod
    def fingerprint(self, length: int) -> str:
        """Return a text that is another one where the first `length` images are others; see `fingerprint.py`."""

    @property
    def has_captions(self) -> bool:
        """Whether `caption` gives texts."""
        return self.captions is not None

    def caption(self, index: int) -> str:
        """Return the caption of image `index`; empty where there is none."""
        return self.captions[index] if self.captions else ""

    def blob(self, index: int) -> bytes:
        """Return the encoded bytes of image `index` (for `data check`): a PNG where it is no file."""
        buffer = BytesIO()
        self.read(index).save(buffer, "PNG")
        return buffer.getvalue()


class ArraySource(Source):
    """Images that are already in memory.

    Args:
        name: What messages call the set.
        pixels: uint8 (N, H, W), grey, or (N, H, W, 3).
        labels: (N,) or None.
        class_names: Names of the classes or None.
        captions: One text per image or None.
    """

    def __init__(
        self,
        name: str,
        pixels: np.ndarray[Any, Any],
        labels: Labels | None = None,
        class_names: list[str] | None = None,
        captions: list[str] | None = None,
    ) -> None:
        self._name, self._pixels = name, pixels
        self.labels, self.class_names, self.captions = labels, class_names, captions

    def __len__(self) -> int:
        return len(self._pixels)

    def read(self, index: int, draft: int | None = None) -> Image.Image:
        return Image.fromarray(self._pixels[index])

    def where(self, index: int) -> str:
        return f"{self._name}[{index}]"

    def fingerprint(self, length: int) -> str:
        return fingerprint.of_blobs(self._pixels[k].tobytes() for k in range(length))


class TableSource(Source):
    """Rows of a `datasets.Dataset`: an Image feature, or a column of encoded bytes.

    Raises:
        DataError: No image column, or a named column is not there.
    """

    def __init__(self, table: Any, spec: DatasetSpec, name: str) -> None:
        from datasets import Image as ImageFeature

        self._name, self._background = name, spec.background
        kinds = feature_kinds(table.features)
        self.columns: Columns = find_columns(
            kinds, image=spec.image_column, label=spec.class_column, caption=spec.caption_column, what=name
        )
        if kinds[self.columns.image] == "image":
            table = table.cast_column(self.columns.image, ImageFeature(decode=False))
        self._images = table.select_columns([self.columns.image])
        self.labels, self.class_names = self._classes(table, spec)
        self._captions = table.select_columns([self.columns.caption]) if self.columns.caption else None
        self._caption_names: Sequence[str] | None = None
        if self.columns.caption is not None:
            self._caption_names = names_of(table.features[self.columns.caption])
            missing = _column(table, self.columns.caption).null_count
            say_uncaptioned(missing, len(table), f"{name}, column {self.columns.caption!r}")

    def _classes(self, table: Any, spec: DatasetSpec) -> tuple[Labels | None, list[str] | None]:
        column = self.columns.label
        if column is None:
            return None, None
        values, names = _column(table, column).to_pylist(), names_of(table.features[column])
        return encode_classes(values, names, column, named=spec.class_column is not None, what=self._name)

    @property
    def has_captions(self) -> bool:
        return self._captions is not None

    def __len__(self) -> int:
        return len(self._images)

    def blob(self, index: int) -> bytes:
        return encoded_bytes(self._images[int(index)][self.columns.image], self.where(index))

    def read(self, index: int, draft: int | None = None) -> Image.Image:
        return open_image(self.blob(index), self._background, name=self.where(index), draft=draft, notices=False)

    def where(self, index: int) -> str:
        return f"{self._name}, row {index}"

    def caption(self, index: int) -> str:
        if self._captions is None or self.columns.caption is None:
            return ""
        return first_text(self._captions[int(index)][self.columns.caption], self._caption_names)

    def fingerprint(self, length: int) -> str:
        return fingerprint.of_blobs(self._evidence(length))

    def _evidence(self, length: int) -> Iterator[bytes]:
        """The sizes of all cells, which Arrow tells without reading them, and the contents of a sample."""
        import pyarrow.compute

        cells = _column(self._images, self.columns.image)[:length]
        if "struct" in str(cells.type):
            cells = pyarrow.compute.struct_field(cells, "bytes")
        sizes = pyarrow.compute.fill_null(pyarrow.compute.binary_length(cells), 0)
        yield sizes.to_numpy().astype(np.int64).tobytes()
        rows = fingerprint.sample(length)
        for start in range(0, len(rows), 64):
            for value in self._images[rows[start : start + 64]][self.columns.image]:
                try:
                    yield encoded_bytes(value, "")
                except DataError:  # an empty row, or a file that is gone, is a content like any other
                    yield b""


def _column(table: Any, name: str) -> Any:
    """A column as an Arrow array, without decoding."""
    return table.select_columns([name]).with_format("arrow")[:][name]


def encoded_bytes(value: Any, where: str) -> bytes:
    """The encoded bytes of an undecoded image cell: bytes, or {"bytes", "path"}.

    Raises:
        DataError: The cell is empty, or names a file that cannot be read.
    """
    if isinstance(value, dict):
        path = value.get("path")
        value = value.get("bytes")
        if value is None and path:
            try:
                return Path(path).read_bytes()
            except OSError as error:
                raise DataError(f"{where}: {path}: {error.strerror or error}") from None
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise DataError(f"{where}: no image in this row")
    return bytes(value)


def broken(error: DataError, name: str) -> DataError:
    """The error that ends training at an unreadable image under the policy `error`."""
    return DataError(
        error.message, f"Run `diffkit data check {name}` to list all broken files, or give `dataset.on_error=skip`."
    )
