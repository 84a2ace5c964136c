"""Whether a dataset is still the same: short texts that are others where the images, captions or classes are others.

A checkpoint keeps them, so that a run does not go on with other data unnoticed. Modification times say nothing (a copy
has new ones, and tools keep old ones over new contents); neither does the folder's place, nor the fingerprint that
`datasets` keeps, which follows names and times.

What is noticed: every file that comes, goes or has another name, and every change of a size, in sets of any size; every
other content of up to `SAMPLE` images of 64 KiB or less; all captions and classes; of a stream from the Hub its commit.
What can go unnoticed, because reading is bounded to seconds: in a larger set, or in the middle of a larger file, a
change that keeps the size of every file (in a PNG, JPEG or WebP it rarely does, in a BMP always); and all changes of a
stream from the Hub whose commit nobody knows, since the Hub was out of reach and an old version of `datasets` had
prepared it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SAMPLE = 8_192
PIECE = 8 * 1024
PIECES = 8  # of an image
SHARD_PIECES = 64  # of a parquet or Arrow file


def sample(length: int) -> list[int]:
    """Return all places below `length`, or `SAMPLE` evenly spaced ones, the first and the last among them."""
    if length <= SAMPLE:
        return list(range(length))
    return [k * (length - 1) // (SAMPLE - 1) for k in range(SAMPLE)]


def of_texts(texts: Iterable[str]) -> str:
    """Fingerprint of texts in order."""
    return of_blobs(text.encode("utf-8", "surrogatepass") for text in texts)


def of_blobs(blobs: Iterable[bytes]) -> str:
    """Fingerprint of byte strings in order."""
    digest = hashlib.blake2b(digest_size=16)
    for blob in blobs:
        digest.update(len(blob).to_bytes(8, "little"))  # else "ab", "c" would be "a", "bc"
        digest.update(blob)
    return digest.hexdigest()


def of_files(root: Path, names: Sequence[str], pieces: int = PIECES) -> str:
    """Fingerprint of files: all names and sizes, and the contents of a sample; a file that is gone is a content, too.

    Args:
        root: Their folder; it does not count itself.
        names: Their paths relative to it, in order.
        pieces: How many pieces of `PIECE` bytes are read of one file.
    """
    chosen = set(sample(len(names)))

    def texts() -> Iterator[str]:
        for start in range(0, len(names), SAMPLE):  # the pool keeps an object for each call
            block = range(start, min(start + SAMPLE, len(names)))
            parts = pool.map(lambda k: _of_file(root / names[k], pieces if k in chosen else 0), block)
            for k, part in zip(block, parts, strict=True):
                yield from (names[k], part)

    with ThreadPoolExecutor(8, "diffkit-fingerprint") as pool:
        return of_texts(texts())


def _of_file(path: Path, pieces: int) -> str:
    digest = hashlib.blake2b(digest_size=16)
    try:
        size = path.stat().st_size
        if pieces:
            with path.open("rb", buffering=0) as file:
                for start in _starts(size, pieces):
                    file.seek(start)
                    digest.update(file.read(PIECE))
    except OSError as error:
        return os.strerror(error.errno) if error.errno else type(error).__name__
    return f"{size}:{digest.hexdigest()}"


def _starts(size: int, pieces: int) -> Iterable[int]:
    """Where the pieces begin: one after another in a small file, else evenly spaced up to the end."""
    if size <= pieces * PIECE:
        return range(0, size, PIECE)
    return (k * (size - PIECE) // (pieces - 1) for k in range(pieces))


def changes(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Say how a dataset differs from what it was; empty where it does not, or where one side is not known.

    Args:
        old: From `Dataset.fingerprint`, as a checkpoint keeps it.
        new: The same of today.
    """
    if not old or not new:
        return []
    if old.get("count") != new.get("count"):
        return [f"{old.get('count')} images have become {new.get('count')}"]
    words = {
        "images": "images or file names",
        "captions": "captions",
        "classes": "classes",
        "source": "files or revision",
    }
    return [f"other {text}" for key, text in words.items() if old.get(key) != new.get(key)]
