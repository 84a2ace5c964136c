"""What drawing would take, for `--dry-run`: read from configurations, without any weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from diffkit.jobs.sample import TEXT_GUIDANCE, Settings, batches, timesteps_of


def estimate(
    source: str,
    revision: str | None,
    settings: Settings,
    count: int,
    batch_size: int,
    visits: Callable[[Any, Settings], list[float]] = timesteps_of,
) -> dict[str, Any]:
    """Say what drawing would take, without reading any weights.

    Args:
        source: Hub id or folder.
        revision: Its revision.
        settings: How.
        count: Number of pictures.
        batch_size: Pictures per batch.
        visits: From the model and the settings to the timesteps of one batch, one per network call.

    Raises:
        UsageError: Settings that do not fit the model.
        ModelError: The model is not there.
    """
    from diffkit.models.hub import open_repo

    repo = open_repo(source, revision=revision)
    model = preview(repo)
    visited = visits(model, settings)
    parameters = model.parameters
    return {
        "model": {"id": repo.id, "revision": repo.revision, "family": model.family},
        "steps": len(visited),
        "timesteps": visited,
        "unet_calls": len(visited) * len(batches(count, batch_size)),
        "parameters": parameters,
        "weights_mb": parameters * 4 / 1e6,
    }


@dataclass(frozen=True)
class Preview:
    """What a plan needs of a model, without its weights."""

    family: str
    scheduler: Any
    parameters: int
    meta: Any = None


def preview(repo: Any) -> Preview:
    """Read an opened repository's configuration only.

    Raises:
        ModelError: No family can load it, or a file is missing.
    """
    from diffkit.models import family_of

    family = family_of(repo)
    if family in TEXT_GUIDANCE:
        from importlib import import_module

        model = import_module(f"diffkit.models.{family}").from_repo(repo)  # loads nothing yet
        return Preview(family, model.scheduler, model.parameters_of_unet())
    from diffkit.models.ddpm import outline

    drawn = outline(repo)
    return Preview(family, drawn.scheduler, drawn.parameters, drawn.meta)
