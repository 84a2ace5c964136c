"""What tells the code that makes pieces from other code of the same version: a hash of the package's sources."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
# What only asks for pieces, prints or lays out: a change there changes none. All that they ask for is in their keys.
_ASKING = frozenset({"cli", "studio", "lab"})
_MAKING = frozenset({"lab/pieces.py", "lab/printed.py", "lab/trainings.py"})


@cache
def code_digest(package: Path | None = None) -> str:
    """Return a hash of the sources that make pieces, read once in a process.

    Args:
        package: A folder of sources; this package when left out.
    """
    root, found = package or PACKAGE, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if name.partition("/")[0] not in _ASKING or name in _MAKING:
            source = path.read_bytes()
            found.update(f"{name} {len(source)} ".encode() + source)
    return found.hexdigest()[:16]
