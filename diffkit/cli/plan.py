"""What a picture command's body returns: how a batch is drawn, and what has to be known before and after.

Nothing is done here; `pictures.py` and `sheet.py` work a plan off.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Batch:
    """What one call of an edit draws."""

    seeds: list[int]
    labels: list[str | None]
    settings: Any
    on_step: Any
    advance: Any = None  # the progress bar's, for steps of further models


@dataclass
class Picked:
    """What a search among seeds gives.

    Attributes:
        seeds: Those to draw, best first; their recipes say nothing of the search but which seeds were drawn together.
        scores: For `--json`.
        sheet: All candidates with their scores.
        calls: Network calls of the search.
        silent: The options of the search, which the recipes leave out.
        marks: What the recipe of each seed says of its scores.
    """

    seeds: list[int]
    scores: dict[str, Any]
    sheet: Any
    calls: int
    silent: tuple[str, ...]
    marks: dict[int, Any] = field(default_factory=dict)


@dataclass
class Plan:
    """What a command's body returns.

    Attributes:
        draw: From the model and a batch to an `Edit`.
        visits: From the model (or its preview) and the settings to the timesteps of one batch.
        inputs: Files that went in, by parameter; their hashes go into the recipe.
        notices: From the model to what is said before the work begins.
        batched: Whether pictures of other classes, prompts and guidance scales may stand in the same batch.
        words: Prompts of its own options: the default model depends on them, and they are encoded early.
        about: What the recipe says of the picture beyond the options.
        unguided: Why nothing is guided, where nothing is.
        example: The drawn example is edited: the model inside the package is told what it shows, if nobody says so.
        before: Called with the model's name and all options, to refuse what it cannot do before it is loaded.
        pick: From the model, the settings, the seeds and the batch size to the seeds that are worth drawing.
        further: From the settings to the steps that other models take for each batch.
        later: From the settings, the number of pictures, the batch size and the steps of one batch to what `--dry-run`
            adds to its estimate; `unet_calls` is summed up.
        after: From the files and pictures that were written to the files it writes beside them, by kind.
    """

    draw: Callable[[Any, Batch], Any]
    visits: Callable[[Any, Any], list[float]]
    inputs: dict[str, Path | None] = field(default_factory=dict)
    notices: Callable[[Any, Any], list[str]] | None = None
    batched: bool = False
    words: list[str] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    unguided: str | None = None
    example: bool = False
    before: Callable[[str, dict[str, Any]], None] | None = None
    pick: Callable[[Any, Any, list[int], int], Picked] | None = None
    further: Callable[[Any], int] | None = None
    later: Callable[[Any, int, int, int], dict[str, Any]] | None = None
    after: Callable[[list[tuple[Path, Any]]], dict[str, list[str]]] | None = None
