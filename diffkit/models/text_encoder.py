"""A small text encoder for a model of one's own: a tokenizer made from the captions, a T5 encoder of random weights.

Both are of the classes that DeepFloyd IF has (T5Tokenizer, T5EncoderModel), and prompts are prepared as its pipeline
prepares them, so that a prompt gives at sampling the embedding it gave in training. The network that reads it is in
`text_network.py`, the loading of finished encoders in `text.py`. Source: T5, arXiv:1910.10683.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffkit.models.text_encodings import MAX_TOKENS, clean_prompt

if TYPE_CHECKING:
    from transformers import T5EncoderModel, T5Tokenizer

PAD, EOS, UNK = 0, 1, 2
MAX_WORDS = 32_000
_SPECIAL = ("<pad>", "</s>", "<unk>")


def word_tokenizer(captions: Iterable[str], limit: int = MAX_WORDS) -> T5Tokenizer:
    """Make a tokenizer whose tokens are the words of the captions; what it does not know becomes <unk>.

    Of a word that only begins like one of them ("stars") the rest is <unk>: `vocabulary.unknown_words` finds these.
    A word keeps its own token however short it is, so "the letter a" has one for the letter (the same as the article's:
    the pipelines lower-case prompts). A mark after a word ("heart,") is a token of its own.

    Args:
        captions: All of them, repetitions included: where there are more words than `limit`, the frequent ones stay.
        limit: Most words.

    Returns:
        A `transformers.T5Tokenizer` (a unigram model of whole words) with <pad> 0, </s> 1, <unk> 2.
    """
    from transformers import T5Tokenizer

    counts: Counter[str] = Counter()
    for text, times in Counter(captions).items():
        for piece in pieces(clean_prompt(text)):
            counts[piece] += times
    total = sum(counts.values())
    words = sorted(sorted(counts), key=lambda w: -counts[w])[:limit]
    vocabulary = [(token, 0.0) for token in _SPECIAL]
    vocabulary += [(word, math.log(counts[word] / total)) for word in sorted(words)]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=MAX_TOKENS)


def pieces(text: str) -> list[str]:
    """Cut a text into words and marks; the first piece after a space begins with "▁", as in sentencepiece."""
    found = []
    for word in text.split():
        parts = re.findall(r"\w+|[^\w\s]", word)
        found += ["▁" + part if k == 0 else part for k, part in enumerate(parts)]
    return found


def vocabulary(tokenizer: T5Tokenizer) -> list[str]:
    """Return the words and marks that a tokenizer of `word_tokenizer` knows, sorted, without the special tokens."""
    return sorted({token.removeprefix("▁") for token in tokenizer.get_vocab()} - set(_SPECIAL))


def make_encoder(tokenizer: T5Tokenizer, width: int, layers: int) -> T5EncoderModel:
    """Make a T5 encoder of random weights, without dropout, in evaluation mode.

    Args:
        tokenizer: From `word_tokenizer`.
        width: Of the embeddings, a multiple of 16 (one attention head for each 16).
        layers: Number of layers.
    """
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=len(tokenizer), d_model=width, d_kv=16, num_heads=max(1, width // 16), d_ff=2 * width,
        num_layers=layers, dropout_rate=0.0, pad_token_id=PAD, eos_token_id=EOS, decoder_start_token_id=PAD,
    )  # fmt: skip
    return T5EncoderModel(config).eval()


def tokenize(tokenizer: T5Tokenizer, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Turn captions into token numbers and the mask of what is no padding, both (N, 77), as IF's pipeline does."""
    tokens = tokenizer(
        [clean_prompt(caption) for caption in captions],
        padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt",
    )  # fmt: skip
    return tokens.input_ids, tokens.attention_mask


@torch.no_grad()
def embeddings(encoder: T5EncoderModel, ids: Tensor, mask: Tensor) -> Tensor:
    """Embed tokens (N, 77) to (N, 77, D) fp32, one caption at a time: to the last bit what a prompt alone gives."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # thousands of tiny products: on busy cores, waiting for threads takes all the time
    try:
        with torch.autocast(ids.device.type, enabled=False):
            rows = [encoder(ids[k : k + 1], attention_mask=mask[k : k + 1])[0] for k in range(len(ids))]
    finally:
        torch.set_num_threads(threads)
    return torch.cat(rows).float()
