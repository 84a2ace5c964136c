"""Where a model's files come from: a local folder or the Hub, file by file, and only what is needed.

A `Repo` hands out files and JSON; `load_component` (of `weights.py`) makes one module of them. Custom pipelines and
remote code are refused. Which parts a family needs is the family's business, not this file's.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from diffkit.errors import ModelError
from diffkit.models.weights import load_component, load_config, quiet_libraries

__all__ = ["Repo", "load_component", "load_config", "open_repo", "quiet_libraries"]

LOG = logging.getLogger("diffkit.models")

# Seconds for the one question that every Hub model costs; no network has to be noticed within 5 s.
LOOKUP_TIMEOUT = 4.0

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


@dataclass(frozen=True)
class Repo:
    """A model repository: a local folder, or one commit of a Hub repository.

    Attributes:
        id: What the user gave: a folder or a Hub id.
        revision: The commit, or None for a local folder.
        root: The folder that holds the files (for a Hub repository its snapshot in the cache).
        listing: All files of the commit, or None where only `root` is known (local folder, offline).
        hub: True for a Hub repository.
    """

    id: str
    revision: str | None
    root: Path
    listing: frozenset[str] | None = None
    hub: bool = False

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
        if path.is_file():
            return path
        if self.listing is None or name not in self.listing:
            return None
        return _fetch(self.id, name, self.revision)

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
        if self.has(f"{name}/config.json"):
            return name
        if self.has("config.json"):
            return ""
        raise self.missing(f"{name}/config.json")

    @property
    def pipeline(self) -> str:
        """The class name in model_index.json, or in config.json for a bare model; "" where neither says."""
        for name in ("model_index.json", "config.json"):
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
        return _download_hint(self.id, self.revision) if self.hub else f"Check the files in {self.root}."


def open_repo(id_or_path: str | os.PathLike[str], *, revision: str | None = None) -> Repo:
    """Open a local folder or a Hub repository; of a Hub repository only the file list and one small JSON are fetched.

    Args:
        id_or_path: "tiny" (the model inside the package), a folder that exists, else a Hub id such as
            `google/ddpm-celebahq-256`.
        revision: Branch, tag or commit of a Hub repository; the default branch when left out.

    Raises:
        ModelError: No such folder, repository or revision; gated; neither reachable nor cached; made of custom code.
    """
    from diffkit.models.vocabulary import BUNDLED, bundled

    text = os.fspath(id_or_path)
    path = Path(text).expanduser()
    if text == BUNDLED and (shipped := bundled()):
        _say_shadowed(text)
        repo = Repo(text, None, shipped)
    elif text and path.is_dir():
        repo = Repo(text, None, path)
    elif path.is_file():
        raise ModelError(
            f"model {text!r} is a file; a model is a folder or a Hub id", f"Give its folder: {path.parent}."
        )
    elif not _HUB_ID.fullmatch(text) or text.endswith(".git"):
        raise ModelError(
            f"model {text!r}: no such folder, and not a Hub id", "Give a folder, or an id like owner/name."
        )
    else:
        repo = _open_hub(text, revision)
    if not repo.has("model_index.json") and not repo.has("config.json"):
        raise repo.missing("model_index.json or config.json")
    _refuse_custom_code(repo)
    return repo


@cache
def _say_shadowed(name: str) -> None:
    if Path(name).is_dir():
        LOG.info("%s is the model that ships with diffkit; the folder of that name is ./%s", name, name)


def _refuse_custom_code(repo: Repo) -> None:
    """Refuse a model_index.json that names Python files of the repository (diffusers would import them)."""
    index = repo.json("model_index.json") or {}
    spec = find_spec("diffusers")
    pipelines = Path(spec.origin).parent / "pipelines" if spec and spec.origin else Path()
    entries: Mapping[str, Any] = {k: v for k, v in index.items() if k == "_class_name" or not k.startswith("_")}
    for name, entry in entries.items():
        if name == "_class_name":
            bad = not isinstance(entry, str)
        elif isinstance(entry, list) and len(entry) == 2:
            library = entry[0]
            known = library in (None, "diffusers", "transformers") or (
                isinstance(library, str) and library.isidentifier() and (pipelines / library).is_dir()
            )
            bad = not known or (library is None and entry[1] is not None)
        else:
            bad = isinstance(entry, list)
        if bad:
            raise ModelError(
                f"{repo.id}: model_index.json names custom code ({name}: {entry}); it is not run",
                "Use a repository whose parts are diffusers and transformers classes.",
            )


def _open_hub(repo_id: str, revision: str | None) -> Repo:
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        return _open_cache(repo_id, revision, "offline mode is on")
    timeout = float(constants.HF_HUB_ETAG_TIMEOUT) if "HF_HUB_ETAG_TIMEOUT" in os.environ else LOOKUP_TIMEOUT
    try:
        info = HfApi(endpoint=constants.ENDPOINT).model_info(repo_id, revision=revision, timeout=timeout)
    except Exception as error:
        if not _unreachable(error):
            raise _hub_error(error, repo_id, revision) from error
        return _open_cache(repo_id, revision, "the Hub is out of reach")
    listing = frozenset(s.rfilename for s in info.siblings or ())
    sha = str(info.sha)
    first = next((n for n in ("model_index.json", "config.json") if n in listing), None)
    root = Path(constants.HF_HUB_CACHE) / f"models--{repo_id.replace('/', '--')}" / "snapshots" / sha
    if first is not None:
        # Fetched by the name of the revision, so that the cache remembers which commit it stood for (offline use).
        ref = root.parent.parent / "refs" / (revision or "main")
        known = ref.is_file() and ref.read_text().strip() == sha
        path = _fetch(repo_id, first, sha if known or revision == sha else revision)
        root = path.parent
    return Repo(repo_id, root.name, root, listing, hub=True)


def _open_cache(repo_id: str, revision: str | None, why: str) -> Repo:
    from huggingface_hub import try_to_load_from_cache

    for name in ("model_index.json", "config.json"):
        path = try_to_load_from_cache(repo_id, name, revision=revision)
        if isinstance(path, str):
            LOG.debug("%s: %s; using the local cache", repo_id, why)
            return Repo(repo_id, Path(path).parent.name, Path(path).parent, None, hub=True)
    at = f" at revision {revision!r}" if revision else ""
    raise ModelError(f"model {repo_id!r}{at} is not in the local cache, and {why}", _download_hint(repo_id, revision))


def _fetch(repo_id: str, name: str, revision: str | None) -> Path:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not LOG.isEnabledFor(logging.INFO):
        disable_progress_bars()
    try:
        return Path(hf_hub_download(repo_id, name, revision=revision, endpoint=constants.ENDPOINT))
    except Exception as error:
        if getattr(error, "errno", None) == 28:  # the disk is full: not the model's fault
            raise
        raise _hub_error(error, repo_id, revision) from error


def _unreachable(error: Exception) -> bool:
    """Say whether the request never got an answer, or a server's 5xx, so that the cache is the next best."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return int(status) >= 500 or status == 429
    return "Validation" not in type(error).__name__


def _hub_error(error: Exception, repo_id: str, revision: str | None) -> ModelError:
    kinds = {kind.__name__ for kind in type(error).__mro__}
    status = getattr(getattr(error, "response", None), "status_code", None)
    hint = _download_hint(repo_id, revision)
    if "GatedRepoError" in kinds or (status == 403 and "DisabledRepoError" not in kinds):
        hint = f"Accept it on its Hub page, log in with `hf auth login`, then run `{_download(repo_id, revision)}`."
        return ModelError(f"model {repo_id!r} is gated: its licence has to be accepted by a logged-in user", hint)
    if "RevisionNotFoundError" in kinds:
        return ModelError(f"model {repo_id!r} has no revision {revision!r}", "Leave --revision out, or check its name.")
    if "RepositoryNotFoundError" in kinds or status in (401, 404):
        hint = (
            f"Check the name; if it is private, log in with `hf auth login`, then run `{_download(repo_id, revision)}`."
        )
        return ModelError(f"model {repo_id!r} is neither a folder nor a repository you can read on the Hub", hint)
    if "HFValidationError" in kinds:
        return ModelError(f"model {repo_id!r}: not a Hub id", "Give a folder, or an id like owner/name.")
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ModelError(f"model {repo_id!r} cannot be fetched from the Hub: {reason}", hint)


def _download(repo_id: str, revision: str | None) -> str:
    return f"hf download {repo_id}" + (f" --revision {revision}" if revision else "")


def _download_hint(repo_id: str, revision: str | None) -> str:
    return f"Run `{_download(repo_id, revision)}` where there is a network, then try again."
