"""The numbers of a run: `metrics.jsonl`, the loss curve, and the trackers that Accelerate knows."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class Metrics:
    """Rows of a run, one JSON object per line, appended as they come.

    Args:
        path: The `metrics.jsonl`.
        resumed_at: Rows of later steps are dropped, because they will be computed again.
    """

    def __init__(self, path: Path, resumed_at: int = 0) -> None:
        self.path = path
        self.rows = [row for row in _read(path) if row.get("step", 0) <= resumed_at] if resumed_at else []
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in self.rows), encoding="utf-8")
        temporary.replace(path)

    def add(self, row: dict[str, Any]) -> None:
        """Append one row."""
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def last(self, key: str) -> Any:
        """Return the newest value of a column, or None."""
        return next((row[key] for row in reversed(self.rows) if row.get(key) is not None), None)

    def lowest(self, key: str) -> Any:
        """Return the smallest value of a column, or None."""
        return min((row[key] for row in self.rows if row.get(key) is not None), default=None)


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:  # the line that a kill cut in two
            break
    return rows
