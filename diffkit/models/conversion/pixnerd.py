"""PixNerd's published checkpoints: a Lightning training's whole state, of which the averaged network is taken.

The configuration is read from the shapes; what no shape tells is the side of the pictures, and where the text encoder
is. Source: the checkpoints of MCG-NJU/PixNerd.
"""

from __future__ import annotations

from pathlib import Path

from diffkit.errors import ModelError, UsageError
from diffkit.models.conversion.parts import Part, Plan, number_type, size_of, stored_type
from diffkit.models.conversion.source import File, Options
from diffkit.models.hub import is_hub_id, no_folder
from diffkit.models.weights import quiet_libraries


def matches(file: File) -> bool:
    """Say whether a file holds a PixNerd, with or without the prefixes of a training."""
    from diffkit.models.pixnerd_checkpoint import is_pixnerd

    return is_pixnerd(file.state)


def plan(file: File, options: Options) -> Plan:
    """Plan the pipeline of a checkpoint; a folder or Hub id named as `config` is where it finds its text encoder.

    Raises:
        UsageError: A text encoder for a network that takes classes.
        ModelError: There is no such text encoder; a tensor is missing, or does not belong there.
    """
    from diffkit.models.pixnerd import ENCODER
    from diffkit.models.pixnerd_checkpoint import from_checkpoint, write_pipeline
    from diffkit.models.pixnerd_network import PixNerdTransformer2DModel

    network = from_checkpoint(file.state, sample_size=options.size or None, average=options.ema)
    text = isinstance(network, PixNerdTransformer2DModel)
    if options.config and not text:
        raise UsageError(f"{file.path} takes classes, no prompts: it has no text encoder", "Leave `config` out.")
    place = _encoder(options.config)
    tensors = list(network.state_dict().values())
    dtype = number_type(options) or stored_type(tensors)

    def write(target: Path) -> None:
        with quiet_libraries():  # diffusers warns of every change of type
            write_pipeline(target, network.to(dtype), text_encoder_id=place or ENCODER)

    part = Part("transformer", str(file.path), size_of(tensors, dtype), write)
    return Plan("PixNerd", (part,), "PixNerdPipeline" if text else "PixNerdClassPipeline")


def _encoder(named: str) -> str:
    """Return where a text encoder is: the whole path of a folder, or a Hub id; "" where none is named."""
    folder = Path(named).expanduser()
    if not named or (not folder.is_dir() and is_hub_id(named)):
        return named
    if not folder.is_dir():
        raise no_folder(named)
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"`config` {named} holds no text encoder: it has no config.json",
            "Give a folder with Qwen3 and its tokenizer in it, or their Hub id.",
        )
    return str(folder.resolve())
