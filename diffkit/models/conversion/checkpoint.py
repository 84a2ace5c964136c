"""A checkpoint of diffusers' training scripts (`checkpoint-500` with unet/ or unet_ema/ in it): a whole pipeline.

The network is the checkpoint's, the average before the last weights; all the rest comes from the pipeline that
`config` names, else from the folder that the checkpoint lies in. A network that draws without any rest needs neither.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffkit.errors import ModelError
from diffkit.models.conversion.files import STEMS
from diffkit.models.conversion.parts import (
    Part,
    Plan,
    components,
    number_type,
    save_module,
    size_of,
    small_files,
    stored_type,
    weights_of,
    write_index,
)
from diffkit.models.conversion.pipeline import component_folders
from diffkit.models.conversion.source import Options, open_file
from diffkit.models.hub import open_repo
from diffkit.models.kinds import KINDS, network_class
from diffkit.models.repo import Repo
from diffkit.models.weights import find_weights, load_component, load_config

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

LOG = logging.getLogger("diffkit.models")

_NETWORKS = ("unet", "transformer")
_INDEX = "model_index.json"


def is_checkpoint(path: Path) -> bool:
    """Say whether a folder is a checkpoint: networks of a pipeline, and nothing that says of which one."""
    if any((path / name).is_file() for name in (_INDEX, "config.json")):
        return False
    return any((path / f"{name}{end}" / "config.json").is_file() for name in _NETWORKS for end in ("", "_ema"))


def plan(path: Path, options: Options) -> Plan:
    """Plan the pipeline that a checkpoint makes.

    Raises:
        ModelError: The rest of the pipeline is missing, does not fit, or the weights are broken or refused.
    """
    folder = _network_folder(path, options.ema)
    repo = Repo(str(path), None, path)
    config = load_config(repo, folder, "config.json")
    name, kind = folder.removesuffix("_ema"), str(config.get("_class_name", ""))
    network = _network_part(repo, folder, name, kind, options)
    base = _base(path, options)
    if base is not None:
        _check_fit(base, name, kind, config, folder)
        others = [f for f in component_folders(base) if f not in ("", name)]
        rest = [part for f in others if (part := weights_of(base, f, options)) is not None]
        return Plan("checkpoint", (small_files(base, others), *rest, network), base.pipeline)
    if kind not in KINDS:
        raise ModelError(
            f"{path} holds a {kind or 'network of no named class'} and no pipeline that it belongs to",
            "Give the folder or Hub id of that pipeline, which it was trained from, as `config`.",
        )
    scheduler = _scheduler(path)
    index = {
        "_class_name": "DDPMPipeline",
        "scheduler": ["diffusers", type(scheduler).__name__],
        "unet": [KINDS[kind].module, kind],
    }

    def write(target: Path) -> None:
        write_index(target, index)
        scheduler.save_pretrained(target / "scheduler")

    return Plan("checkpoint", (Part("", str(path), len(str(index)), write), network), "DDPMPipeline")


def _network_folder(path: Path, ema: bool) -> str:
    found = [
        f"{name}{end}"
        for name in _NETWORKS
        for end in (("_ema", "") if ema else ("",))
        if (path / f"{name}{end}" / "config.json").is_file()
    ]
    if not found:
        raise ModelError(f"{path} holds averaged weights only", "Leave `no_ema` out.")
    return found[0]


def _network_part(repo: Repo, folder: str, name: str, kind: str, options: Options) -> Part:
    import diffusers

    if kind not in KINDS and not hasattr(diffusers, kind):
        raise ModelError(f"{repo.id}: {folder}/config.json names the unknown class {kind!r}", "Check the folder.")
    weights = find_weights(repo, folder, STEMS[0], allow_pickle=options.allow_pickle)
    state = [v for w in weights.names for v in open_file(repo.root / w, options.allow_pickle).state.values()]
    dtype = number_type(options) or stored_type(state)

    def write(target: Path) -> None:
        # Loaded as diffusers does, so that every tensor is accounted for and bears the name of today.
        module = load_component(repo, network_class(kind), folder, dtype=dtype, allow_pickle=options.allow_pickle)
        save_module(target / name, module)

    return Part(name, f"{repo.id}/{folder}", size_of(state, dtype), write)


def _base(path: Path, options: Options) -> Repo | None:
    """Open the pipeline that lends the rest."""
    if options.config:
        base = open_repo(options.config)
        if not base.has(_INDEX):
            raise ModelError(f"`config` {options.config} is no whole pipeline: it has no {_INDEX}", "Give one.")
        return base
    parent = path.absolute().parent
    return open_repo(parent) if (parent / _INDEX).is_file() else None


def _check_fit(base: Repo, name: str, kind: str, config: dict[str, Any], folder: str) -> None:
    entry = components(base).get(name)
    theirs = base.json(f"{name}/config.json") or (base.json("config.json") if base.has("config.json") else None) or {}
    if entry is None or entry[1] != kind:
        has = "none" if entry is None else f"a {entry[1]}"
        raise ModelError(
            f"the checkpoint's {folder} is a {kind}; the pipeline {base.id} has {has} there",
            "Give the pipeline that it was trained from as `config`.",
        )
    for key in ("cross_attention_dim", "out_channels"):
        if theirs.get(key) is not None and config.get(key) != theirs[key]:
            raise ModelError(
                f"the checkpoint's {folder} has {key} {config.get(key)}; that of the pipeline {base.id} is"
                f" {theirs[key]}",
                "Give the pipeline that it was trained from as `config`.",
            )


def _scheduler(path: Path) -> SchedulerMixin:
    """Return the scheduler in the checkpoint or beside it; where there is none, the one that training scripts take."""
    from diffkit.models.configuration import load_scheduler

    for place in (path, path.absolute().parent):
        if (place / "scheduler" / "scheduler_config.json").is_file():
            return load_scheduler(Repo(str(place), None, place))
    LOG.info("%s has no scheduler beside it: DDPM's is written, linear, 1000 timesteps, epsilon", path)
    return load_scheduler(Repo(str(path), None, path))
