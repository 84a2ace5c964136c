"""A folder of images: natural order, sub-folders as classes, metadata files or a text beside each image for captions.

It is read as `datasets` reads an image folder, with three differences: images that no metadata names stay in the set,
sub-folders stay classes beside metadata, and nothing is copied into a cache. What is found and not used is said.
"""

from __future__ import annotations

import logging
import os
import posixpath
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffkit.data import fingerprint, metadata
from diffkit.data.columns import encode_classes, find_columns, first_text, say_uncaptioned, value_kinds
from diffkit.data.sources import SPLITS, Labels, Source
from diffkit.errors import DataError
from diffkit.pictures.images import EXTENSIONS, MAX_BYTES, open_image
from diffkit.recipes.schema import DatasetSpec

LOG = logging.getLogger("diffkit.data")

NEARLY_ALL = 0.9  # share of images with a text file beside them from which these are taken for captions
LABEL = "label"  # what `datasets` calls the column of the sub-folders' names
_WHERE_FROM = (
    "Captions and classes come from metadata.jsonl, .csv or .parquet, captions also from a .txt beside each image."
)
_NO_NEWS = re.compile(r"(readme|licen[cs]e|thumbs\.db$|desktop\.ini$)", re.IGNORECASE)


@dataclass
class _Listing:
    """The files below a folder by relative path: images, metadata files, and all others but hidden ones."""

    images: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


class FolderSource(Source):
    """A folder of images, read in natural order of their relative paths (img2 before img10).

    Sub-folders are classes, by the first level on which there are several; as a column they are called `label`.
    `metadata.jsonl`, `metadata.csv` or `metadata.parquet`, in the folder itself or anywhere below it, give columns to
    the files that their `file_name` entries name. Without any, `0.txt` (or `0.caption`) beside `0.png` is its caption
    where nearly all images have one.

    Raises:
        DataError: No images in the folder, no folder for the split, a named column that is not there, or metadata that
            is broken or, unless the recipe skips errors, names files that are not there.
    """

    def __init__(self, root: Path, spec: DatasetSpec) -> None:
        self._background = spec.background
        listing = _walk(root)
        inner, elsewhere = _descend(root, listing.images, spec.split)
        self._root = root / inner
        self._paths = [path[len(inner) :] for path in listing.images if path.startswith(inner)]
        tables = [path for path in listing.tables if not path.startswith(elsewhere)]
        others = [path for path in listing.others if not path.startswith(elsewhere)]
        by_name: dict[str, metadata.Record] = {}
        if tables:
            by_name = _records(root, tables, listing, elsewhere, spec)
        else:
            by_name, others = _sidecars(root, [inner + path for path in self._paths], others, spec)
        _say_unused(root, others)
        rows = [by_name.get(inner + path, {}) for path in self._paths]
        self._set_columns(rows, _named(root, tables), bool(tables), spec)

    def _set_columns(self, rows: list[metadata.Record], what: str, tables: bool, spec: DatasetSpec) -> None:
        """Find classes and captions among the columns, of which the sub-folders are one; `what` names their origin."""
        kinds = value_kinds(rows)
        labels, names = _folder_classes(self._paths)
        own = names is not None and LABEL not in kinds
        image = (spec.image_column or metadata.KEY) if tables else "image"
        found = find_columns(
            {image: "image", **({LABEL: "class"} if own else {}), **kinds},
            image=spec.image_column,
            label="none" if names is not None and spec.class_column is None else spec.class_column,
            caption=spec.caption_column,
            what=what,
            hint="" if tables else _WHERE_FROM,
        )
        if names is not None and (spec.class_column is None or (own and found.label == LABEL)):
            self.labels, self.class_names = labels, names
        elif found.label:
            values = [row.get(found.label) for row in rows]
            named = spec.class_column is not None
            self.labels, self.class_names = encode_classes(values, None, found.label, named=named, what=what)
        if own and found.caption == LABEL:
            self.captions = [_top(path) or "" for path in self._paths]
        elif found.caption:
            self.captions = [first_text(row.get(found.caption)) for row in rows]
        unlisted = sum(not row for row in rows) if tables else 0
        if unlisted:
            LOG.info("%d of %d images are not in %s", unlisted, len(rows), what)
        if self.captions is not None:
            say_uncaptioned(self.captions.count(""), len(rows), str(self._root))

    def __len__(self) -> int:
        return len(self._paths)

    def _path(self, index: int) -> str:
        return os.path.join(self._root, self._paths[index])

    def read(self, index: int, draft: int | None = None) -> Image.Image:
        return open_image(self._path(index), self._background, draft=draft, notices=False)

    def blob(self, index: int) -> bytes:
        path = Path(self._path(index))
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: {path.stat().st_size / 2**20:.0f} MiB is too large")
        return path.read_bytes()

    def where(self, index: int) -> str:
        return self._path(index)

    def fingerprint(self, length: int) -> str:
        return fingerprint.of_files(self._root, self._paths[:length])


def natural_key(path: str) -> tuple[Any, ...]:
    """Sort key under which img2 comes before img10; unequal paths never tie."""
    parts = [[(0, int(t), "") if t.isdigit() else (1, 0, t) for t in re.split(r"([0-9]+)", p)] for p in path.split("/")]
    return (parts, path)


def has_images(root: Path) -> bool:
    """Whether there is any image below a folder."""
    return any(p.suffix.lower() in EXTENSIONS and not p.name.startswith(".") for p in root.rglob("*"))


def _walk(root: Path) -> _Listing:
    listing, seen = _Listing(), set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link that leads back
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = [s for s in subfolders if not s.startswith((".", "__MACOSX"))]
        inner = Path(folder).relative_to(root)
        for name in files:
            if not name.startswith("."):
                image, table = name.lower().endswith(EXTENSIONS), metadata.is_table(name)
                kind = listing.images if image else listing.tables if table else listing.others
                kind.append((inner / name).as_posix())
    if not listing.images:
        there = _summary(listing.tables + listing.others)
        raise DataError(
            f"no images in {root} (nor in its sub-folders){f'; it holds {there}' if there else ''}",
            f"Extensions looked for: {' '.join(EXTENSIONS)}; parquet folders hold *.parquet.",
        )
    for paths in (listing.images, listing.tables, listing.others):
        paths.sort(key=natural_key)
    return listing


def _top(path: str) -> str | None:
    return path.split("/", 1)[0] if "/" in path else None


def _descend(root: Path, paths: Sequence[str], split: str) -> tuple[str, tuple[str, ...]]:
    """Step into the split's folder, and through folders that hold one sub-folder of images and no image.

    Returns:
        The way there, empty or ending in a slash, and the ways into the folders of the other splits.
    """
    names = {alias for aliases in SPLITS.values() for alias in aliases}
    inner, chosen = "", False
    elsewhere: tuple[str, ...] = ()
    while True:
        tops = {_top(path[len(inner) :]) for path in paths if path.startswith(inner)}
        if None in tops:
            break
        found = {str(top) for top in tops}
        if not chosen and {top.lower() for top in found} <= names:
            match = [top for top in found if top.lower() in SPLITS.get(split, (split,))]
            if not match:
                raise DataError(
                    f"no split {split!r} in {root / inner}; there are: {', '.join(sorted(found))}", "Set dataset.split."
                )
            top, chosen = match[0], True
            elsewhere = tuple(f"{inner}{other}/" for other in sorted(found - {top}))
        elif len(found) == 1:
            top = next(iter(found))
        else:
            break
        inner = f"{inner}{top}/"
    if not chosen and split != "train":
        raise DataError(
            f"no split {split!r} in {root / inner}: it has no folder of that name", "Leave dataset.split at train."
        )
    return inner, elsewhere


def _folder_classes(paths: list[str]) -> tuple[Labels | None, list[str] | None]:
    tops = [_top(path) for path in paths]
    if None in tops:
        if any(tops):
            LOG.info("images lie both beside and in sub-folders; the sub-folders are not taken as classes")
        return None, None
    names = sorted({str(top) for top in tops}, key=natural_key)
    index = {name: k for k, name in enumerate(names)}
    return np.asarray([index[str(top)] for top in tops], dtype=np.int64), names


def _named(root: Path, tables: Sequence[str]) -> str:
    """What messages call the columns of a folder."""
    if len(tables) == 1:
        return str(root / tables[0])
    return f"the metadata files of {root}" if tables else f"{root}, which has no metadata file"


def _records(
    root: Path, tables: Sequence[str], listing: _Listing, elsewhere: tuple[str, ...], spec: DatasetSpec
) -> dict[str, metadata.Record]:
    """Read the metadata files: an image's path relative to root -> its columns."""
    images = set(listing.images)
    records: dict[str, metadata.Record] = {}
    missing: list[str] = []
    foreign: list[str] = []
    for row in metadata.read_tables(root, tables, spec.image_column):
        target = row.target
        if target not in images and "\\" in target:  # written on Windows
            target = posixpath.normpath(target.replace("\\", "/"))
        if target in images:
            records[target] = row.values
        elif target.startswith(("../", "/")):
            missing.append(f"{row.where}: {row.name!r} lies outside {root}")
        elif (root / target).is_file():
            foreign.append(target)
        elif not target.startswith(elsewhere):  # another split's files are that split's business
            missing.append(f"{row.where}: no file {row.name!r}")
    if missing and spec.on_error == "error":
        raise DataError(
            f"{missing[0]} ({len(missing)} in all)",
            "File names are relative to the folder of the metadata file. Correct it, or give `dataset.on_error=skip`.",
        )
    if missing:
        LOG.warning("%d entries of metadata name files that are not there; left out", len(missing))
    if foreign:
        LOG.warning(
            "%d entries of metadata name files that are not read as images: %s", len(foreign), _summary(foreign)
        )
    return records


def _sidecars(
    root: Path, images: Sequence[str], others: list[str], spec: DatasetSpec
) -> tuple[dict[str, metadata.Record], list[str]]:
    """Read the text files beside images where they are captions: image path -> columns, and the files not read."""
    for extension in () if spec.caption_column == "none" else metadata.SIDECARS:
        files = {path[: -len(extension)]: path for path in others if path.lower().endswith(extension)}
        found = {path: files[stem] for path in images if (stem := os.path.splitext(path)[0]) in files}
        column = extension[1:]
        if not found or (len(found) < NEARLY_ALL * len(images) and spec.caption_column != column):
            continue
        if spec.caption_column in (None, column):
            LOG.info("%s: captions are the %s files beside the images", root, extension)
        rest = set(others) - set(found.values())
        return {path: {column: metadata.read_sidecar(root / file)} for path, file in found.items()}, sorted(rest)
    return {}, others


def _say_unused(root: Path, others: Sequence[str]) -> None:
    """Say in one line each what looks like metadata but has another name, and what else was found and not used."""
    misspelt = [path for path in others if metadata.misspelt(path)]
    for path in misspelt:
        LOG.warning("%s is not read: the names of metadata files are %s", root / path, ", ".join(metadata.NAMES))
    rest = _summary([path for path in others if path not in misspelt])
    if rest:
        LOG.info("%s: found and not used: %s", root, rest)


def _summary(paths: Sequence[str]) -> str:
    """One file of each kind, the most frequent kinds first: "a/0.txt and 11 more .txt, labels.json"."""
    paths = [path for path in paths if not _NO_NEWS.match(posixpath.basename(path))]
    kinds = Counter(posixpath.splitext(path)[1].lower() for path in paths)
    parts = []
    for kind, count in kinds.most_common(5):
        first = next(path for path in paths if posixpath.splitext(path)[1].lower() == kind)
        parts.append(first if count == 1 else f"{first} and {count - 1} more {kind or 'without extension'}")
    return ", ".join(parts) + (", and other kinds" if len(kinds) > 5 else "")
