"""Sources: where images lie, and how the k-th is read. Map-style only; streaming has its own room.

A source knows nothing of resolutions, crops or batches. It must be picklable and read images without shared state,
since the loader's worker processes hold copies of it.
"""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from diffkit.data.columns import Columns, encode_classes, feature_kinds, find_columns
from diffkit.errors import DataError
from diffkit.images import EXTENSIONS, MAX_BYTES, open_image
from diffkit.schema import DatasetSpec

LOG = logging.getLogger("diffkit.data")

Labels = np.ndarray[Any, np.dtype[np.int64]]
SPLITS = {"train": ("train", "training"), "test": ("test", "testing"), "validation": ("validation", "valid", "val", "dev")}


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
        """Return image `index` as `diffkit.images.open_image` does; raises its DataError."""
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
        self, name: str, pixels: np.ndarray[Any, Any], labels: Labels | None = None, class_names: list[str] | None = None
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


class FolderSource:
    """A folder of images, read in natural order of their relative paths (img2 before img10).

    Sub-folders are classes, by the first level on which there are several; a `metadata.jsonl` in any folder gives
    captions (and classes) to the files that its `file_name` entries name.

    Raises:
        DataError: No images in the folder, no folder for the split, or a broken `metadata.jsonl`.
    """

    def __init__(self, root: Path, spec: DatasetSpec) -> None:
        self._background = spec.background
        self._root, paths = _descend(root, _image_paths(root), spec.split)
        self._paths = paths
        self.labels, self.class_names = _folder_classes(paths) if spec.class_column is None else (None, None)
        self._captions: list[str] | None = None
        records = _metadata(self._root, spec.on_error)
        if records:
            self._read_metadata(records, spec)
        self.has_captions = self._captions is not None

    def _read_metadata(self, records: dict[str, dict[str, Any]], spec: DatasetSpec) -> None:
        kinds: dict[str, str] = {}
        for record in records.values():
            for key, value in record.items():
                kind = "text" if isinstance(value, str) else "int" if isinstance(value, int) else "other"
                kinds.setdefault(key, "texts" if isinstance(value, list) else kind)
        kinds["file_name"] = "image"
        found = find_columns(
            kinds, image="file_name", label=spec.class_column, caption=spec.caption_column, what=f"{self._root}/metadata.jsonl"
        )
        rows = [records.get(path, {}) for path in self._paths]
        unlisted = sum(not row for row in rows)
        if unlisted:
            LOG.info("%d of %d images are not in metadata.jsonl", unlisted, len(rows))
        if found.caption:
            self._captions = [first_text(row.get(found.caption)) for row in rows]
        if found.label and self.labels is None:
            values = [row.get(found.label) for row in rows]
            self.labels, self.class_names = encode_classes(
                values, None, found.label, named=spec.class_column is not None, what=str(self._root)
            )

    def __len__(self) -> int:
        return len(self._paths)

    def _path(self, index: int) -> str:
        return os.path.join(self._root, self._paths[index])

    def read(self, index: int, draft: int | None = None) -> Image.Image:
        """See `Source`."""
        return open_image(self._path(index), self._background, draft=draft, notices=False)

    def blob(self, index: int) -> bytes:
        """See `Source`."""
        path = Path(self._path(index))
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: {path.stat().st_size / 2**20:.0f} MiB is too large")
        return path.read_bytes()

    def where(self, index: int) -> str:
        """See `Source`."""
        return self._path(index)

    def caption(self, index: int) -> str:
        """See `Source`."""
        return self._captions[index] if self._captions else ""


def first_text(value: Any) -> str:
    """A caption column's value as one text; of several captions the first."""
    if isinstance(value, (list, tuple)):
        value = value[0] if value else ""
    return "" if value is None else str(value)


def natural_key(path: str) -> tuple[Any, ...]:
    """Sort key under which img2 comes before img10; unequal paths never tie."""
    parts = [[(0, int(t), "") if t.isdigit() else (1, 0, t) for t in re.split(r"([0-9]+)", p)] for p in path.split("/")]
    return (parts, path)


def _image_paths(root: Path) -> list[str]:
    found, seen = [], set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link that leads back
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = [s for s in subfolders if not s.startswith((".", "__MACOSX"))]
        inner = Path(folder).relative_to(root)
        found += [(inner / f).as_posix() for f in files if f.lower().endswith(EXTENSIONS) and not f.startswith(".")]
    if not found:
        raise DataError(
            f"no images in {root} (nor in its sub-folders)",
            f"Extensions looked for: {' '.join(EXTENSIONS)}; parquet folders hold *.parquet.",
        )
    return sorted(found, key=natural_key)


def _top(path: str) -> str | None:
    return path.split("/", 1)[0] if "/" in path else None


def _descend(root: Path, paths: list[str], split: str) -> tuple[Path, list[str]]:
    """Step into the split's folder, and through folders that hold one sub-folder and nothing else."""
    names = {alias for aliases in SPLITS.values() for alias in aliases}
    chosen = False
    while True:
        tops = {_top(path) for path in paths}
        if None in tops:
            break
        found = {str(top) for top in tops}
        if not chosen and {top.lower() for top in found} <= names:
            match = [top for top in found if top.lower() in SPLITS.get(split, (split,))]
            if not match:
                raise DataError(f"no split {split!r} in {root}; there are: {', '.join(sorted(found))}", "Set dataset.split.")
            top, chosen = match[0], True
        elif len(found) == 1:
            top = next(iter(found))
        else:
            break
        root, paths = root / top, [path[len(top) + 1 :] for path in paths if _top(path) == top]
    if not chosen and split != "train":
        raise DataError(f"no split {split!r} in {root}: it has no folder of that name", "Leave dataset.split at train.")
    return root, paths


def _folder_classes(paths: list[str]) -> tuple[Labels | None, list[str] | None]:
    tops = [_top(path) for path in paths]
    if None in tops:
        if any(tops):
            LOG.info("images lie both beside and in sub-folders; the sub-folders are not taken as classes")
        return None, None
    names = sorted({str(top) for top in tops}, key=natural_key)
    index = {name: k for k, name in enumerate(names)}
    return np.asarray([index[str(top)] for top in tops], dtype=np.int64), names


def _metadata(root: Path, on_error: str) -> dict[str, dict[str, Any]]:
    """Read every metadata.jsonl under root: relative path -> record."""
    records: dict[str, dict[str, Any]] = {}
    missing: list[str] = []
    for file in sorted(root.rglob("metadata.jsonl")):
        inner = file.parent.relative_to(root)
        for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                name = record["file_name"]
                target = Path(os.path.normpath(inner / name)).as_posix()
            except (ValueError, KeyError, TypeError, RecursionError):
                raise DataError(f"{file}, line {number}: not a JSON object with a file_name") from None
            if not (root / target).is_file():
                missing.append(f"{file}, line {number}: no file {name!r}")
            records[target] = record
    if missing and on_error == "error":
        raise DataError(f"{missing[0]} ({len(missing)} in all)", "Correct the file, or --set dataset.on_error=skip.")
    if missing:
        LOG.warning("%d entries of metadata.jsonl name files that are not there; left out", len(missing))
    return records


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
