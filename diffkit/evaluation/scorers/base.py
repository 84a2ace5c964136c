"""How well pictures match prompts: measures by name.

A `Scorer` turns pictures and prompts into similarities; which one is used is a plug (`SCORERS`, or any object with the
same two members). Nothing here draws a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from diffkit.illusions.scoring import Scorer
from diffkit.registry import Registry

if TYPE_CHECKING:
    import torch

    from diffkit.types import Model

CHUNK = 64


SCORERS: Registry[Scorer] = Registry("scorer")


def parse_scorer(
    spec: str, *, device: str | torch.device = "cpu", model: Model | None = None, max_batch: int | None = None,
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
