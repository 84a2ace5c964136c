"""What other libraries raise, as errors of ours: each with its exit code and the next step. No command of its own."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

from diffkit.errors import DiffkitError, ModelError, ResourceError, Terminated, UsageError

_NO_FILE = "The repository has no such file; check that it holds a diffusers pipeline."
_NETWORK = "Check the network and try again; --offline uses what is cached."
_HUB = {
    "GatedRepoError": "Accept its licence on its page on the Hub, then `hf auth login`, or set HF_TOKEN.",
    "RepositoryNotFoundError": "Check the name; a private repository needs `hf auth login` or HF_TOKEN.",
    "RevisionNotFoundError": "Check --revision; the repository has no such branch, tag or commit.",
    "LocalEntryNotFoundError": "Run `hf download REPOSITORY` while online, then the same command again.",
    "OfflineModeIsEnabled": "Leave --offline out, or run `hf download REPOSITORY` while online.",
    "RemoteEntryNotFoundError": _NO_FILE,
    "EntryNotFoundError": _NO_FILE,
    "HfHubHTTPError": _NETWORK,
    # the HTTP library's own, which the Hub's client lets through on some paths
    "ConnectError": _NETWORK,
    "TimeoutException": _NETWORK,
    "ConnectionError": _NETWORK,
}
_NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|bad_alloc|CUBLAS_STATUS_ALLOC_FAILED|not enough memory", re.I
)
_NO_SPACE = re.compile(r"No space left on device|os error 28\b|Disk quota exceeded|os error 122\b", re.I)
_BAD_PATH = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP}
_BAD_LINK = re.compile(r"Symlink loop from|Could not determine home directory")  # as pathlib says it


def translate(error: BaseException) -> DiffkitError:
    """Turn any exception into the `DiffkitError` that names its exit code."""
    if isinstance(error, DiffkitError):
        return error
    kind = type(error).__name__
    if isinstance(error, KeyboardInterrupt) or kind == "Abort":  # Abort: typer's, at a prompt
        return Terminated("stopped by Ctrl-C", 130)
    text = _one_line(error)
    if isinstance(error, MemoryError) or "OutOfMemory" in kind or _NO_MEMORY.search(str(error)):
        return ResourceError(
            f"out of memory: {text}", "Lower the batch size or the resolution, or close other programs."
        )
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or _NO_SPACE.search(str(error)):
        return ResourceError(f"the disk is full: {text}", "Free some space, then run the same command again.")
    for cause in _chain(error):
        for ancestor in type(cause).__mro__:
            if ancestor.__name__ in _HUB and ancestor.__module__ != "builtins":
                return ModelError(_one_line(cause), _HUB[ancestor.__name__])
    if isinstance(error, ConnectionError):
        return ModelError(text, _HUB["ConnectionError"])
    if isinstance(error, OSError) and error.errno in _BAD_PATH and error.filename is not None:
        return UsageError(f"cannot use {str(error.filename)!r}: {error.strerror}", "Give another path.")
    if isinstance(error, RuntimeError) and _BAD_LINK.match(str(error)):
        return UsageError(f"a path cannot be used: {text}", "Check where its links lead, and the user after a ~.")
    return DiffkitError(f"{kind}: {text}", "This is a bug in diffkit; run again with --debug and report it.")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what caused it: transformers and diffusers wrap the Hub's errors in OSError."""
    for _ in range(8):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
