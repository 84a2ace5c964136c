"""What is to be converted: a file of tensors, opened without copying it into memory, and what a wrong one is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from diffkit.errors import ModelError
from diffkit.models.pickles import unpickle

if TYPE_CHECKING:
    from torch import Tensor

LOG = logging.getLogger("diffkit.models")

PICKLED = (".ckpt", ".bin", ".pt", ".pth")
SUFFIXES = (".safetensors", *PICKLED)


@dataclass(frozen=True)
class Options:
    """How a model is converted.

    Attributes:
        config: Folder or Hub id of the pipeline that lends what the source has not; "" for none.
        revision: Of the source, where it is on the Hub.
        size: Side of its pictures in pixels, of a PixNerd, whose file does not tell; 0 for its usual one.
        ema: Take the average of the weights where there is one.
        dtype: Number type of what is written: fp32, fp16 or bf16; "" for that of the source.
        allow_pickle: Also read pickled weights, by torch's restricted unpickler.
    """

    config: str = ""
    revision: str | None = None
    size: int = 0
    ema: bool = True
    dtype: str = ""
    allow_pickle: bool = False


@dataclass(frozen=True)
class File:
    """A file of tensors.

    Attributes:
        path: Where it is.
        state: Its tensors by name; they lie on the disk until they are used.
    """

    path: Path
    state: Mapping[str, Tensor]

    def holds(self, *prefixes: str) -> bool:
        """Say whether some tensor's name begins in one of these ways."""
        return any(name.startswith(prefixes) for name in self.state)


def open_file(path: Path, allow_pickle: bool) -> File:
    """Open a safetensors file, or one of torch's own where that is allowed.

    Raises:
        ModelError: It is neither, is pickled and that is not allowed, holds more than tensors, or is broken.
    """
    if path.suffix == ".safetensors":
        return File(path, _safetensors(path))
    if path.suffix not in PICKLED:
        raise ModelError(f"{path} is no file of weights: {', '.join(SUFFIXES)}", "Give such a file, or a folder.")
    if not allow_pickle:
        raise ModelError(
            f"{path} is pickled, which is refused", "Pass `allow_pickle`: torch's restricted unpickler then reads it."
        )
    _say_pickled(path)
    hint = "Fetch it again. If it is whole: have its authors write its weights alone, as safetensors."
    found = unpickle(path, str(path), hint, mapped=True)
    while isinstance(found, dict) and isinstance(found.get("state_dict"), dict):  # as Lightning wraps it
        found = found["state_dict"]
    return File(path, _tensors(path, found))


@cache
def _say_pickled(path: Path) -> None:
    LOG.info("%s is pickled: it is read by the restricted unpickler, and nothing in it is run", path)


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is no whole safetensors file ({error})", "Fetch it again.") from None


def _tensors(path: Path, found: object) -> dict[str, Tensor]:
    import torch

    if isinstance(found, dict) and {"state", "param_groups"} <= set(found):
        raise ModelError(f"{path} is the state of an optimizer, no model", "Give the folder or file of the weights.")
    state = {str(k): v for k, v in found.items() if isinstance(v, torch.Tensor)} if isinstance(found, dict) else {}
    if not state:
        raise ModelError(f"{path} holds no tensors by name", "Give a file of a model's weights.")
    return state


def _any_of(*parts: str) -> Callable[[Iterable[str]], bool]:
    return lambda names: any(part in name for name in names for part in parts)


def _begins(*prefixes: str) -> Callable[[Iterable[str]], bool]:
    return lambda names: all(name.startswith(prefixes) for name in names)


_PIPELINE = "Give the folder of the whole pipeline, with its model_index.json."
_WITH_CONFIG = "Give its folder; its config.json has to lie beside it."
# What a file is that no row can convert: the first that fits.
_WRONG: tuple[tuple[str, str, Callable[[Iterable[str]], bool]], ...] = (
    (
        "a LoRA: changes to a model, no model", "Convert the model that it belongs to.",
        _any_of("lora_", ".lora.", "lora.down", "hada_w1", "lokr_w"),
    ),
    ("a ControlNet, no model that draws alone", _PIPELINE, _any_of("control_model.", "controlnet_cond_embedding")),
    (
        "a VAE alone", _PIPELINE,
        _begins("first_stage_model.", "encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "loss."),
    ),
    ("a text encoder alone", _PIPELINE, _begins("text_model.", "shared.", "encoder.block.", "model.layers.")),
    ("a network of diffusers' own names", _WITH_CONFIG, _any_of("down_blocks.0.", "transformer_blocks.0.")),
    ("an embedding of a word (textual inversion)", "It is no model.", lambda names: len(list(names)) < 4),
)  # fmt: skip


def unknown(file: File, known: str) -> ModelError:
    """Make the error for a file that no row takes: what it seems to be, and what there is."""
    for what, hint, fits in _WRONG:
        if fits(file.state):
            return ModelError(f"{file.path} is {what}", hint)
    some = ", ".join(sorted(file.state)[:3])
    return ModelError(f"{file.path} is of no kind that can be converted (it begins: {some})", f"Known: {known}.")
