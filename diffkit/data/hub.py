"""Tables through `datasets`: parquet files on this machine, and the Hub, whose failures become one clear line."""

from __future__ import annotations

import errno
import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffkit.data import fingerprint
from diffkit.data.sources import SPLITS
from diffkit.errors import DataError, ModelError
from diffkit.recipes.schema import DatasetSpec

LOG = logging.getLogger("diffkit.data")

TIMEOUT = 3.0  # seconds for the Hub's first answer


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence the progress bars and log lines of `datasets`: one line of ours says what is read or wrong."""
    from datasets.utils import logging as talk

    shown, level = talk.is_progress_bar_enabled(), talk.get_verbosity()
    talk.disable_progress_bar()
    talk.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        talk.set_verbosity(level)
        if shown:
            talk.enable_progress_bar()


def load_parquet(root: Path, files: list[Path], spec: DatasetSpec) -> tuple[Any, str]:
    """Open parquet files as a `datasets` table (a memory-mapped copy in its cache), or as a stream.

    Where file or folder names tell splits (train-00000.parquet, test/0.parquet), those of `spec.split` are read;
    else every file belongs to train.

    Returns:
        The table, and the fingerprint of its files.

    Raises:
        DataError: No files for the split, or a file that is not parquet.
    """
    from datasets import load_dataset

    chosen = _of_split(root, files, spec.split)
    mark = _of_files(root, chosen)
    try:
        with _quietly():
            # The cache knows a file by its path and time, which other contents may share: the name tells those apart.
            files_of = {"data_files": [str(f) for f in chosen], "split": "train"}
            return load_dataset("parquet", mark, **files_of, streaming=spec.streaming), mark
    except Exception as error:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOSPC):
            raise
        cause = error.__cause__ or error
        text = str(cause).strip().splitlines()
        raise DataError(
            f"{_culprit(chosen) or root}: cannot be read as parquet: {text[0] if text else type(cause).__name__}",
            "Check the files; a download may be incomplete.",
        ) from None


def _of_files(root: Path, files: list[Path]) -> str:
    folder = root.parent if root.is_file() else root
    return fingerprint.of_files(folder, [f.relative_to(folder).as_posix() for f in files], fingerprint.SHARD_PIECES)


def is_saved(root: Path) -> bool:
    """Whether a folder was written by `save_to_disk` of `datasets`, as one table or as a dictionary of splits."""
    return (root / "dataset_dict.json").is_file() or all(
        (root / name).is_file() for name in ("dataset_info.json", "state.json")
    )


def load_saved(root: Path, spec: DatasetSpec) -> tuple[Any, str]:
    """Open the folder of a `save_to_disk` as a `datasets` table, or as a stream; see `load_parquet`.

    Raises:
        DataError: No such split, or files that are missing or broken.
    """
    from datasets import DatasetDict, load_from_disk

    try:
        with _quietly():
            saved = load_from_disk(str(root))
    except Exception as error:  # pyarrow raises its own errors, JSON and missing keys theirs
        raise DataError(
            f"{root}: cannot be read as a dataset of save_to_disk: {_first_line(error)}",
            "Check the files; a copy may be incomplete.",
        ) from None
    if isinstance(saved, DatasetDict):
        match = [name for name in saved if name.lower() in SPLITS.get(spec.split, (spec.split,))]
        if not match:
            raise DataError(f"no split {spec.split!r} in {root}; there are: {', '.join(saved)}", "Set dataset.split.")
        saved, root = saved[match[0]], root / match[0]
    elif spec.split != "train" and str(saved.split) not in SPLITS.get(spec.split, (spec.split,)):
        raise DataError(f"no split {spec.split!r} in {root}: it is one table", "Leave dataset.split at train.")
    files = sorted(root.glob("*.arrow"))
    table = saved.with_format(None)
    if spec.streaming:
        table = table.to_iterable_dataset(num_shards=max(1, min(len(files), len(table))))
    return table, _of_files(root, files)


def _culprit(files: list[Path]) -> Path | None:
    import pyarrow.parquet

    for file in files:
        try:
            pyarrow.parquet.read_schema(file)
        except Exception:  # pyarrow raises its own errors, OSError and ValueError
            return file
    return None


def _of_split(root: Path, files: list[Path], split: str) -> list[Path]:
    if files == [root]:  # one file, named by the user
        return files
    splits: dict[str, list[Path]] = {}
    for file in files:
        inner = file.relative_to(root).as_posix()
        words = set(re.split(r"[^a-z]+", inner.lower()))
        name = next((name for name, aliases in SPLITS.items() if words & set(aliases)), "")
        splits.setdefault(name, []).append(file)
    if set(splits) == {""}:
        if split != "train":
            raise DataError(f"no split {split!r} in {root}: no file's name tells one", "Leave dataset.split at train.")
        return files
    if split not in splits:
        there = ", ".join(sorted(name or "unnamed" for name in splits))
        raise DataError(f"no split {split!r} in {root}; there are: {there}", "Set dataset.split.")
    return splits[split]


def load_hub(spec: DatasetSpec) -> tuple[Any, str | None]:
    """Open a dataset of the Hub, from the cache where the Hub is out of reach.

    Returns:
        The table, and the commit that it is of, where that is known.

    Raises:
        ModelError: No such dataset or revision, no access, or neither network nor cache; the hint names the command
            that fills the cache.
        DataError: The dataset has no such configuration or split.
    """
    from huggingface_hub.constants import is_offline_mode

    problem, commit = ("offline mode is on", None) if is_offline_mode() else _ask(spec)
    source = spec.name
    if problem:
        prepared = _prepared(spec)
        if prepared is not None:
            LOG.info("dataset %s: %s; what was prepared earlier is used", spec.name, problem)
            return prepared
        folder = _snapshot(spec)
        if folder is None:
            raise ModelError(f"dataset {spec.name!r}: {problem}, and it is not in the cache", _download_hint(spec))
        LOG.info("dataset %s: %s; its cached copy is used", spec.name, problem)
        source, commit = str(folder), folder.name
    return _load(source, spec, cached=bool(problem)), commit


def _load(source: str, spec: DatasetSpec, *, cached: bool) -> Any:
    from datasets import load_dataset

    revision = None if cached else spec.revision
    try:
        with _quietly():
            return load_dataset(source, spec.config, split=spec.split, streaming=spec.streaming, revision=revision)
    except Exception as error:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOSPC):
            raise
        text = (str(error).strip() or type(error).__name__).splitlines()
        if isinstance(error, ValueError) and re.search(r"config|split|BuilderConfig", str(error), re.IGNORECASE):
            raise DataError(
                f"dataset {spec.name!r}: {' '.join(text)[:400]}", "Set dataset.config or dataset.split."
            ) from None
        where = "its cached copy is incomplete" if cached else "cannot be loaded"
        raise ModelError(f"dataset {spec.name!r}: {where}: {text[0][:300]}", _download_hint(spec)) from None


def _ask(spec: DatasetSpec) -> tuple[str, str | None]:
    """Ask the Hub for the dataset once; return why it gave no answer, or an empty text, and the commit it named.

    Raises:
        ModelError: It answered, and there is no such dataset or revision, or no access to it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        info = _within(TIMEOUT, lambda: HfApi().dataset_info(spec.name, revision=spec.revision, timeout=TIMEOUT))
    except HFValidationError:
        raise DataError(f"dataset {spec.name!r} is no valid Hub id", "An id looks like owner/name.") from None
    except GatedRepoError:
        command = download_command(spec.name, spec.revision)
        hint = f"Accept its terms at its page on the Hub, run `hf auth login`, then `{command}`."
        raise ModelError(f"dataset {spec.name!r} is gated: your account has no access", hint) from None
    except RevisionNotFoundError:
        raise ModelError(
            f"dataset {spec.name!r} has no revision {spec.revision!r}", "Check dataset.revision."
        ) from None
    except RepositoryNotFoundError:
        hint = "Check the name; a private dataset needs `hf auth login`. A folder must exist on this machine."
        raise ModelError(f"dataset {spec.name!r}: there is none of this name on the Hub", hint) from None
    except HfHubHTTPError as error:
        return f"the Hub answered with an error ({_first_line(error)})", None
    except Exception as error:  # the transport's own errors depend on the version of the Hub's library
        return f"the Hub cannot be reached ({_first_line(error)})", None
    return "", info.sha


def _within(seconds: float, ask: Callable[[], Any]) -> Any:
    """Call `ask`, but wait no longer than this: name servers and the client's own repetitions know no limit."""
    answers: list[Any] = []
    failures: list[Exception] = []

    def call() -> None:
        try:
            answers.append(ask())
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {seconds:g} s")
    if failures:
        raise failures[0]
    return answers[0]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _prepared(spec: DatasetSpec) -> tuple[Any, str | None] | None:
    """The table that an earlier run made from the Hub's files and the commit of these, or None.

    `datasets` keeps it in a folder that is called by the commit, and takes the newest; one that an old version of it
    wrote has another name, and its commit is not known.
    """
    from datasets.packaged_modules.cache.cache import Cache

    if spec.revision is not None:
        return None
    name = spec.name.split("/")[-1]
    try:
        with _quietly():
            cached = Cache(repo_id=spec.name, dataset_name=name, config_name=spec.config, version="auto", hash="auto")
            table = cached.as_streaming_dataset(spec.split) if spec.streaming else cached.as_dataset(spec.split)
            return table, cached.hash if re.fullmatch(r"[0-9a-f]{40}", cached.hash or "") else None
    except Exception:  # not there, several configurations, or written by another version: then the snapshot decides
        return None


def _snapshot(spec: DatasetSpec) -> Path | None:
    """The folder that `hf download` filled, if there is one."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(spec.name, repo_type="dataset", revision=spec.revision, local_files_only=True)
    except Exception:  # not cached, or a name that no cache can hold
        return None
    return Path(folder)


def download_command(name: str, revision: str | None = None) -> str:
    """Return the command of the Hub's own client that fills its cache with a dataset."""
    return f"hf download --repo-type dataset {name}" + (f" --revision {revision}" if revision else "")


def _download_hint(spec: DatasetSpec) -> str:
    return f"Where there is a network, run `{download_command(spec.name, spec.revision)}` first."
