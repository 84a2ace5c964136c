"""PixNerd's published checkpoints as diffusers folders: what is in a state dict, and the folder that is made of it.

A checkpoint holds a training's whole state by names with dots; the averaged network is under `ema_denoiser.`. It says
nothing of its configuration, which is read from the shapes. Source: the checkpoints of MCG-NJU/PixNerd.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import diffusers
import torch
from torch import Tensor

from diffkit.errors import ModelError
from diffkit.models.kinds import module_of
from diffkit.models.pixnerd import ENCODER, ENCODER_FIELD
from diffkit.models.pixnerd_blocks import FREQUENCIES
from diffkit.models.pixnerd_network import PixNerdClassTransformer2DModel, PixNerdTransformer2DModel
from diffkit.models.weights import quiet_libraries

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_utils import SchedulerMixin
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PixNerdNetwork: TypeAlias = PixNerdTransformer2DModel | PixNerdClassTransformer2DModel

_PREFIXES = ("ema_denoiser.", "denoiser.")  # the average first
_CLASSES = "y_embedder.embedding_table.weight"


def is_pixnerd(state: Mapping[str, Tensor]) -> bool:
    """Say whether a state dict seems to be one of PixNerd's, by names that no other family has together."""
    part = network_part(state)
    return all(name in part for name in ("x_embedder.embedder.0.weight", "s_embedder.proj.weight"))


def network_part(state: Mapping[str, Tensor], *, average: bool = True) -> dict[str, Tensor]:
    """Return the tensors of the network by its own names.

    Args:
        state: Tensors by name, the network's own or with a prefix.
        average: Take the averaged weights where there are some, else the last ones of the training.
    """
    for prefix in _PREFIXES if average else reversed(_PREFIXES):
        found = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if found:
            return found
    return dict(state)


def from_checkpoint(
    state: Mapping[str, Tensor], *, sample_size: int | None = None, average: bool = True
) -> PixNerdNetwork:
    """Make the network of a checkpoint's state dict, in the type of its tensors, which are taken over and not copied.

    Args:
        state: Tensors by name, the network's own or with a prefix; see `network_part`.
        sample_size: The side of the pictures that it was trained on, which no tensor tells; the class's own default
            (512 with text, 256 with classes) when left out.
        average: See `network_part`.

    Raises:
        ModelError: It is no PixNerd's; the message names what is missing or does not belong there.
    """
    part = network_part(state, average=average)
    cls = PixNerdClassTransformer2DModel if _CLASSES in part else PixNerdTransformer2DModel
    config = _class_config(part) if _CLASSES in part else _text_config(part)
    if sample_size is not None:
        config["sample_size"] = sample_size
    try:
        with torch.device("meta"):
            network: PixNerdNetwork = cls(**config)
    except ValueError as error:
        raise ModelError(f"the checkpoint is no PixNerd: {error}", _HINT) from None
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    _refuse("lacks", [name for name in wanted if name not in part])
    _refuse("has, and no PixNerd does,", [name for name in part if name not in wanted])
    _refuse("has in another shape", [name for name, shape in wanted.items() if tuple(part[name].shape) != shape])
    network.load_state_dict(part, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def write_pipeline(
    folder: Path,
    network: PixNerdNetwork,
    *,
    scheduler: SchedulerMixin | None = None,
    text_encoder: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    text_encoder_id: str = ENCODER,
    id2label: Mapping[int, str] | None = None,
) -> None:
    """Write a pipeline that diffkit loads: model_index.json, transformer/ in safetensors, scheduler/.

    Args:
        folder: Made if it does not exist.
        network: Of the text- or class-conditional kind.
        scheduler: A flow's; FlowMatchEulerDiscreteScheduler without a shift when left out.
        text_encoder: Kept in the folder where it is given, with its tokenizer.
        tokenizer: Likewise.
        text_encoder_id: The Hub repository that is asked for the two where the folder has none.
        id2label: Names of classes by number, several with commas between them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scheduler = scheduler or diffusers.FlowMatchEulerDiscreteScheduler()
    kind = type(network).__name__
    parts: dict[str, Any] = {"transformer": network, "scheduler": scheduler}
    index: dict[str, Any] = {
        "_class_name": "PixNerdPipeline" if isinstance(network, PixNerdTransformer2DModel) else "PixNerdClassPipeline",
        "_diffusers_version": diffusers.__version__,
        "transformer": [module_of(kind), kind],
        "scheduler": ["diffusers", type(scheduler).__name__],
    }
    if isinstance(network, PixNerdTransformer2DModel):
        index[ENCODER_FIELD] = text_encoder_id
        for name, part in (("text_encoder", text_encoder), ("tokenizer", tokenizer)):
            if part is not None:
                parts[name], index[name] = part, ["transformers", type(part).__name__]
    elif id2label is not None:
        index["id2label"] = {str(number): name for number, name in id2label.items()}
    with quiet_libraries():
        for name, part in parts.items():
            part.save_pretrained(folder / name)
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


_HINT = "Give a checkpoint of MCG-NJU/PixNerd, or the state dict of its network."


def _refuse(what: str, names: list[str]) -> None:
    if names:
        some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise ModelError(f"the checkpoint is no PixNerd: it {what} {some}", _HINT)


def _text_config(part: Mapping[str, Tensor]) -> dict[str, Any]:
    channels, pixel, width, side = _sides(part)
    _, length, _ = _shape(part, "y_pos_embedding", 3)
    return {
        "in_channels": channels, "patch_size": side, "num_groups": width // _head(part), "hidden_size": width,
        "txt_embed_dim": _shape(part, "y_embedder.proj.weight", 2)[1], "txt_max_length": length,
        "num_text_blocks": _count(part, "text_refine_blocks", "norm1.weight"), "decoder_hidden_size": pixel,
        "num_encoder_blocks": _count(part, "blocks", "norm1.weight"),
        "num_decoder_blocks": _count(part, "blocks", "norm.weight"),
    }  # fmt: skip


def _class_config(part: Mapping[str, Tensor]) -> dict[str, Any]:
    channels, pixel, width, side = _sides(part)
    encoder, fields = (_count(part, "blocks", end) for end in ("norm1.weight", "norm.weight"))
    made, _ = _shape(part, f"blocks.{encoder}.param_generator1.0.weight", 2)
    return {
        "in_channels": channels, "patch_size": side, "num_groups": width // _head(part), "hidden_size": width,
        "hidden_size_x": pixel, "nerf_mlpratio": made // (2 * pixel**2), "num_blocks": encoder + fields,
        "num_cond_blocks": encoder, "num_classes": _shape(part, _CLASSES, 2)[0] - 1,
    }  # fmt: skip


def _sides(part: Mapping[str, Tensor]) -> tuple[int, int, int, int]:
    """Return the channels of the picture, the widths of a pixel and of a token, and the side of a patch."""
    width, taken = _shape(part, "s_embedder.proj.weight", 2)
    pixel, seen = _shape(part, "x_embedder.embedder.0.weight", 2)
    channels = max(1, seen - FREQUENCIES**2)
    return channels, pixel, width, max(1, math.isqrt(taken // channels))


def _head(part: Mapping[str, Tensor]) -> int:
    return max(1, _shape(part, "blocks.0.attn.q_norm.weight", 1)[0])


def _shape(part: Mapping[str, Tensor], name: str, axes: int) -> tuple[int, ...]:
    if name not in part:
        _refuse("lacks", [name])
    if part[name].ndim != axes:
        _refuse("has in another shape", [name])
    return tuple(part[name].shape)


def _count(part: Mapping[str, Tensor], blocks: str, end: str) -> int:
    """Return how many blocks of a list have a tensor of that name."""
    return sum(name.startswith(f"{blocks}.") and name.split(".", 2)[2] == end for name in part if name.count(".") >= 2)
