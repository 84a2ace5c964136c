"""Which model a job draws with where none is named, and what the choice is told by."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from diffkit.errors import ModelError
from diffkit.models.bundled import BUNDLED, bundled
from diffkit.models.hub import open_repo

LOG = logging.getLogger("diffkit.jobs")

DEFAULT_RUN = Path("runs/digits")


def default_run() -> bool:
    """Say whether the run of the default recipe is there."""
    return (DEFAULT_RUN / "model_index.json").is_file()


def default_model(hub: str, prompted: bool, strange: Sequence[str]) -> str:
    """Return the model used where none is named, and say which and why.

    Without a prompt it is the local run, where there is one; then the model inside the package, if it knows every word
    of the prompts; else the Hub's.

    Args:
        hub: The Hub's.
        prompted: There are prompts.
        strange: Their words that the model inside the package does not know.

    Raises:
        ModelError: The model inside the package does not know the prompt, and the Hub's cannot be reached.
    """
    if not prompted and default_run():
        return _chosen(str(DEFAULT_RUN), "the run that is there")
    if bundled() is None:
        return _chosen(hub, "it takes prompts" if prompted else f"there is no {DEFAULT_RUN}")
    if not strange:
        return _chosen(BUNDLED, "it ships with diffkit" + (" and knows every word of the prompt" if prompted else ""))
    why = f"the model that ships with diffkit does not know {', '.join(map(repr, dict.fromkeys(strange)))}"
    try:
        open_repo(hub)  # loads nothing yet
    except ModelError as error:
        raise ModelError(
            f"{why}, and {error.message}",
            f"{error.hint} Or use only words that the small model knows: `diffkit inspect tiny` lists them.",
        ) from None
    return _chosen(hub, why)


def _chosen(model: str, why: str) -> str:
    LOG.info("no `model`: %s is used (%s)", model, why)
    return model
