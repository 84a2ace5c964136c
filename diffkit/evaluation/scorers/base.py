"""How well pictures match prompts: measures by name, and the two numbers that the illusions' paper ranks by.

A `Scorer` turns pictures and prompts into similarities; which one is used is a plug (`SCORERS`, or any object with the
same two members). `alignment` and `concealment` read the matrix of views against prompts. Nothing here draws a picture.
Source: Geng et al., arXiv:2311.17919, section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from diffkit.registry import Registry

CHUNK = 64
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


def parse_scorer(
    spec: str, *, device: str | torch.device = "cpu", model: Any = None, max_batch: int | None = None,
    prompts: Sequence[str] = (),
) -> Scorer:  # fmt: skip
    """Make a scorer from `clip:ID`, `classifier:FILE`, `model:ID` or `model`; no weights are read yet.

    Args:
        spec: What follows the first colon is taken as it is: an id, a file or a folder.
        device: Where it computes.
        model: The model that draws, for `model` alone.
        max_batch: Rows in one network call, for `model`.
        prompts: What it will be asked about; refused here, where it can be told.

    Raises:
        UsageError: An unknown name, a classifier without its file, or a prompt that the scorer does not know.
        ModelError: There is no such model.
    """
    name, _, source = spec.partition(":")
    more = {"model": model, "max_batch": max_batch} if name.strip() == "model" else {}
    scorer: Any = SCORERS[name.strip()](source.strip(), str(device), **more)  # type: ignore[call-arg]
    scorer.check(prompts)
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


def in_channels(images: Tensor, channels: int) -> Tensor:
    """(N, 1 or 3, H, W) -> (N, channels, H, W): grey is repeated, colours are weighed by their brightness."""
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1)
    return (images * images.new_tensor(_GREY).reshape(1, 3, 1, 1)).sum(1, keepdim=True)
