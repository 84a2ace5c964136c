"""A folder of images: natural order, sub-folders as classes, `metadata.jsonl` for captions."""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffkit.data.columns import encode_classes, find_columns
from diffkit.data.sources import SPLITS, Labels, first_text
from diffkit.errors import DataError
from diffkit.pictures.images import EXTENSIONS, MAX_BYTES, open_image
from diffkit.recipes.schema import DatasetSpec

LOG = logging.getLogger("diffkit.data")


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
            kinds,
            image="file_name",
            label=spec.class_column,
            caption=spec.caption_column,
            what=f"{self._root}/metadata.jsonl",
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
                raise DataError(
                    f"no split {split!r} in {root}; there are: {', '.join(sorted(found))}", "Set dataset.split."
                )
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
