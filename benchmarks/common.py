"""What the benchmarks share: tables, JSON files, facts about the machine, and the folder for what they write."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OUTPUTS = ROOT / "outputs"


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser that shows the benchmark's own docstring and has `--json FILE`."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", type=Path, metavar="FILE", help="Also write the numbers to FILE.")
    return made


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Lay cells out in columns: text to the left, numbers to the right."""
    cells = [[_text(cell) for cell in row] for row in rows]
    widths = [max(len(line[k]) for line in [list(head), *cells]) for k in range(len(head))]
    right = [bool(rows) and all(isinstance(row[k], (int, float)) or row[k] is None for row in rows)
             for k in range(len(head))]  # fmt: skip

    def line(row: Sequence[str]) -> str:
        done = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)]
        return "  ".join(done).rstrip()

    return "\n".join([line(list(head)), "  ".join("-" * w for w in widths), *map(line, cells)])


def _text(cell: Any) -> str:
    return "-" if cell is None else f"{cell:.2f}" if isinstance(cell, float) else str(cell)


def machine(device: str = "cpu") -> dict[str, Any]:
    """Return what a number depends on: cores, versions, load, and the name of the GPU where one is used."""
    import diffusers
    import torch

    facts: dict[str, Any] = {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }
    if device.startswith("cuda"):
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def describe(facts: dict[str, Any]) -> str:
    """One line of `machine`'s facts."""
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def finish(result: dict[str, Any], path: Path | None) -> None:
    """Write the numbers where `--json` asks for them."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"numbers: {path}")
