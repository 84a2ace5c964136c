"""Datasets by name: the registered rows, folders, parquet, Hub ids; and what is inferred from them before training.

One row adds a dataset. Reading single images is in `sources.py`, batches in `loader.py`, the Hub in `hub.py`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from diffkit.data import fingerprint
from diffkit.data.columns import find_columns
from diffkit.data.folder import FolderSource, has_images
from diffkit.data.metadata import is_table
from diffkit.data.sources import ArraySource, Source, TableSource, broken
from diffkit.data.streaming import Examples
from diffkit.errors import DataError, UsageError, did_you_mean
from diffkit.pictures.images import is_grey, parse_color
from diffkit.recipes.schema import DatasetSpec
from diffkit.registry import Registry

LOG = logging.getLogger("diffkit.data")

PROBED = 32  # images looked at to tell grey from colour


class Row(Protocol):
    """A registered dataset."""

    def open(self, spec: DatasetSpec) -> Source | Examples:
        """Return a `Source`, or an `Examples` stream."""


DATASETS: Registry[Row] = Registry("dataset")


@DATASETS.register("digits")
@dataclass(frozen=True)
class Digits:
    """1,797 handwritten digits, 8x8 grey with labels, that scikit-learn carries (Alpaydin and Kaynak, UCI)."""

    def open(self, spec: DatasetSpec) -> Source:
        values, labels = _digits()
        pixels = np.rint(values * (255.0 / 16.0)).astype(np.uint8)  # the values are 0..16
        found = find_columns(
            {"image": "image", "label": "class"}, image=spec.image_column, label=spec.class_column,
            caption=spec.caption_column, what="dataset digits",
        )  # fmt: skip
        captions = [str(label) for label in labels] if found.caption else None
        if found.label is None:
            return ArraySource("digits", pixels, captions=captions)
        return ArraySource("digits", pixels, labels, [str(name) for name in range(10)], captions)


def _digits() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, np.dtype[np.int64]]]:
    """Values (1797, 8, 8) in 0..16 and labels, from scikit-learn's file: importing it takes far longer."""
    package = find_spec("sklearn")
    file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz" if package and package.origin else None
    if file is not None and file.is_file():
        table = np.loadtxt(file, delimiter=",")
        return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits  # where a version keeps the file elsewhere

    digits = load_digits()
    return digits.images, digits.target.astype(np.int64)


@dataclass(frozen=True)
class _OnHub:
    """A short name for a Hub id."""

    id: str

    def open(self, spec: DatasetSpec) -> Source | Examples:
        return _open_hub(spec.model_copy(update={"name": self.id}))


@DATASETS.register("mnist")
@dataclass(frozen=True)
class Mnist(_OnHub):
    """70,000 handwritten digits, 28x28 grey."""

    id: str = "ylecun/mnist"


@DATASETS.register("fashion_mnist")
@dataclass(frozen=True)
class FashionMnist(_OnHub):
    """70,000 pictures of clothes, 28x28 grey."""

    id: str = "zalando-datasets/fashion_mnist"


@DATASETS.register("butterflies")
@dataclass(frozen=True)
class Butterflies(_OnHub):
    """1,000 photographs of butterflies."""

    id: str = "huggan/smithsonian_butterflies_subset"


class Dataset:
    """An opened dataset, and what was found out about it.

    Attributes:
        name: As the recipe names it.
        source: The images; None for a stream.
        examples: The stream; None for a finite source.
        channels: 1 or 3, inferred or given.
        class_names: Names of the classes 0..K-1, or None.
        has_captions: Whether there are captions.
        length: Number of images (after `limit`), or None where a stream does not say.
    """

    def __init__(self, spec: DatasetSpec, opened: Source | Examples) -> None:
        self.name = spec.name
        self.source: Source | None = None if isinstance(opened, Examples) else opened
        self.examples: Examples | None = opened if isinstance(opened, Examples) else None
        self.class_names: list[str] | None = opened.class_names
        self.has_captions: bool = opened.has_captions
        if self.source is not None:
            self.length: int | None = min(len(self.source), spec.limit or len(self.source))
            if self.length == 0:
                raise DataError(f"dataset {spec.name!r}, split {spec.split!r}, has no images", "Choose another split.")
        elif self.examples is not None:
            self.length = self.examples.length
        self.channels: int = spec.channels or self._infer_channels(spec)

    def _infer_channels(self, spec: DatasetSpec) -> int:
        """3 where any image of an evenly spaced sample has colour, else 1."""
        if self.source is None:
            assert self.examples is not None
            return 1 if all(is_grey(image) for image in self.examples.probe(PROBED)) else 3
        assert self.length is not None
        first_error: DataError | None = None
        seen = 0
        for index in np.unique(np.linspace(0, self.length - 1, PROBED).astype(int)).tolist():
            try:
                seen += 1
                if not is_grey(self.source.read(index, draft=64)):
                    return 3
            except DataError as error:
                seen -= 1
                first_error = first_error or error
                if spec.on_error == "error":
                    raise broken(error, spec.name) from None
        if seen == 0 and first_error is not None:
            raise DataError(
                f"dataset {spec.name!r}: none of the {PROBED} images looked at can be read; {first_error.message}",
                f"Run `diffkit data check {spec.name}`.",
            )
        return 1

    def captions(self) -> list[str]:
        """Return the captions of all images of a finite set, in order; "" for an image without."""
        assert self.source is not None
        return [self.source.caption(k) for k in range(self.length or 0)]

    def fingerprint(self, *, captions: bool, classes: bool) -> dict[str, str]:
        """Return texts that are others where the data is another; see `fingerprint.changes`.

        Args:
            captions: Whether the captions matter.
            classes: Whether the classes do.

        Returns:
            "count", "images", "captions", "classes"; of a stream "source". Empty where nothing is known: a stream from
            the Hub whose commit could not be asked for.
        """
        if self.source is None:
            assert self.examples is not None
            return {"source": self.examples.identity} if self.examples.identity else {}
        assert self.length is not None
        parts = {"count": str(self.length), "images": self.source.fingerprint(self.length)}
        if captions and self.has_captions:
            parts["captions"] = fingerprint.of_texts(self.captions())
        if classes and self.class_names is not None and self.source.labels is not None:
            numbers = self.source.labels[: self.length].tobytes()
            parts["classes"] = fingerprint.of_blobs([numbers, *(name.encode() for name in self.class_names)])
        return parts

    def summary(self) -> str:
        """One line for a person: size, colour, classes, captions."""
        parts = [f"{self.length:,} images" if self.length is not None else "streamed images"]
        parts.append("grey" if self.channels == 1 else "RGB")
        if self.class_names:
            shown = ", ".join(self.class_names[:5]) + (", ..." if len(self.class_names) > 5 else "")
            parts.append(f"{len(self.class_names)} classes ({shown})")
        if self.has_captions:
            parts.append("captions")
        return f"{self.name}: {', '.join(parts)}"


def open_dataset(spec: DatasetSpec, *, seed: int = 0) -> Dataset:
    """Open the dataset that a recipe names and find out its channels, classes and captions.

    `spec.name` is tried as a registered name, then as a folder (of images, of parquet files, or from `save_to_disk`)
    or a parquet file, then as a Hub id.

    Args:
        spec: The recipe's dataset section.
        seed: The run's seed, for sets that depend on it; none of the rows here does.

    Raises:
        DataError: Nothing there, no images, a named column is missing, or an image cannot be read under
            `on_error: error`.
        ModelError: The Hub cannot be reached, or has no such dataset.
        UsageError: The background is no colour; a stream that is to have a validation part.
    """
    parse_color(spec.background)
    if spec.streaming and spec.validation:
        raise UsageError(
            f"dataset.validation = {spec.validation} with streaming: a stream has no part to hold out",
            "Set dataset.validation=0, or read the dataset without streaming.",
        )
    return Dataset(spec, open_images(spec))


def open_images(spec: DatasetSpec) -> Source | Examples:
    """Open what a recipe names without looking at any image; raises as `open_dataset`."""
    return _opener(spec)(spec)


def _opener(spec: DatasetSpec) -> Callable[[DatasetSpec], Source | Examples]:
    name = spec.name
    if name.partition(":")[0] in DATASETS:
        return DATASETS.parse(name).open
    path = Path(name).expanduser()
    try:
        exists = path.exists()
    except OSError as error:  # a name longer than the system allows
        raise DataError(f"dataset {name[:80]!r}...: {error.strerror}") from None
    if exists:
        return lambda s: _open_path(path, s)
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name):
        return _open_hub
    if re.search(r"[/\\]|^[.~]", name):
        raise DataError(f"dataset {name!r}: no such folder", "Check the path; a Hub id looks like owner/name.")
    raise DataError(
        f"unknown dataset {name!r}: not a registered name, not a folder, and not a Hub id (owner/name)",
        did_you_mean(name, DATASETS),
    )


def _open_path(path: Path, spec: DatasetSpec) -> Source | Examples:
    from diffkit.data.hub import is_saved, load_parquet, load_saved

    if path.is_file():
        if path.suffix != ".parquet":
            raise DataError(f"dataset {spec.name!r} is a file", "Give a folder of images, or a .parquet file.")
        return _from_table(*load_parquet(path, [path], spec), spec)
    if is_saved(path):
        return _from_table(*load_saved(path, spec), spec)
    files = sorted(p for p in path.rglob("*.parquet") if not p.name.startswith("."))
    shards = [p for p in files if not is_table(p.name)]
    with_images = bool(files) and has_images(path)
    if files and (shards or not with_images):
        if with_images:
            LOG.warning("%s holds parquet files and image files; the parquet files are read, the images not", path)
        return _from_table(*load_parquet(path, shards or files, spec), spec)
    if spec.streaming:
        LOG.info("%s is a local image folder: dataset.streaming makes no difference", path)
    return FolderSource(path, spec)


def _open_hub(spec: DatasetSpec) -> Source | Examples:
    from diffkit.data.hub import load_hub

    return _from_table(*load_hub(spec), spec)


def _from_table(table: Any, identity: str | None, spec: DatasetSpec) -> Source | Examples:
    return Examples(table, spec, identity) if spec.streaming else TableSource(table, spec, spec.name)
