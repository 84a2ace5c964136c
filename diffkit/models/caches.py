"""Where diffkit keeps what it need not make again, and what a folder is known by whatever its path."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path


def cache_folder(kind: str = "embeddings") -> Path:
    """Return where things of a kind are kept: below DIFFKIT_CACHE, else the user's cache folder."""
    base = os.environ.get("DIFFKIT_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "diffkit")
    return Path(base).expanduser() / kind


def fingerprint(root: Path, folders: Sequence[str]) -> str:
    """Hash what folders hold: names, sizes and contents, of a large file its start and 64 blocks spread over it."""
    total = hashlib.sha256()
    for folder in folders:
        for path in sorted(p for p in (root / folder).glob("*") if p.is_file()):
            size = path.stat().st_size
            total.update(f"{folder}/{path.name}:{size}:".encode())
            with path.open("rb") as file:
                if size <= 2**24:
                    total.update(file.read())
                    continue
                total.update(file.read(2**20))
                for k in range(1, 65):
                    file.seek(k * (size - 2**16) // 64)
                    total.update(file.read(2**16))
    return total.hexdigest()
