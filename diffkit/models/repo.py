"""A model repository, a local folder or one commit on the Hub: its files and JSON, fetched as they are needed.

How a repository is found and opened is in `hub.py`; which parts of it a family needs is the family's business.
"""

from __future__ import annotations

import errno
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffkit.errors import ModelError
from diffkit.models.mirrors import mirror_hint

LOG = logging.getLogger("diffkit.models")


class ModelNotFoundError(ModelError):
    """No model of that name is on the Hub or in the local cache, as far as one can see."""


@dataclass(frozen=True)
class Repo:
    """A model repository: a local folder, or one commit of a Hub repository.

    Attributes:
        id: What the user gave: a folder or a Hub id.
        revision: The commit, or None for a local folder.
        root: The folder that holds the files (for a Hub repository its snapshot in the cache).
        listing: All files of the commit, or None where only `root` is known (local folder, offline).
        hub: True for a Hub repository.
        network: The folder of the network, of a checkpoint that holds no pipeline.
        scheduler: The folder of the scheduler, where that does not lie in `root`: of a checkpoint, beside it.
    """

    id: str
    revision: str | None
    root: Path
    listing: frozenset[str] | None = None
    hub: bool = False
    network: str = ""
    scheduler: Path | None = None

    def files(self) -> list[str]:
        """Return the names of the files at the root and one folder below, sorted; online also those not fetched."""
        if self.listing is not None:
            return sorted(self.listing)
        found = [p for p in self.root.glob("*") if p.is_file()] + [p for p in self.root.glob("*/*") if p.is_file()]
        return sorted(p.relative_to(self.root).as_posix() for p in found)

    def has(self, name: str) -> bool:
        """Say whether the repository holds a file, without fetching it."""
        return (self.root / name).is_file() or (self.listing is not None and name in self.listing)

    def file(self, name: str) -> Path | None:
        """Return the local path of a file, fetched first where it must be; None where the repository has no such file.

        Raises:
            ModelError: The file exists but cannot be fetched (gated, no network).
        """
        if name.startswith(("/", "\\")) or ".." in Path(name).parts:
            raise ModelError(f"{self.id} asks for a file outside itself: {name!r}", "Do not use this repository.")
        path = self.root / name
        if self.scheduler is not None and name.startswith("scheduler/"):
            path = self.scheduler / name.removeprefix("scheduler/")
        if path.is_file():
            return path
        if self.listing is None or name not in self.listing:
            return None
        return fetch(self.id, name, self.revision)

    def json(self, name: str) -> dict[str, Any] | None:
        """Return a JSON file's object, or None where the repository has no such file.

        Raises:
            ModelError: It is not a JSON object.
        """
        path = self.file(name)
        if path is None:
            return None
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ModelError(f"{self.id}: {name} is not valid JSON ({error})", self.fetch_hint()) from None
        if not isinstance(data, dict):
            raise ModelError(f"{self.id}: {name} holds no JSON object", self.fetch_hint())
        return data

    def part(self, name: str) -> str:
        """Return the sub-folder of a component, or "" where the repository is flat (one model at its root).

        Raises:
            ModelError: Neither `NAME/config.json` nor `config.json` exists.
        """
        if self.network:
            return self.network
        if self.has(f"{name}/config.json"):
            return name
        if self.has("config.json"):
            return ""
        raise self.missing(f"{name}/config.json")

    @property
    def pipeline(self) -> str:
        """The class name in model_index.json, or in config.json for a bare model; "" where neither says."""
        for name in (f"{self.network}/config.json",) if self.network else ("model_index.json", "config.json"):
            config = self.json(name)
            if config is not None:
                return str(config.get("_class_name", ""))
        return ""

    def missing(self, what: str) -> ModelError:
        """Make the error for something that is not there."""
        if self.hub and self.listing is None:
            return ModelError(
                f"{self.id}: {what} is not in the local cache, and the Hub is out of reach", self.fetch_hint()
            )
        return ModelError(f"{self.id} holds no {what}", self.fetch_hint() if self.hub else "Check the folder.")

    def fetch_hint(self) -> str:
        """The next step when a file is missing or broken."""
        return download_hint(self.id, self.revision) if self.hub else f"Check the files in {self.root}."


def fetch(repo_id: str, name: str, revision: str | None) -> Path:
    """Fetch one file of a Hub repository into the cache.

    Raises:
        ModelError: It cannot be fetched; the message says why.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not LOG.isEnabledFor(logging.INFO):
        disable_progress_bars()
    try:
        return Path(hf_hub_download(repo_id, name, revision=revision, endpoint=constants.ENDPOINT))
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:  # the disk is full: not the model's fault
            raise
        raise hub_error(error, repo_id, revision) from error


def status_of(error: Exception) -> int | None:
    """Return the HTTP status that an error of the Hub's client tells of; None where there was no answer.

    Its classes, and those of the transport below it, depend on its version; all that hold an answer call it so.
    """
    return getattr(getattr(error, "response", None), "status_code", None)


def hub_error(error: Exception, repo_id: str, revision: str | None) -> ModelError:
    """Say in one line what went wrong between the Hub and us, and what to do."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    status = status_of(error)
    hint = download_hint(repo_id, revision)
    if status in (401, 403, 404) and "RevisionNotFoundError" not in kinds and (moved := mirror_hint(repo_id, revision)):
        return ModelNotFoundError(f"model {repo_id!r} is no longer on the Hub", moved)
    if "GatedRepoError" in kinds or (status == 403 and "DisabledRepoError" not in kinds):
        hint = f"Accept it on its Hub page, log in with `hf auth login`, then run `{_download(repo_id, revision)}`."
        return ModelError(f"model {repo_id!r} is gated: its licence has to be accepted by a logged-in user", hint)
    if "RevisionNotFoundError" in kinds:
        return ModelError(f"model {repo_id!r} has no revision {revision!r}", "Leave `revision` out, or check its name.")
    if "RepositoryNotFoundError" in kinds or status in (401, 404):
        hint = (
            f"Check the name; if it is private, log in with `hf auth login`, then run `{_download(repo_id, revision)}`."
        )
        return ModelNotFoundError(
            f"model {repo_id!r} is neither a folder here nor a repository you can read on the Hub", hint
        )
    if "HFValidationError" in kinds:
        return ModelError(f"model {repo_id!r}: not a Hub id", "Give a folder, or an id like owner/name.")
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ModelError(f"model {repo_id!r} cannot be fetched from the Hub: {reason}", hint)


def _download(repo_id: str, revision: str | None) -> str:
    return f"hf download {repo_id}" + (f" --revision {revision}" if revision else "")


def download_hint(repo_id: str, revision: str | None) -> str:
    """The command that fetches a repository, or the name of the copy of one that is gone."""
    if moved := mirror_hint(repo_id, revision):
        return moved
    return f"Run `{_download(repo_id, revision)}` where there is a network, then try again."
