"""Similarity in the space of CLIP, whose weights are read on first use. Source: Radford et al., arXiv:2103.00020."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from diffkit.errors import ModelError
from diffkit.evaluation.scorers.base import CHUNK, SCORERS
from diffkit.models.hub import open_repo
from diffkit.models.weights import load_component, quiet_libraries
from diffkit.pictures.tensors import in_channels

if TYPE_CHECKING:
    from diffkit.models.repo import Repo

CLIP_ID = "openai/clip-vit-large-patch14"  # has safetensors; the smaller ones of its family have none
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@SCORERS.register("clip")
@dataclass(frozen=True)
class ClipScorer:
    """Cosine similarity in CLIP's space. Source: Radford et al., arXiv:2103.00020.

    Attributes:
        source: A Hub id or a folder; `CLIP_ID` when empty.
        device: Where it computes.
    """

    name: ClassVar[str]
    source: str = ""
    device: str = "cpu"

    def check(self, prompts: Sequence[str] = ()) -> None:
        """Find the repository, without its weights; there is no prompt that CLIP refuses.

        Raises:
            ModelError: It is not there, or is no CLIP.
        """
        kind = (self._repo.json("config.json") or {}).get("model_type")
        if kind != "clip":
            raise ModelError(
                f"scorer clip: {self._repo.id} is a {kind or 'model of no named type'}, not CLIP",
                f"Give a CLIP model, such as clip:{CLIP_ID}.",
            )

    @cached_property
    def _repo(self) -> Repo:
        return open_repo(self.source or CLIP_ID)

    @cached_property
    def _parts(self) -> tuple[Any, Any, tuple[Tensor, Tensor]]:
        """The model, its tokenizer, and mean and deviation of the pixels it was trained on."""
        from transformers import CLIPModel

        repo = self._repo
        tokenizer = _clip_tokenizer(repo)
        model = load_component(repo, CLIPModel).to(self.device)
        config = repo.json("preprocessor_config.json") or {}
        mean, std = (
            torch.tensor(config.get(key, usual), device=self.device).reshape(1, 3, 1, 1)
            for key, usual in (("image_mean", _MEAN), ("image_std", _STD))
        )
        return model, tokenizer, (mean, std)

    @property
    def tau(self) -> float:
        """The temperature that the model learned; 0.01 for the published ones."""
        return float((-self._parts[0].logit_scale.detach()).exp())

    @torch.no_grad()
    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Cosine similarities (N, P)."""
        model, tokenizer, (mean, std) = self._parts
        longest = model.config.text_config.max_position_embeddings
        tokens = tokenizer(list(prompts), padding=True, truncation=True, max_length=longest, return_tensors="pt")
        tokens = tokens.to(self.device)
        text = _embedding(model.get_text_features(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask))
        size = model.config.vision_config.image_size
        rows = []
        for part in images.split(CHUNK):
            pixels = (_square_cut(part.to(self.device), size) - mean) / std
            rows.append(_embedding(model.get_image_features(pixel_values=pixels)) @ text.T)
        return torch.cat(rows).float().cpu()


def _embedding(out: Any) -> Tensor:
    # transformers 5 wraps what 4 returned as it was.
    found: Tensor = out if isinstance(out, Tensor) else out.pooler_output
    return found / found.norm(dim=-1, keepdim=True)


def _square_cut(images: Tensor, size: int) -> Tensor:
    """(N, 1 or 3, H, W) in [-1, 1] -> (N, 3, size, size) in [0, 1]: shorter side resampled, middle cut out."""
    images = in_channels((images.float() / 2 + 0.5).clamp(0, 1), 3)
    scale = size / min(images.shape[-2:])
    sides = [max(size, round(side * scale)) for side in images.shape[-2:]]
    images = F.interpolate(images, sides, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (sides[0] - size) // 2, (sides[1] - size) // 2
    return images[..., top : top + size, left : left + size]


def _clip_tokenizer(repo: Repo) -> Any:
    names = [f for f in repo.files() if "/" not in f and f.endswith((".json", ".txt"))]
    if "tokenizer.json" not in names and not {"vocab.json", "merges.txt"} <= set(names):
        raise repo.missing("tokenizer vocabulary (vocab.json+merges.txt or tokenizer.json)")
    for name in names:
        repo.file(name)
    from transformers import CLIPTokenizer

    with quiet_libraries():
        try:
            return CLIPTokenizer.from_pretrained(str(repo.root), local_files_only=True)
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(f"{repo.id}: the tokenizer cannot be loaded: {reason}", repo.fetch_hint()) from error
