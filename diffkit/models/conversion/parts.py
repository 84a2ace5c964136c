"""The parts that a converted pipeline is put together from: small files as they are, weights as safetensors.

A part knows how much it writes before it does. Weights go from the disk to the disk, in files of 5 GB at most.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffkit.errors import ModelError, UsageError
from diffkit.models.conversion.files import STEMS, has_pickles_only, stem_of
from diffkit.models.conversion.source import SUFFIXES, Options, open_file
from diffkit.models.repo import Repo
from diffkit.models.weights import find_weights, quiet_libraries

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LOG = logging.getLogger("diffkit.models")

SHARD = 5_000_000_000  # bytes

INDEX = "model_index.json"
ROOT = (INDEX, "config.json", "scheduler_config.json", "diffkit.json")
TABLE = "class_embedding.safetensors"  # the classes that a network of `diffkit train` lays over its images
LEGAL = ("LICENSE", "LICENCE", "NOTICE", "README.md")
# Weights, in whatever form, and code are no small files.
_NOT_COPIED = (
    *SUFFIXES, ".msgpack", ".onnx", ".onnx_data", ".pb", ".h5", ".gguf", ".xml", ".pkl", ".npz", ".py",
    ".lock",
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    """One thing that is written.

    Attributes:
        name: Its folder in the pipeline; "" for the root.
        origin: Where it comes from, in words.
        bytes: How much it will be; None where it is not fetched yet.
        write: Writes it into the pipeline's folder.
    """

    name: str
    origin: str
    bytes: int | None
    write: Callable[[Path], None]


@dataclass(frozen=True)
class Plan:
    """A whole conversion, before anything is written.

    Attributes:
        kind: Name of the row that made it.
        parts: What is written, in this order.
        class_name: The pipeline's class, or that of a network alone.
    """

    kind: str
    parts: tuple[Part, ...]
    class_name: str


def number_type(options: Options) -> torch.dtype | None:
    """Return the number type that is asked for, None for that of the source."""
    from diffkit.models.devices import pick_dtype

    return pick_dtype(options.dtype) if options.dtype else None


def stored_type(tensors: Iterable[Tensor]) -> torch.dtype:
    """Return the number type that most of the weights have.

    Raises:
        UsageError: It is none that models are run in.
    """
    import torch

    found: dict[torch.dtype, int] = {}
    for value in tensors:
        if value.is_floating_point():
            found[value.dtype] = found.get(value.dtype, 0) + value.numel()
    most = max(found, key=lambda kind: found[kind], default=torch.float32)
    if most not in (torch.float32, torch.float16, torch.bfloat16):
        name = str(most).removeprefix("torch.")
        raise UsageError(f"`source` has weights of type {name}, in which no model runs", "Say which `dtype` to write.")
    return most


def size_of(tensors: Iterable[Tensor], dtype: torch.dtype | None) -> int:
    """Return the bytes of tensors in a number type."""
    return sum(v.numel() * (dtype if dtype and v.is_floating_point() else v.dtype).itemsize for v in tensors)


def save_state(folder: Path, stem: str, state: Mapping[str, Tensor], dtype: torch.dtype | None) -> None:
    """Write tensors as `STEM.safetensors`, or in several files with their index where they are large."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    groups = list(_groups(state, dtype))
    places: dict[str, str] = {}
    for number, names in enumerate(groups, start=1):
        name = f"{stem}.safetensors" if len(groups) == 1 else f"{stem}-{number:05d}-of-{len(groups):05d}.safetensors"
        save_file(_own({key: state[key] for key in names}, dtype), folder / name, metadata={"format": "pt"})
        places.update(dict.fromkeys(names, name))
    if len(groups) > 1:
        index = {"metadata": {"total_size": size_of(state.values(), dtype)}, "weight_map": places}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _groups(state: Mapping[str, Tensor], dtype: torch.dtype | None) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, value in state.items():
        more = size_of([value], dtype)
        if names and size + more > SHARD:
            yield names
            names, size = [], 0
        names.append(name)
        size += more
    yield names


def _own(state: dict[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Give every tensor memory of its own: safetensors stores none that is shared (tied weights, views of a file)."""
    made = {}
    for name, value in state.items():
        kept = value.detach()
        cast = kept.to(dtype) if dtype is not None and kept.is_floating_point() else kept
        made[name] = cast.clone().contiguous() if cast is kept else cast.contiguous()
    return made


def save_module(folder: Path, module: Any) -> None:
    """Write one of diffusers' or transformers' modules, configuration and all.

    Raises:
        ModelError: A tensor was missing in what it was made of.
    """
    lost = [name for name, value in module.named_parameters() if value.is_meta]
    if lost:
        raise ModelError(
            f"{len(lost)} tensors of the {type(module).__name__} are missing in the source: {', '.join(lost[:3])}",
            "Fetch it again, or give the `config` that fits it.",
        )
    with quiet_libraries():
        module.save_pretrained(folder, max_shard_size="5GB")


def small_files(repo: Repo, parts: Iterable[str], index: Mapping[str, Any] | None = None) -> Part:
    """Return the configurations, tokenizers and licences of a pipeline, which are copied.

    Args:
        repo: The pipeline.
        parts: Its components' folders; what lies at its root comes along.
        index: What model_index.json says in place of the pipeline's own.
    """
    wanted, names = set(parts), []
    for name in repo.files():
        folder, _, file = name.rpartition("/")
        ours = folder in wanted if folder else file in ROOT or file.startswith(LEGAL)
        weights = file.endswith(_NOT_COPIED) or any(file.startswith(stem) and ".index." in file for stem in STEMS)
        if ours and (file == TABLE or not weights) and not file.startswith("."):
            names.append(name)

    def write(target: Path) -> None:
        for name in names:
            path = repo.file(name)
            if path is not None:
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target / name)
        if index is not None:
            write_index(target, index)

    paths = [repo.root / name for name in names]
    size = sum(path.stat().st_size for path in paths) if all(path.is_file() for path in paths) else None
    return Part("", repo.id, size, write)


def write_index(target: Path, index: Mapping[str, Any]) -> None:
    """Write the model_index.json of a pipeline."""
    (target / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def weights_of(repo: Repo, folder: str, options: Options) -> Part | None:
    """Return a component's weights, which are written as plain safetensors; None for a component without any.

    Raises:
        ModelError: They are pickled and that is not allowed, or they are broken.
    """
    stem, dtype = stem_of(repo, folder), number_type(options)
    if not stem:
        return None

    def read() -> dict[str, Tensor]:
        found = find_weights(repo, folder, stem, prefer=preferred, allow_pickle=options.allow_pickle)
        state: dict[str, Tensor] = {}
        for name in found.names:
            path = repo.file(name)
            assert path is not None
            state.update(open_file(path, options.allow_pickle).state)
        return state

    preferred = "fp16" if options.dtype == "fp16" else ""
    if not options.allow_pickle and has_pickles_only(repo, folder):
        find_weights(repo, folder, stem)  # says what is refused, and how it is allowed
    size = None if repo.hub else size_of(read().values(), dtype)
    return Part(folder, repo.id, size, lambda target: save_state(target / folder, stem, read(), dtype))


def components(repo: Repo) -> dict[str, tuple[str | None, str | None]]:
    """Return library and class of every component that model_index.json names; ("", ...) is none."""
    index = repo.json(INDEX) or {}
    return {name: (e[0], e[1]) for name, e in index.items() if isinstance(e, list) and len(e) == 2}


def weights_type(folder: Path) -> str:
    """Return the number type of the weights in a folder that was written here: fp32, fp16, bf16."""
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            found = [file.get_slice(name).get_dtype() for name in file.keys()]  # noqa: SIM118
        if found:
            kind = max(set(found), key=found.count)
            return {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}.get(kind, kind)
    return ""
