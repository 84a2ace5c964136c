"""PixNerd: text to image by a flow in pixels, without a VAE; prompts by a language model.

Its defaults are those of the course CS180: Euler's method, 50 steps, no shift, guidance 8 (the course's w is one less).
The authors draw with Adams' second-order method (`engine/adams.py`), 25 steps, a shift of 3 and guidance 4.
`diffkit convert` writes the published checkpoint as a folder; see `pixnerd_checkpoint.py`.
Source: Wang et al., arXiv:2507.23268.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from diffkit.models.configuration import (
    check_multiple,
    field_of,
    load_flow,
    read_network,
    read_record,
    read_size,
    whole_number,
    wrong,
)
from diffkit.models.options import LoadOptions
from diffkit.models.pixels import PixelCodec
from diffkit.models.pixnerd_network import PixNerdTransformer2DModel as PixNerdTransformer2DModel
from diffkit.models.pixnerd_network import velocity
from diffkit.models.repo import Repo
from diffkit.models.text_encodings import LoadedPart, TextEncoding, TextPart
from diffkit.models.text_model import TextModel
from diffkit.types import Cond, ModelInfo, Network

GUIDANCE, STEPS = 8.0, 50  # as the course draws with it, by Euler's method
# Where the text encoder comes from: a folder of the model's, or this repository unless model_index.json names another.
ENCODER_FIELD, ENCODER = "text_encoder_id", "Qwen/Qwen3-1.7B"
FIELDS = (
    "in_channels", "patch_size", "num_groups", "hidden_size", "txt_embed_dim", "txt_max_length", "num_text_blocks",
    "decoder_hidden_size", "num_encoder_blocks", "num_decoder_blocks",
)  # fmt: skip


class Qwen3(TextEncoding):
    """The last hidden states of Qwen3, padded to the network's number of tokens and cut or padded to its width."""

    name = "qwen3"
    half = torch.bfloat16

    def parts(self, repo: Repo) -> tuple[TextPart, ...]:
        """Return the encoder and where it is."""
        named = (repo.json("model_index.json") or {}).get(ENCODER_FIELD, ENCODER)
        if not isinstance(named, str):
            raise wrong(f"{repo.id}: model_index.json", ENCODER_FIELD, named, "the id of a repository on the Hub")
        return (TextPart(tokenizer_class="Qwen2Tokenizer", encoder_class="Qwen3Model", elsewhere=named),)

    def label(self, repo: Repo, eight_bit: bool = False) -> str:
        """Name the encoder, its number of tokens and its width."""
        return "qwen3-{}x{}".format(*_text_shape(repo))

    def embed(self, repo: Repo, parts: Mapping[str, LoadedPart], prompt: str) -> dict[str, Tensor]:
        """Return `encoder_hidden_states` (tokens, width).

        The padding comes after the prompt, whose tokens do not see it; the network does.
        """
        length, width = _text_shape(repo)
        # The empty prompt is padding alone, of which no token may see any: fused attention (sdpa) gives zeros there,
        # the eager kind a mean of all. The library's default, the former, is also what the authors' code runs with.
        part = parts["text_encoder"]
        part.tokenizer.padding_side = "right"
        states = part(prompt, length, masked=True)[0][0]
        return {"encoder_hidden_states": F.pad(states, (0, width - states.shape[-1]))}  # a negative padding cuts


TEXT_ENCODER = Qwen3()


class PixNerd(TextModel):
    """A text-conditional PixNerd (the `Model` protocol); arguments as of `TextModel`."""

    encoding = TEXT_ENCODER

    def __init__(self, repo: Repo, info: ModelInfo, options: LoadOptions) -> None:
        super().__init__(repo, info, options)
        self.codec = PixelCodec(info.size, info.size)

    def at(self, height: int, width: int) -> Self:
        """Return this model for pictures of another size, sharing all weights: its patches grow or shrink with them.

        Raises:
            UsageError: A side that cannot be cut into as many patches.
        """
        other = self._resized(height, width)
        other.codec = PixelCodec(other.info.size, other.info.size)
        return other

    def predict(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Call the network; see `velocity`."""
        return velocity(self.network, x, t, cond.tensors["encoder_hidden_states"], self.info.timesteps)


def info(repo: Repo) -> ModelInfo:
    """Say what a PixNerd is, from its configuration alone.

    Raises:
        ModelError: A field is missing or contradicts another one; the message names it.
    """
    network = _network(repo)
    where, config = field_of(repo, network), network.config
    for key in FIELDS:
        whole_number(config, key, where)
    side = check_pixels(config, where)
    record, _ = read_record(repo)
    return ModelInfo(
        id=repo.id, revision=repo.revision, family="pixnerd", pipeline=repo.pipeline, channels=3, size=(side, side),
        sample=(3, side, side), network=network, scheduler=load_flow(repo), conditioning="text",
        text_encoder=TEXT_ENCODER.name, null=True, guidance=GUIDANCE, illusion_guidance=GUIDANCE, steps=STEPS,
        size_multiple=side // config["patch_size"], record=record,
    )  # fmt: skip


def check_pixels(config: Mapping[str, object], where: str) -> int:
    """Return the side of the pictures that a network was trained on.

    Raises:
        ModelError: Channels, heads or a size that no PixNerd has.
    """
    if config["in_channels"] != 3:
        raise wrong(where, "in_channels", config["in_channels"], "3 (RGB)")
    width, heads = (whole_number(config, key, where) for key in ("hidden_size", "num_groups"))
    if width % heads or width // heads % 4:
        raise wrong(where, "num_groups", heads, f"heads whose width is a multiple of 4, of hidden_size {width}")
    size = read_size(config, where)
    if size[0] != size[1] or not isinstance(config["sample_size"], int):
        raise wrong(where, "sample_size", config["sample_size"], "one number: it was trained on squares")
    check_multiple(size, whole_number(config, "patch_size", where), where, "it cuts them into patches of that size")
    return size[0]


def _network(repo: Repo) -> Network:
    return read_network(repo, "transformer", "PixNerdTransformer2DModel")


def _text_shape(repo: Repo) -> tuple[int, int]:
    """Return the number of tokens and the width of the text that a network takes."""
    network = _network(repo)
    where = field_of(repo, network)
    return whole_number(network.config, "txt_max_length", where), whole_number(network.config, "txt_embed_dim", where)


load = PixNerd  # (repo, info, options): its parts are loaded when they are first used
