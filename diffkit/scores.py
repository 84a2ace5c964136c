"""How well pictures match prompts: measures by name, and the two numbers that the illusions' paper ranks by.

A `Scorer` turns pictures and prompts into similarities; which one is used is a plug (`SCORERS`, or any object with the
same two members). `alignment` and `concealment` read the matrix of views against prompts. Nothing here draws a picture.
Source: Geng et al., arXiv:2311.17919, section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from diffkit.classifier import SmallCNN, load_classifier, read_names
from diffkit.errors import ModelError, UsageError, did_you_mean
from diffkit.registry import Registry

if TYPE_CHECKING:
    from diffkit.models.hub import Repo

CHUNK = 64
CLIP_ID = "openai/clip-vit-large-patch14"  # has safetensors; the smaller ones of its family have none
CLASSIFIER_FILE = "classifier.safetensors"
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_GREY = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow


class Scorer(Protocol):
    """A measure of how well pictures match prompts."""

    @property
    def tau(self) -> float:
        """The temperature at which a softmax of the similarities is a probability."""
        ...

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Pictures (N, C, H, W) in [-1, 1] and P prompts -> similarities (N, P), fp32 on the CPU; more is better."""
        ...


SCORERS: Registry[Scorer] = Registry("scorer")


def parse_scorer(spec: str, *, device: str | torch.device = "cpu") -> Scorer:
    """Make a scorer from `clip:ID_OR_FOLDER` or `classifier:FILE_OR_FOLDER`; no weights are read yet.

    Args:
        spec: What follows the first colon is taken as it is.
        device: Where it computes.

    Raises:
        UsageError: An unknown name, or a classifier without its file.
        ModelError: There is no such model.
    """
    name, _, source = spec.partition(":")
    scorer: Any = SCORERS[name.strip()](source.strip(), str(device))  # type: ignore[call-arg]
    scorer.check()
    made: Scorer = scorer
    return made


def alignment(matrix: Tensor) -> Tensor:
    """Return A, the similarity of the worst aligned view with its own prompt.

    Args:
        matrix: (..., V, V), similarity of view i with prompt j.

    Returns:
        (...).

    Source: arXiv:2311.17919, section 4: A = min_i S_ii.
    """
    return _diagonal(matrix).amin(-1)


def concealment(matrix: Tensor, tau: float = 0.01) -> Tensor:
    """Return C in (0, 1]: how surely each view is told by its prompt, and each prompt by its view.

    1 / V is chance, and what a picture gets that looks alike in all views.

    Args:
        matrix: (..., V, V), similarity of view i with prompt j.
        tau: Temperature; 0.01 is CLIP's.

    Returns:
        (...).

    Raises:
        ValueError: tau is not positive.

    Source: arXiv:2311.17919, section 4: C = tr(softmax(S / tau)) / V, the mean of both directions of the softmax.
    """
    if tau <= 0:
        raise ValueError(f"tau is {tau}; it is a positive temperature")
    logits = _square(matrix).double() / tau
    both = [logits.softmax(dim).diagonal(dim1=-2, dim2=-1).mean(-1) for dim in (-1, -2)]
    return ((both[0] + both[1]) / 2).to(matrix.dtype)


def score_matrix(scorer: Scorer, seen: Sequence[Tensor], prompts: Sequence[str]) -> Tensor:
    """Score every view of every picture against every prompt.

    Args:
        scorer: The measure.
        seen: One (B, C, H, W) per prompt: the pictures as the prompt's judge sees them.
        prompts: V of them.

    Returns:
        (B, V, V); row i is view i.
    """
    views, batch = len(seen), seen[0].shape[0]
    if len({tuple(part.shape[1:]) for part in seen}) == 1:
        flat = scorer.score(torch.cat(list(seen)), prompts)
    else:  # a scaled-down part
        flat = torch.cat([scorer.score(part, prompts) for part in seen])
    return flat.float().cpu().reshape(views, batch, len(prompts)).transpose(0, 1)


def _square(matrix: Tensor) -> Tensor:
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise ValueError(f"a matrix of views against their prompts is square; got {tuple(matrix.shape)}")
    return matrix


def _diagonal(matrix: Tensor) -> Tensor:
    return _square(matrix).diagonal(dim1=-2, dim2=-1)


# --- CLIP


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

    def check(self) -> None:
        """Find the repository, without its weights.

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
        from diffkit.models.hub import open_repo

        return open_repo(self.source or CLIP_ID)

    @cached_property
    def _parts(self) -> tuple[Any, Any, tuple[Tensor, Tensor]]:
        """The model, its tokenizer, and mean and deviation of the pixels it was trained on."""
        from transformers import CLIPModel

        from diffkit.models.hub import load_component

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
    images = _channels((images.float() / 2 + 0.5).clamp(0, 1), 3)
    scale = size / min(images.shape[-2:])
    sides = [max(size, round(side * scale)) for side in images.shape[-2:]]
    images = F.interpolate(images, sides, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (sides[0] - size) // 2, (sides[1] - size) // 2
    return images[..., top : top + size, left : left + size]


def _channels(images: Tensor, channels: int) -> Tensor:
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1)
    return (images * images.new_tensor(_GREY).reshape(1, 3, 1, 1)).sum(1, keepdim=True)


def _clip_tokenizer(repo: Repo) -> Any:
    from diffkit.models.hub import quiet_libraries

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


# --- a classifier for class models


@SCORERS.register("classifier")
@dataclass(frozen=True)
class ClassifierScorer:
    """Log-probability of a class, by a small classifier in a file that `classifier.save_classifier` wrote.

    Attributes:
        source: The file, or a folder that holds it as `classifier.safetensors`.
        device: Where it computes.
    """

    name: ClassVar[str]
    tau: ClassVar[float] = 1.0  # a softmax of log-probabilities is the probability among the prompts
    source: str = ""
    device: str = "cpu"

    def check(self) -> None:
        """Read the file's header.

        Raises:
            UsageError: No file was named.
            ModelError: There is no such file, or it is not of the format.
        """
        if not self.source:
            raise UsageError("scorer classifier: no file named", "Give classifier:FILE.safetensors.")
        self.class_names  # noqa: B018  (reads the header)

    @property
    def _path(self) -> Path:
        path = Path(self.source).expanduser()
        return path / CLASSIFIER_FILE if path.is_dir() else path

    @cached_property
    def class_names(self) -> list[str]:
        """Names in label order."""
        return read_names(self._path)

    @cached_property
    def network(self) -> SmallCNN:
        """The network, loaded on first use."""
        return load_classifier(self._path)[0].to(self.device)

    def labels(self, prompts: Sequence[str]) -> list[int]:
        """Return the classes that prompts name: a class's name, or its number where no name is that.

        Raises:
            UsageError: Not a class of this classifier.
        """
        names = self.class_names
        found = []
        for prompt in prompts:
            if prompt in names:
                found.append(names.index(prompt))
            elif prompt.isdecimal() and int(prompt) < len(names):
                found.append(int(prompt))
            else:
                raise UsageError(
                    f"prompt {prompt!r} is not one of the {len(names)} classes that {self._path.name} knows",
                    did_you_mean(prompt, names),
                )
        return found

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Pictures (N, C, H, W) in [-1, 1], any size -> (N, classes), fp32 on the CPU."""
        network = self.network
        channels, height, width = network.shape
        rows = []
        for part in images.split(CHUNK):
            pixels = _channels(part.to(self.device).float().clamp(-1, 1), channels)
            if tuple(pixels.shape[-2:]) != (height, width):
                pixels = F.interpolate(pixels, (height, width), mode="bilinear", antialias=True)
            rows.append(network(pixels).float().cpu())
        return torch.cat(rows)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Log-probabilities (N, P), of all classes of the classifier."""
        columns = self.labels(prompts)
        return self.logits(images).log_softmax(1)[:, columns]
