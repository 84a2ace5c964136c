"""How a model is loaded: what all families are given, each taking what concerns it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from diffkit.models.text import EmbeddingCache, PromptEncoder


@dataclass(frozen=True)
class LoadOptions:
    """How a model is loaded.

    Attributes:
        device: Where it runs.
        dtype: Type of its weights; the family's own choice when left out.
        variant: Weight variant, for example fp16.
        allow_pickle: Also read `.bin` weights, through torch's restricted unpickler.
        compile: Compile the network at its first call.
        memory: auto, low or lowest: how hard to save memory, of models large enough for that.
        safety: auto, on or off: whether a safety checker judges the pictures, of models that come with one.
        raw: The last weights of a run in place of their moving average.
        prompts: A prompt encoder to share (stage II of DeepFloyd IF with stage I's).
        cache: Where prompt embeddings are kept; the user's cache folder when left out.
    """

    device: torch.device | str = "cpu"
    dtype: torch.dtype | None = None
    variant: str | None = None
    allow_pickle: bool = False
    compile: bool = False
    memory: str = "auto"
    safety: str = "auto"
    raw: bool = False
    prompts: PromptEncoder | None = None
    cache: EmbeddingCache | None = None
