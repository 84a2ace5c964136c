"""Sources: where images lie, and how the k-th is read. Map-style only; streaming has its own room.

A source knows nothing of resolutions, crops or batches. It must be picklable and read images without shared state,
since the loader's worker processes hold copies of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from diffkit.data.columns import Columns, encode_classes, feature_kinds, find_columns
from diffkit.errors import DataError
from diffkit.pictures.images import open_image
from diffkit.recipes.schema import DatasetSpec

Labels = np.ndarray[Any, np.dtype[np.int64]]
SPLITS = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "validation": ("validation", "valid", "val", "dev"),
}


class Source(Protocol):
    """A finite list of images.

    Attributes:
        labels: (N,) classes 0..K-1, or None.
        class_names: K names, or None.
        has_captions: Whether `caption` gives texts.
    """

    labels: Labels | None
    class_names: list[str] | None
    has_captions: bool

    def __len__(self) -> int: ...

    def read(self, index: int, draft: int | None = None) -> Image.Image:
        """Return image `index` as `diffkit.pictures.images.open_image` does; raises its DataError."""
        ...

    def blob(self, index: int) -> bytes:
        """Return the encoded bytes of image `index` (for `data check`)."""
        ...

    def where(self, index: int) -> str:
        """Name image `index` for a person."""
        ...

    def caption(self, index: int) -> str:
        """Return the caption of image `index`; empty where there is none."""
        ...


class ArraySource:
    """Images that are already in memory.

    Args:
        name: What messages call the set.
        pixels: uint8 (N, H, W), grey, or (N, H, W, 3).
        labels: (N,) or None.
        class_names: Names of the classes or None.
    """

    has_captions = False

    def __init__(
        self,
        name: str,
        pixels: np.ndarray[Any, Any],
        labels: Labels | None = None,
        class_names: list[str] | None = None,
    ) -> None:
        self._name, self._pixels = name, pixels
        self.labels, self.class_names = labels, class_names

    def __len__(self) -> int:
        return len(self._pixels)

    def read(self, index: int, draft: int | None = None) -> Image.Image:
        """See `Source`."""
        return Image.fromarray(self._pixels[index])

    def blob(self, index: int) -> bytes:
        """See `Source`; a PNG of the array."""
        from io import BytesIO

        buffer = BytesIO()
        self.read(index).save(buffer, "PNG")
        return buffer.getvalue()

    def where(self, index: int) -> str:
        """See `Source`."""
        return f"{self._name}[{index}]"

    def caption(self, index: int) -> str:
        """See `Source`."""
        return ""


class TableSource:
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
        self.has_captions = self._captions is not None

    def _classes(self, table: Any, spec: DatasetSpec) -> tuple[Labels | None, list[str] | None]:
        column = self.columns.label
        if column is None:
            return None, None
        names = getattr(table.features[column], "names", None)
        values = table.select_columns([column]).with_format("arrow")[:][column].to_pylist()
        return encode_classes(values, names, column, named=spec.class_column is not None, what=self._name)

    def __len__(self) -> int:
        return len(self._images)

    def blob(self, index: int) -> bytes:
        """See `Source`."""
        return encoded_bytes(self._images[int(index)][self.columns.image], self.where(index))

    def read(self, index: int, draft: int | None = None) -> Image.Image:
        """See `Source`."""
        return open_image(self.blob(index), self._background, name=self.where(index), draft=draft, notices=False)

    def where(self, index: int) -> str:
        """See `Source`."""
        return f"{self._name}, row {index}"

    def caption(self, index: int) -> str:
        """See `Source`."""
        if self._captions is None or self.columns.caption is None:
            return ""
        return first_text(self._captions[int(index)][self.columns.caption])


def first_text(value: Any) -> str:
    """A caption column's value as one text; of several captions the first."""
    if isinstance(value, (list, tuple)):
        value = value[0] if value else ""
    return "" if value is None else str(value)


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
        error.message, f"Run `diffkit data check {name}` to list all broken files, or --set dataset.on_error=skip."
    )
