"""Texts beside images: `metadata.jsonl`, `.csv` and `.parquet` with the keys that `datasets` knows, and caption files.

Here they are read, and every error names file and line; which images they belong to is decided in `folder.py`.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from diffkit.errors import DataError

LOG = logging.getLogger("diffkit.data")

NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # where a folder has several, the first is read
KEY = "file_name"
SIDECARS = (".txt", ".caption")
_BOM = b"\xef\xbb\xbf"
_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")

Record = dict[str, Any]
Located = Iterator[tuple[str, Record]]


@dataclass(frozen=True)
class Row:
    """One entry of a metadata file.

    Attributes:
        where: File and line, for errors.
        name: The image's file name, as the file says it.
        target: The image's path relative to the dataset's folder; starts with "../" or "/" where it lies outside.
        values: All other columns.
    """

    where: str
    name: str
    target: str
    values: Record


def is_table(name: str) -> bool:
    """Whether a file name is that of a metadata file; capitals do not count."""
    return name.lower() in NAMES


def misspelt(path: str) -> bool:
    """Whether a file seems meant as a metadata file and has another name: metadata.json, metdata.jsonl."""
    name = posixpath.basename(path).lower()
    return name not in NAMES and bool(get_close_matches(name, NAMES, n=1, cutoff=0.83))


def read_tables(root: Path, tables: Sequence[str], key: str | None) -> list[Row]:
    """Read metadata files; entries of deeper folders come last.

    Args:
        root: The dataset's folder.
        tables: Their paths relative to root.
        key: The column with the image's file name; left out: `file_name`, or the first that ends in `_file_name`.

    Raises:
        DataError: A file that cannot be read, or an entry without a file name; the message names file and line.
    """
    rows: list[Row] = []
    for path in sorted(_one_per_folder(root, tables), key=lambda path: (path.count("/"), path)):
        found = list(_read_table(root, path, key))
        repeated = len(found) - len({row.target for row in found})
        if repeated:
            LOG.warning("%s: %d files are listed more than once; the last entry counts", root / path, repeated)
        rows += found
    return rows


def _one_per_folder(root: Path, tables: Sequence[str]) -> Iterator[str]:
    folders: dict[str, list[str]] = {}
    for path in sorted(tables, key=lambda path: (NAMES.index(posixpath.basename(path).lower()), path)):
        folders.setdefault(posixpath.dirname(path), []).append(path)
    for chosen, *others in folders.values():
        for other in others:
            LOG.warning("%s is not used: %s beside it is", root / other, posixpath.basename(chosen))
        yield chosen


def _read_table(root: Path, path: str, key: str | None) -> Iterator[Row]:
    file = root / path
    kind = file.suffix.lower()
    try:
        located = list({".jsonl": _json_lines, ".csv": _csv, ".parquet": _parquet}[kind](file))
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}", "Check the file.") from None
    column = _name_column(file, [record for _, record in located], key)
    inner = posixpath.dirname(path)
    for where, record in located:
        name = record.pop(column, None)
        if not isinstance(name, str) or not name:
            raise DataError(
                f"{where}: not an object with a {column} (a text)", "Every entry names the file that it belongs to."
            )
        yield Row(where, name, Path(os.path.normpath(posixpath.join(inner, name))).as_posix(), record)


def _name_column(file: Path, records: Sequence[Record], key: str | None) -> str:
    columns = list(dict.fromkeys(name for record in records for name in record))
    found = [name for name in columns if name == key or (key is None and name.endswith(f"_{KEY}"))]
    if key is None and KEY in columns:
        return KEY
    if not found and records:
        said = f"image_column {key!r} is not in {file}" if key else f"{file} has no column {KEY}"
        raise DataError(
            f"{said}; its columns: {', '.join(columns) or 'none'}",
            f"The column {KEY} names the image of each entry, relative to the folder of this file.",
        )
    return found[0] if found else KEY


def _json_lines(file: Path) -> Located:
    # Lines end at \n alone, as JSON Lines says: str.splitlines would also cut texts at U+2028 and U+0085.
    for number, line in enumerate(file.read_bytes().removeprefix(_BOM).split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            record = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError:
            raise _not_utf8(where) from None
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise DataError(f"{where}: not a JSON object with a {KEY}", "Each line is one object, without line breaks.")
        yield where, record


def _csv(file: Path) -> Located:
    data = file.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data[: error.start].count(b"\n") + 1
        raise _not_utf8(f"{file}, line {number}") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    lines: list[tuple[int, list[str]]] = []
    start = 1
    try:
        for cells in reader:
            if cells:
                lines.append((start, cells))
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{file}, line {start}: not CSV: {error}", "Check the quotation marks.") from None
    if not lines:
        return
    header = lines[0][1]
    for number, cells in lines[1:]:
        if len(cells) != len(header):
            raise DataError(
                f"{file}, line {number}: {len(cells)} cells, but {len(header)} columns in the first line",
                'Put texts with commas into quotation marks: "a cat, asleep".',
            )
    readers = [
        str if name.endswith(KEY) else _reader([cells[k] for _, cells in lines[1:]]) for k, name in enumerate(header)
    ]
    for number, cells in lines[1:]:
        values = (read(cell) if cell else None for read, cell in zip(readers, cells, strict=True))
        yield f"{file}, line {number}", dict(zip(header, values, strict=True))


def _reader(cells: Iterable[str]) -> Callable[[str], Any]:
    """What makes values of a column's cells: numbers if all but the empty ones are; 007 is a text."""
    filled = [cell for cell in cells if cell]
    for pattern, kind in ((_WHOLE, int), (_NUMBER, float)):
        if filled and all(pattern.fullmatch(cell) for cell in filled):
            return kind
    return str


def _parquet(file: Path) -> Located:
    import pyarrow
    from pyarrow import parquet

    try:
        records = parquet.read_table(file).to_pylist()
    except pyarrow.ArrowException as error:
        raise DataError(f"{file}: cannot be read as parquet: {str(error).splitlines()[0]}", "Check the file.") from None
    for number, record in enumerate(records):
        yield f"{file}, row {number}", record


def read_sidecar(file: Path) -> str:
    """Return the caption in a text file, without the white space around it.

    Raises:
        DataError: The file cannot be read, or is not UTF-8.
    """
    try:
        return file.read_bytes().decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise _not_utf8(str(file)) from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}", "Check the file.") from None


def _not_utf8(where: str) -> DataError:
    return DataError(f"{where}: not UTF-8", "Save the file in the encoding UTF-8.")
