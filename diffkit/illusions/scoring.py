"""How well views match their prompts: what a scorer gives, and the two numbers that the illusions' paper ranks by.

A `Scorer` turns pictures and prompts into similarities; those that there are stand in `diffkit.evaluation.scorers`.
`alignment` and `concealment` read the matrix of views against prompts. Source: Geng et al., arXiv:2311.17919, section
4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Scorer(Protocol):
    """A measure of how well pictures match prompts."""

    @property
    def tau(self) -> float:
        """The temperature at which a softmax of the similarities is a probability."""
        ...

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Pictures (N, C, H, W) in [-1, 1] and P prompts -> similarities (N, P), fp32 on the CPU; more is better."""
        ...


def alignment(matrix: Tensor) -> Tensor:
    """Return A, the similarity of the worst aligned view with its own prompt.

    Args:
        matrix: (..., V, V), similarity of view i with prompt j.

    Returns:
        (...).

    Source: arXiv:2311.17919, section 4: A = min_i S_ii.
    """
    return _square(matrix).diagonal(dim1=-2, dim2=-1).amin(-1)


def concealment(matrix: Tensor, tau: float = 0.01) -> Tensor:
    """Return C in (0, 1]: how surely each view is recognised by its prompt, and each prompt by its view.

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


def score_matrix(scorer: Scorer, parts: Sequence[Tensor], prompts: Sequence[str]) -> Tensor:
    """Score every view of every picture against every prompt.

    Args:
        scorer: The measure.
        parts: One (B, C, H, W) per prompt: the pictures as the prompt's judge looks at them.
        prompts: V of them.

    Returns:
        (B, V, V); row i is view i.
    """
    views, batch = len(parts), parts[0].shape[0]
    if len({tuple(part.shape[1:]) for part in parts}) == 1:
        flat = scorer.score(torch.cat(list(parts)), prompts)
    else:  # a scaled-down part
        flat = torch.cat([scorer.score(part, prompts) for part in parts])
    return flat.float().cpu().reshape(views, batch, len(prompts)).transpose(0, 1)


def _square(matrix: Tensor) -> Tensor:
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise ValueError(f"a matrix of views against their prompts is square; got {tuple(matrix.shape)}")
    return matrix
