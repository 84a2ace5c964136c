"""The prompt cache: embeddings on disk as safetensors, which can be carried to another machine."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

LOG = logging.getLogger("diffkit.models")

# The name that files have for the first tensor of every encoding, from the time when there was no other one.
_FIRST, _IN_FILES = "encoder_hidden_states", "embedding"


def cache_folder(kind: str = "embeddings") -> Path:
    """Return where things of a kind are kept: below DIFFKIT_CACHE, else the user's cache folder."""
    base = os.environ.get("DIFFKIT_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "diffkit")
    return Path(base).expanduser() / kind


class EmbeddingCache:
    """Prompt embeddings on disk, one safetensors file for each prompt, written whole or not at all.

    Args:
        root: The folder; `cache_folder()` when left out.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root if root is not None else cache_folder()

    def path(self, key: dict[str, str]) -> Path:
        """Return the file of a key."""
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self.root / digest[:2] / f"{digest}.safetensors"

    def get(self, key: dict[str, str]) -> dict[str, Tensor] | None:
        """Return a prompt's tensors by name, without a batch axis, or None where there are none that can be read."""
        path = self.path(key)
        if not path.is_file():
            return None
        from safetensors.torch import load_file

        try:
            found = load_file(path)
            return {_FIRST: found.pop(_IN_FILES), **found}
        except Exception as error:  # a broken cache entry is encoded again, never an obstacle
            LOG.warning("%s is not readable (%s); the prompt is encoded again", path, type(error).__name__)
            return None

    def put(self, key: dict[str, str], tensors: Mapping[str, Tensor]) -> None:
        """Store a prompt's tensors; a cache that cannot be written is no error."""
        from safetensors.torch import save

        path = self.path(key)
        named = {_IN_FILES if name == _FIRST else name: value for name, value in tensors.items()}
        data = save({name: value.detach().cpu().contiguous() for name, value in named.items()}, metadata=key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
                file.write(data)
            os.replace(file.name, path)
        except OSError as error:
            LOG.warning("the embedding cache %s cannot be written: %s", self.root, error.strerror)
            with suppress(OSError, UnboundLocalError):
                os.unlink(file.name)


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
