"""Tables through `datasets`: parquet files on this machine, and the Hub, whose failures become one clear line."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffkit.data.sources import SPLITS
from diffkit.errors import DataError, ModelError
from diffkit.schema import DatasetSpec

LOG = logging.getLogger("diffkit.data")

TIMEOUT = 4.0  # seconds for the Hub's first answer


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence the progress bars of `datasets`: one line of ours says what is read."""
    from datasets.utils import logging as talk

    shown = talk.is_progress_bar_enabled()
    talk.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            talk.enable_progress_bar()


def load_parquet(root: Path, files: list[Path], spec: DatasetSpec) -> Any:
    """Open parquet files as a `datasets` table (a memory-mapped copy in its cache), or as a stream.

    Where file or folder names tell splits (train-00000.parquet, test/0.parquet), those of `spec.split` are read;
    else every file belongs to train.

    Raises:
        DataError: No files for the split, or a file that is not parquet.
    """
    from datasets import load_dataset

    chosen = _of_split(root, files, spec.split)
    try:
        with _quietly():
            return load_dataset("parquet", data_files=[str(f) for f in chosen], split="train", streaming=spec.streaming)
    except Exception as error:
        if isinstance(error, MemoryError) or getattr(error, "errno", None) == 28:
            raise
        cause = error.__cause__ or error
        text = str(cause).strip().splitlines()
        raise DataError(
            f"{_culprit(chosen) or root}: cannot be read as parquet: {text[0] if text else type(cause).__name__}",
            "Check the files; a download may be incomplete.",
        ) from None


def _culprit(files: list[Path]) -> Path | None:
    import pyarrow.parquet

    for file in files:
        try:
            pyarrow.parquet.read_schema(file)
        except Exception:  # pyarrow raises its own errors, OSError and ValueError
            return file
    return None


def _of_split(root: Path, files: list[Path], split: str) -> list[Path]:
    if files == [root]:  # one file, named by the user
        return files
    splits: dict[str, list[Path]] = {}
    for file in files:
        inner = file.relative_to(root).as_posix()
        words = set(re.split(r"[^a-z]+", inner.lower()))
        name = next((name for name, aliases in SPLITS.items() if words & set(aliases)), "")
        splits.setdefault(name, []).append(file)
    if set(splits) == {""}:
        if split != "train":
            raise DataError(f"no split {split!r} in {root}: no file's name tells one", "Leave dataset.split at train.")
        return files
    if split not in splits:
        there = ", ".join(sorted(name or "unnamed" for name in splits))
        raise DataError(f"no split {split!r} in {root}; there are: {there}", "Set dataset.split.")
    return splits[split]


def load_hub(spec: DatasetSpec) -> Any:
    """Open a dataset of the Hub, from the cache where the Hub is out of reach.

    Raises:
        ModelError: No such dataset or revision, no access, or neither network nor cache; the hint names the command
            that fills the cache.
        DataError: The dataset has no such configuration or split.
    """
    raise NotImplementedError
