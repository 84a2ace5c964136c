"""The small model that ships inside the package, which makes everything work without a network."""

from __future__ import annotations

from pathlib import Path

BUNDLED = "tiny"
FOLDER = Path(__file__).resolve().parent.parent / "assets" / BUNDLED


def bundled() -> Path | None:
    """Return its folder, or None where the package holds none."""
    return FOLDER if (FOLDER / "model_index.json").is_file() else None
