"""What a course's networks are trained on."""

from __future__ import annotations

import logging
import os

from diffkit.errors import DataError, ModelError, UsageError

LOG = logging.getLogger("diffkit.lab")


def find_data(name: str | None) -> tuple[str, str]:
    """Return what networks are trained on, as a recipe names it, and how it was chosen.

    Args:
        name: What was asked for; MNIST when left out, and where that is not at hand the embedded digits.

    Raises:
        DataError, ModelError: What was asked for cannot be read.
    """
    from diffkit.data import open_dataset
    from diffkit.recipes.schema import DatasetSpec

    if name is not None:
        open_dataset(DatasetSpec(name=name), seed=0)
        return name, ""
    here = os.environ.get("DIFFKIT_MNIST", "mnist")
    try:
        open_dataset(DatasetSpec(name=here), seed=0)
    except (DataError, ModelError, UsageError):
        note = "MNIST is not at hand (`data` FOLDER): trained on the 1,797 digits that scikit-learn carries"
        LOG.info("%s", note)
        return "digits", note
    return here, ""
