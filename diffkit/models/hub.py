"""Opening a model repository: the model inside the package, a local folder, or the Hub.

Of a Hub repository only the list of its files and one small JSON are fetched; without a network the cache is used.
Custom pipelines and remote code are refused.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from diffkit.errors import ModelError
from diffkit.models.bundled import BUNDLED, bundled
from diffkit.models.kinds import module_of
from diffkit.models.repo import ModelNotFoundError, Repo, download_hint, fetch, hub_error, status_of

LOG = logging.getLogger("diffkit.models")

# Seconds for the one question that every Hub model costs; no network has to be noticed within 5 s.
LOOKUP_TIMEOUT = 4.0

_FIRST = ("model_index.json", "config.json")  # one of them says what a repository holds
_CHECKPOINT = ("unet_ema", "unet")  # where diffusers' training scripts save a network, the average first

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def open_repo(id_or_path: str | os.PathLike[str], *, revision: str | None = None) -> Repo:
    """Open a local folder or a Hub repository; of a Hub repository only the file list and one small JSON are fetched.

    Args:
        id_or_path: "tiny" (the model inside the package), a folder that exists, else a Hub id such as
            `google/ddpm-celebahq-256`.
        revision: Branch, tag or commit of a Hub repository; the default branch when left out.

    Raises:
        ModelError: No such folder, repository or revision; gated; neither reachable nor cached; made of custom code.
    """
    text = os.fspath(id_or_path)
    path = Path(text).expanduser()
    if text == BUNDLED and (shipped := bundled()):
        _say_shadowed(text)
        repo = Repo(text, None, shipped)
    elif text and path.is_dir():
        repo = _open_folder(text, path)
    elif path.is_file():
        raise _single_file(text, path)
    elif text.endswith(".git") or not _HUB_ID.fullmatch(text):
        if _looks_local(text):
            raise no_folder(text)
        raise ModelError(
            f"model {text!r}: no such folder, and not a Hub id", "Give a folder, or an id like owner/name."
        )
    else:
        try:
            repo = _open_hub(text, revision)
        except ModelNotFoundError:
            if _looks_local(text):
                raise no_folder(text) from None
            raise
    if not repo.network and not any(repo.has(name) for name in _FIRST):
        raise _unusable(repo)
    _refuse_custom_code(repo)
    return repo


def is_hub_id(text: str) -> bool:
    """Say whether a name can only be that of a repository on the Hub."""
    return bool(_HUB_ID.fullmatch(text)) and not text.endswith(".git") and not _looks_local(text)


def no_folder(text: str) -> ModelError:
    """Make the error for a model whose name is a path, where there is no such folder."""
    if Path(text).expanduser().is_absolute():
        return ModelError(f"model {text!r}: no such folder", "Check the path.")
    return ModelError(
        f"model {text!r}: no such folder in {Path.cwd()}",
        "Run from the folder that the path begins in, or give the whole path.",
    )


def _looks_local(text: str) -> bool:
    """Say whether a name is a path rather than an id on the Hub: ./x, ../x, /x, a/b/c, a/b where a folder a is."""
    parts = text.replace(os.sep, "/").split("/")
    if text.startswith((".", "~", "/")) or Path(text).is_absolute() or len(parts) > 2:
        return True
    return len(parts) == 2 and bool(parts[0]) and Path(parts[0]).is_dir()


def _open_folder(text: str, path: Path) -> Repo:
    """Open a folder: a pipeline, a network alone, or a checkpoint of diffusers' training scripts."""
    whole = any((path / file).is_file() for file in _FIRST)
    found = [name for name in _CHECKPOINT if (path / name / "config.json").is_file()]
    if whole or not found:
        return Repo(text, None, path)
    places = (path / "scheduler", path.parent / "scheduler")
    scheduler = next((place for place in places if (place / "scheduler_config.json").is_file()), None)
    _say_checkpoint(text, found[0], scheduler)
    return Repo(text, None, path, network=found[0], scheduler=scheduler)


@cache
def _say_checkpoint(text: str, name: str, scheduler: Path | None) -> None:
    beside = "" if scheduler is None else f", with the scheduler in {scheduler}"
    LOG.info("%s is a checkpoint of a training: its %s/ is read%s", text, name, beside)


def _single_file(text: str, path: Path) -> ModelError:
    """Make the error for a file in place of a folder; the hint names a folder only where one can be opened."""
    for folder in (path.parent, path.parent.parent):
        if any((folder / file).is_file() for file in _FIRST):
            inner = folder == path.parent and (folder.parent / _FIRST[0]).is_file()
            return ModelError(f"model {text!r} is a file", f"Give its folder: {folder.parent if inner else folder}.")
    return ModelError(
        f"model {text!r} is a file, and no config.json beside it says what network it belongs to",
        "Make a folder of it with `diffkit convert`, or put the network's config.json beside the weights and give their"
        " folder.",
    )


def _unusable(repo: Repo) -> ModelError:
    """Make the error for a folder or repository that holds no model."""
    error = repo.missing("model_index.json or config.json")
    files = [name for name in repo.listing or () if "/" not in name and name.endswith((".ckpt", ".safetensors", ".pt"))]
    if len(files) == 1:
        fetch_it = f"Run `hf download {repo.id} {files[0]}`, then `diffkit convert` with the file that it names."
        return ModelError(f"{repo.id} holds {files[0]} alone, no folder as diffusers saves it", fetch_it)
    if repo.hub:
        return error
    found = [p for p in repo.root.glob("checkpoint-*") if any((p / n / "config.json").is_file() for n in _CHECKPOINT)]
    if found:
        newest = max(found, key=lambda p: (len(p.name), p.name))
        return ModelError(error.message, f"It holds checkpoints of a training; give one of them: {newest}.")
    if (repo.root / "checkpoints").is_dir():
        return ModelError(error.message, "Its training is not finished: run the same `diffkit train` again.")
    return ModelError(error.message, "Give a folder as diffusers or `diffkit train` saves it.")


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
            ours = isinstance(entry[1], str) and module_of(entry[1]) == library  # a class of this package
            bad = not (known or ours) or (library is None and entry[1] is not None)
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
            raise hub_error(error, repo_id, revision) from error
        return _open_cache(repo_id, revision, "the Hub is out of reach")
    listing = frozenset(s.rfilename for s in info.siblings or ())
    sha = str(info.sha)
    first = next((n for n in _FIRST if n in listing), None)
    root = Path(constants.HF_HUB_CACHE) / f"models--{repo_id.replace('/', '--')}" / "snapshots" / sha
    if first is not None:
        # Fetched by the name of the revision, so that the cache remembers which commit it stood for (offline use).
        ref = root.parent.parent / "refs" / (revision or "main")
        known = ref.is_file() and ref.read_text().strip() == sha
        path = fetch(repo_id, first, sha if known or revision == sha else revision)
        root = path.parent
    return Repo(repo_id, root.name, root, listing, hub=True)


def _open_cache(repo_id: str, revision: str | None, why: str) -> Repo:
    from huggingface_hub import try_to_load_from_cache

    for name in _FIRST:
        path = try_to_load_from_cache(repo_id, name, revision=revision)
        if isinstance(path, str):
            LOG.debug("%s: %s; using the local cache", repo_id, why)
            return Repo(repo_id, Path(path).parent.name, Path(path).parent, None, hub=True)
    at = f" at revision {revision!r}" if revision else ""
    raise ModelNotFoundError(
        f"model {repo_id!r}{at} is not in the local cache, and {why}",
        f"{download_hint(repo_id, revision)} A folder of that name is not in {Path.cwd()} either.",
    )


def _unreachable(error: Exception) -> bool:
    """Say whether the request never got an answer, or a server's 5xx, so that the cache is the next best."""
    if (status := status_of(error)) is not None:
        return status >= 500 or status == 429
    return "Validation" not in type(error).__name__
