"""How families turn prompts into tensors: tokenizers and text encoders, and what is made of what these give.

A family has one `TextEncoding`: CLIP and T5, which several have, are here, the others in their family's file. Loading
and the cache are in `text.py`. Nothing of transformers is imported here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffkit.models.repo import Repo
from diffkit.models.weights import quiet_libraries

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LOG = logging.getLogger("diffkit.models")

MAX_TOKENS = 77  # CLIP's context; T5 takes more, but DeepFloyd IF was trained with 77


@dataclass(frozen=True)
class TextPart:
    """A text encoder and the tokenizer whose tokens it reads.

    Attributes:
        tokenizer: The tokenizer's folder in the repository.
        encoder: The encoder's.
        tokenizer_class: Its class in transformers.
        encoder_class: Likewise; with its module where the library shows it nowhere else.
        vocabularies: Sets of files, one of which the tokenizer cannot do without: lacking all, transformers makes up an
            empty vocabulary and says nothing.
        eight_bit: Whether it is so large that the lowest memory loads it in 8 bits (CUDA and bitsandbytes).
        elsewhere: The Hub repository that is asked where the model's own has no such folder, with both at its root.
    """

    tokenizer: str = "tokenizer"
    encoder: str = "text_encoder"
    tokenizer_class: str = "CLIPTokenizer"
    encoder_class: str = "CLIPTextModel"
    vocabularies: tuple[tuple[str, ...], ...] = (("tokenizer.json",), ("vocab.json", "merges.txt"))
    eight_bit: bool = False
    elsewhere: str = ""


@dataclass(frozen=True)
class LoadedPart:
    """A part whose weights are there.

    Attributes:
        tokenizer: The tokenizer.
        encoder: The encoder, on its device.
        device: Where it runs.
    """

    tokenizer: PreTrainedTokenizerBase
    encoder: PreTrainedModel
    device: torch.device

    def tokens(self, text: str, length: int, quiet: bool = False) -> Any:
        """Return the tokens of a text, padded or cut to a length, as tensors (1, length); what is cut off is said.

        Not so with `quiet`: where another encoder reads on, or has said it.
        """
        with quiet_libraries():
            tokens = self.tokenizer(
                text, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
            )  # fmt: skip
            whole = self.tokenizer(text).input_ids
        if len(whole) > length and not quiet:
            last = int(whole[-1] == self.tokenizer.eos_token_id)  # a mark of the end stays where there is one
            cut = self.tokenizer.decode(whole[length - last : len(whole) - last])
            LOG.warning("the prompt is longer than %d tokens; this part is not seen: %s", length, cut)
        return tokens

    def __call__(
        self, text: str, length: int, *, masked: bool = False, hidden: bool = False, quiet: bool = False
    ) -> Any:
        """Run the encoder on a text.

        Args:
            text: The text.
            length: Tokens, padding included.
            masked: Whether the padding is hidden from the encoder's attention.
            hidden: Whether its layers' outputs are wanted, too.
            quiet: See `tokens`.

        Returns:
            What the encoder's class gives, with a batch axis of 1.
        """
        tokens = self.tokens(text, length, quiet)
        options: dict[str, Any] = {"output_hidden_states": True} if hidden else {}
        mask = tokens.attention_mask.to(self.device) if masked else None
        return self.encoder(tokens.input_ids.to(self.device), attention_mask=mask, **options)


class TextEncoding:
    """How a family's prompts become tensors.

    Attributes:
        name: What it is called in `ModelInfo.text_encoder` and in the cache's keys; with the number of tokens.
        half: The half precision that its encoders and the family's network bear: bf16 where fp16 overflows.
    """

    name = ""
    half = torch.float16

    def parts(self, repo: Repo) -> tuple[TextPart, ...]:
        """Return the encoders that a repository has."""
        return (TextPart(),)

    def label(self, repo: Repo, eight_bit: bool = False) -> str:
        """Return what embeddings depend on beside the encoders' weights, the prompt and the type: a part of the key."""
        return self.name + "-8bit" * eight_bit

    def clean(self, prompt: str) -> str:
        """Return the prompt as the tokenizer is given it."""
        return prompt

    def embed(self, repo: Repo, parts: Mapping[str, LoadedPart], prompt: str) -> dict[str, Tensor]:
        """Return a prompt's tensors by their names in a condition, without a batch axis.

        Args:
            repo: The model.
            parts: Those of `parts`, loaded, by their encoder's folder.
            prompt: The prompt, not cleaned yet.
        """
        raise NotImplementedError


class Clip(TextEncoding):
    """Stable Diffusion's: the last layer of one CLIP, 77 tokens."""

    name = "clip"

    def label(self, repo: Repo, eight_bit: bool = False) -> str:
        """Name the encoder and its number of tokens."""
        return f"clip-{MAX_TOKENS}"

    def embed(self, repo: Repo, parts: Mapping[str, LoadedPart], prompt: str) -> dict[str, Tensor]:
        """Return `encoder_hidden_states` (77, D)."""
        part = parts["text_encoder"]
        # Stable Diffusion attends to the padding unless its encoder says otherwise.
        masked = bool(getattr(part.encoder.config, "use_attention_mask", False))
        return {"encoder_hidden_states": part(prompt, MAX_TOKENS, masked=masked)[0][0]}


class T5(TextEncoding):
    """DeepFloyd IF's: T5, 77 tokens, captions cleaned."""

    name = "t5"

    def parts(self, repo: Repo) -> tuple[TextPart, ...]:
        """Return the one T5."""
        return (
            TextPart(
                tokenizer_class="T5Tokenizer", encoder_class="T5EncoderModel", eight_bit=True,
                vocabularies=(("tokenizer.json",), ("spiece.model",)),
            ),
        )  # fmt: skip

    def label(self, repo: Repo, eight_bit: bool = False) -> str:
        """Name the encoder, its number of tokens and what is done to captions."""
        return f"t5-{MAX_TOKENS}" + "-8bit" * eight_bit + ("-cleaned" if can_clean() else "-lower")

    def clean(self, prompt: str) -> str:
        """See `clean_prompt`."""
        return clean_prompt(prompt)

    def embed(self, repo: Repo, parts: Mapping[str, LoadedPart], prompt: str) -> dict[str, Tensor]:
        """Return `encoder_hidden_states` (77, D); IF never attends to the padding."""
        out = parts["text_encoder"](self.clean(prompt), MAX_TOKENS, masked=True)
        return {"encoder_hidden_states": out[0][0]}


CLIP, T5_77 = Clip(), T5()


def can_clean() -> bool:
    """Say whether captions are cleaned: diffusers does so where these two are installed, and so do we."""
    return installed("bs4") and installed("ftfy")


def clean_prompt(prompt: str) -> str:
    """Prepare a prompt as `IFPipeline.__call__` does by default: cleaned where possible, else lower-cased, stripped."""
    if not can_clean():
        return prompt.lower().strip()
    from diffusers.pipelines.deepfloyd_if.pipeline_if import IFPipeline

    # The rules are diffusers' own, or the embeddings would differ from what the model was trained on.
    pipeline = IFPipeline.__new__(IFPipeline)
    return str(pipeline._text_preprocessing(prompt, clean_caption=True)[0])


def encoder_class(name: str) -> Any:
    """Return a class of transformers, given as `TextPart.encoder_class`; None where this version has none."""
    module, _, last = name.rpartition(".")
    try:
        return getattr(import_module(f"transformers.{module}" if module else "transformers"), last, None)
    except ModuleNotFoundError:
        return None


def installed(module: str) -> bool:
    """Say whether a module can be imported."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
