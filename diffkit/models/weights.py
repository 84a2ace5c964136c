"""From a repository's files to a module: which weights are read, in which order of preference, and with what care.

Rules: safetensors before anything pickled; the plain file before variants (fp16 first among them, and before the plain
one where half precision is asked for); one file before shards. Every tensor is accounted for. Nothing here can run
code: a `.bin` goes through torch's restricted unpickler, and only where that is allowed. Holds no Hub access.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from diffkit.errors import ModelError
from diffkit.models.pickles import read_pickle

# Opening a repository, and failing to, must not wait for torch.
if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from diffkit.models.repo import Repo

M = TypeVar("M", bound="nn.Module")

LOG = logging.getLogger("diffkit.models")

# What old configurations call the unconditional UNet.
_OLD_UNETS = ("UNet2DModel", "UNetUnconditionalModel", None)


def load_config(repo: Repo, subfolder: str, name: str) -> dict[str, Any]:
    """Return `SUBFOLDER/NAME`, or `NAME` at the root where the sub-folder is "".

    Raises:
        ModelError: It does not exist, or is not a JSON object.
    """
    path = f"{subfolder}/{name}" if subfolder else name
    config = repo.json(path)
    if config is None:
        raise repo.missing(path)
    return config


def load_component(
    repo: Repo,
    cls: type[M],
    subfolder: str = "",
    *,
    variant: str | None = None,
    dtype: torch.dtype | None = None,
    prefer: str | None = None,
    allow_pickle: bool = False,
    **options: Any,
) -> M:
    """Load one module (a diffusers or transformers class) with every tensor accounted for, in evaluation mode.

    Args:
        repo: Where from.
        cls: The class; never taken from the repository.
        subfolder: The component's folder, "" for a flat repository.
        variant: `fp16` and the like, and nothing else; when left out the plain weights, else any variant there is.
        prefer: A variant to take where it is there; when left out fp16 if half precision is asked for.
        dtype: What to convert to; the default dtype when left out.
        allow_pickle: Also read `.bin`, through torch's restricted unpickler.
        options: Passed on to `from_pretrained` (a quantization, a configuration value).

    Raises:
        ModelError: No usable weights, a broken file, a tensor missing or of the wrong shape, or custom code asked for.
    """
    import torch

    config = load_config(repo, subfolder, "config.json")
    if "auto_map" in config:
        raise ModelError(f"{repo.id}: {subfolder or 'config.json'} names custom code (auto_map); it is not run")
    # Old repositories of one unconditional UNet exist with .bin weights only; the restricted unpickler reads tensors.
    old_flat = subfolder == "" and cls.__name__ == "UNet2DModel" and config.get("_class_name") in _OLD_UNETS
    stem = "model" if cls.__module__.startswith("transformers.") else "diffusion_pytorch_model"
    weights = find_weights(
        repo, subfolder, stem, variant=variant, prefer=prefer or preferred(dtype), allow_pickle=allow_pickle or old_flat
    )
    kind = dtype or torch.get_default_dtype()
    with quiet_libraries():
        if weights.pickled:
            LOG.info("%s has no safetensors: %s is read by the restricted unpickler", repo.id, weights.names[0])
            with unpickled(repo, weights, config, stem) as folder:
                return _from_folder(repo, cls, Weights([], None), folder, "", kind, options)
        return _from_folder(repo, cls, weights, repo.root, subfolder, kind, options)


def _from_folder(
    repo: Repo, cls: type[M], weights: Weights, folder: Path, subfolder: str, dtype: torch.dtype, options: Any
) -> M:
    where = f"{repo.id}{f' ({subfolder})' if subfolder else ''}"
    keyword = "dtype" if cls.__module__.startswith("transformers.") else "torch_dtype"
    try:
        module, report = cls.from_pretrained(  # type: ignore[attr-defined]
            str(folder), subfolder=subfolder, variant=weights.variant, use_safetensors=True, local_files_only=True,
            output_loading_info=True, **{keyword: dtype}, **options,
        )  # fmt: skip
    except Exception as error:
        if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__ or "allocate memory" in str(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{where}: the weights cannot be loaded: {reason}", repo.fetch_hint()) from error
    missing = sorted(report["missing_keys"])
    if missing or any(p.is_meta for p in module.parameters()):
        missing = missing or [n for n, p in module.named_parameters() if p.is_meta]
        some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise ModelError(f"{where}: {len(missing)} tensors are missing from the weights: {some}", repo.fetch_hint())
    loaded: M = module.eval()
    return loaded


class quiet_libraries:
    """Context: diffusers' and transformers' own notices and loading bars are off; what matters is checked by us."""

    def __enter__(self) -> None:
        loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
        self._levels = [(logger, logger.level) for logger in loggers]
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        self._bar(False)

    def __exit__(self, *_: object) -> None:
        self._bar(True)
        for logger, level in self._levels:
            logger.setLevel(level)

    def _bar(self, on: bool) -> None:
        if "transformers" in sys.modules:
            from transformers.utils import logging as theirs

            (theirs.enable_progress_bar if on else theirs.disable_progress_bar)()


@dataclass(frozen=True)
class Weights:
    """The weight files of one component.

    Attributes:
        names: The files (one, or the shards), relative to the repository's root.
        variant: `fp16` and the like, or None for the plain weights.
        pickled: True for `.bin`.
    """

    names: list[str]
    variant: str | None
    pickled: bool = False


def preferred(dtype: torch.dtype | None) -> str:
    """Return the variant that comes first for a number type: half the download where half the bits are wanted."""
    return "fp16" if str(dtype) == "torch.float16" else ""


def find_weights(
    repo: Repo, subfolder: str, stem: str, *, variant: str | None = None, prefer: str = "", allow_pickle: bool = False
) -> Weights:
    """Choose the weights of a component and fetch them.

    Args:
        repo: The repository.
        subfolder: The component's folder, or "".
        stem: `diffusion_pytorch_model` (diffusers) or `model` (transformers).
        variant: Only this variant; when left out the plain weights, else whichever variant there is.
        prefer: A variant that comes first where it is there (fp16, where half precision is asked for).
        allow_pickle: Take `.bin` where there are no safetensors.

    Raises:
        ModelError: Nothing usable; the message names what there is instead.
    """
    prefix = f"{subfolder}/" if subfolder else ""
    here = [f.removeprefix(prefix) for f in repo.files() if f.startswith(prefix) and "/" not in f.removeprefix(prefix)]
    found = _variants(here, stem, "safetensors")
    order = sorted(found, key=lambda v: (v != prefer, v != "", v != "fp16", v))
    if variant is not None:
        if variant not in found:
            kinds = ", ".join(v or "plain" for v in order) or "none"
            raise ModelError(
                f"{repo.id}: {prefix or 'the root'} has no variant {variant!r} (there: {kinds})", "Leave `variant` out."
            )
        order = [variant]
    if order:
        return Weights(_fetched(repo, prefix, found[order[0]]), order[0] or None)
    bins = _variants(here, "pytorch_model" if stem == "model" else stem, "bin")
    if not bins:
        raise repo.missing(f"weights {prefix}{stem}.safetensors")
    if not allow_pickle:
        raise ModelError(
            f"{repo.id}: {prefix or 'the root'} has only pickled weights ({_first(bins)}), which are refused",
            "Pass `allow_pickle`: torch's restricted unpickler then reads them; `diffkit convert` converts them.",
        )
    chosen = "" if "" in bins else min(bins)
    return Weights(_fetched(repo, prefix, bins[chosen]), chosen or None, pickled=True)


def _first(found: dict[str, str]) -> str:
    return found["" if "" in found else min(found)]


def _variants(names: list[str], stem: str, extension: str) -> dict[str, str]:
    """Map each variant ("" = plain) to its file, or to its shard index where there is no single file."""
    stem, found = re.escape(stem), {}
    index = rf"{stem}\.{extension}\.index(?:\.(?P<v>[\w-]+))?\.json"
    single = rf"{stem}(?:\.(?P<v>[\w-]+))?\.{extension}"
    for pattern in (index, single):
        for name in names:
            match = re.fullmatch(pattern, name)
            if match and not re.search(r"-\d{5}-of-\d{5}", name):
                found[match["v"] or ""] = name
    return found


def _fetched(repo: Repo, prefix: str, name: str) -> list[str]:
    """Fetch a weight file, or an index and all its shards; return the names of the files with tensors."""
    if not name.endswith(".json"):
        if repo.file(prefix + name) is None:
            raise repo.missing(prefix + name)
        return [prefix + name]
    index = repo.json(prefix + name) or {}
    mapping = index.get("weight_map")
    if not isinstance(mapping, dict) or not all(isinstance(v, str) and Path(v).name == v for v in mapping.values()):
        raise ModelError(f"{repo.id}: {prefix}{name} is no shard index", repo.fetch_hint())
    shards = sorted(set(mapping.values()))
    lost = [shard for shard in shards if repo.file(prefix + shard) is None]
    if lost:
        raise repo.missing(f"shard {prefix}{lost[0]}" + (f" and {len(lost) - 1} more" if len(lost) > 1 else ""))
    return [prefix + shard for shard in shards]


def read_tensors(repo: Repo, weights: Weights) -> dict[str, Tensor]:
    """Return the tensors of weight files by name, of `.bin` files as the restricted unpickler reads them.

    Raises:
        ModelError: A file holds anything but tensors; it is not executed.
    """
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for name in weights.names:
        path = repo.file(name)
        assert path is not None
        if not weights.pickled:
            tensors.update(load_file(path))
            continue
        state = read_pickle(path, f"{repo.id}: {name}", repo.fetch_hint())
        # Tied tensors share memory, which safetensors does not store.
        tensors.update({key: value.detach().clone().contiguous() for key, value in state.items()})
    return tensors


@contextmanager
def unpickled(repo: Repo, weights: Weights, config: dict[str, Any], stem: str) -> Iterator[Path]:
    """Context: a folder with `config.json` and the `.bin` tensors as safetensors, gone afterwards.

    The way over a file lets the library's own `from_pretrained` convert old parameter names; raises as `read_tensors`.
    """
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory(prefix="diffkit-") as folder:
        save_file(read_tensors(repo, weights), Path(folder) / f"{stem}.safetensors", metadata={"format": "pt"})
        (Path(folder) / "config.json").write_text(json.dumps(config))
        yield Path(folder)
