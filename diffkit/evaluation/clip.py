"""CLIP, opened and loaded: its two encoders, its tokenizer, and how it wants its pictures.

What is asked of it stands in `scorers/clip.py`, `losses.py` and `features.py`. Importing this module imports no torch.
Source: Radford et al., arXiv:2103.00020.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

from diffkit.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import CLIPModel

    from diffkit.models.repo import Repo

CLIP_ID = "openai/clip-vit-large-patch14"  # has safetensors; the smaller ones of its family have none
Scale: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]  # mean and deviation of pixels, by channel
CLIP_SCALE: Scale = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


class Clip:
    """A loaded CLIP.

    Args:
        model: A CLIPModel.
        tokenizer: Its tokenizer.
        mean: Of the pixels it was trained on, [0, 1], by channel.
        std: Their deviation.
    """

    def __init__(self, model: CLIPModel, tokenizer: Any, mean: Tensor, std: Tensor) -> None:
        self._model, self._tokenizer, self._mean, self._std = model, tokenizer, mean, std
        self.size = int(model.config.vision_config.image_size)
        self.tau = float((-model.logit_scale.detach()).exp())
        self._known: dict[str, Tensor] = {}

    def texts(self, prompts: Sequence[str]) -> Tensor:
        """Return the embeddings of texts, (P, D) of length 1; what is too long is cut."""
        longest = self._model.config.text_config.max_position_embeddings
        tokens = self._tokenizer(list(prompts), padding=True, truncation=True, max_length=longest, return_tensors="pt")
        tokens = tokens.to(self._mean.device)
        return _embedding(
            self._model.get_text_features(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        )

    def text(self, prompt: str) -> Tensor:
        """Return the embedding of one text, (1, D), encoded once."""
        if prompt not in self._known:
            self._known[prompt] = self.texts([prompt])
        return self._known[prompt]

    def images(self, pixels: Tensor) -> Tensor:
        """Return the embeddings of pictures (N, 3, size, size) in [0, 1], (N, D) of length 1; gradients flow."""
        found = projected(self._model, (pixels - self._mean) / self._std)
        return found / found.norm(dim=-1, keepdim=True)


def projected(model: CLIPModel, pixels: Tensor) -> Tensor:
    """Return what CLIP's image encoder says of pictures (N, 3, size, size), normalized as it wants them: (N, D)."""
    found: Tensor = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    return found


def open_clip(source: str, what: str) -> Repo:
    """Find a CLIP's repository, without its weights.

    Args:
        source: A Hub id or a folder.
        what: Who asks, for the error.

    Raises:
        ModelError: It is not there, or is no CLIP.
    """
    from diffkit.models.hub import open_repo

    repo = open_repo(source)
    kind = (repo.json("config.json") or {}).get("model_type")
    if kind != "clip":
        raise ModelError(
            f"{what}: {repo.id} is a {kind or 'model of no named type'}, not CLIP",
            f"Give a CLIP model, such as clip:{CLIP_ID}.",
        )
    return repo


def load_clip(repo: Repo, device: str | torch.device) -> Clip:
    """Load a CLIP.

    Raises:
        ModelError: Missing or broken weights, or no tokenizer.
    """
    import torch

    tokenizer = _tokenizer(repo)
    model = read_clip(repo).requires_grad_(False).to(device)
    mean, std = (torch.tensor(row, device=device).reshape(1, 3, 1, 1) for row in pixel_scale(repo))
    return Clip(model, tokenizer, mean, std)


def read_clip(repo: Repo) -> CLIPModel:
    """Read CLIP's weights in fp32, on the CPU; no tokenizer is needed.

    Raises:
        ModelError: Missing or broken weights.
    """
    import torch
    from transformers import CLIPModel

    from diffkit.models.weights import load_component

    return load_component(repo, CLIPModel, dtype=torch.float32)


def pixel_scale(repo: Repo, usual: Scale = CLIP_SCALE) -> Scale:
    """Return the mean and the deviation of pixels in [0, 1], by channel, that a repository's own preparation names.

    Args:
        repo: Of a network that takes pictures.
        usual: What holds where it names none.
    """
    config = repo.json("preprocessor_config.json") or {}
    mean, std = config.get("image_mean", usual[0]), config.get("image_std", usual[1])
    return tuple(map(float, mean)), tuple(map(float, std))


@lru_cache(maxsize=1)
def kept_clip(source: str, device: str) -> Clip:
    """Load a CLIP, or return the one that was asked for last: guides of several pictures share it."""
    return load_clip(open_clip(source, "guide clip"), device)


def _embedding(out: Any) -> Tensor:
    import torch

    # transformers 5 wraps what 4 returned as it was.
    found: Tensor = out if isinstance(out, torch.Tensor) else out.pooler_output
    return found / found.norm(dim=-1, keepdim=True)


def _tokenizer(repo: Repo) -> Any:
    from diffkit.models.weights import quiet_libraries

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
