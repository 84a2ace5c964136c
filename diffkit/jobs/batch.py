"""What passes between a job and the program that runs it: rows to draw, batches of them, what came of it.

Importing this module imports no torch.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from diffkit.engine.settings import Settings
    from diffkit.types import Step


@dataclass(frozen=True)
class Row:
    """One picture to draw: its seed, and its class or prompt."""

    seed: int
    label: str | None = None


@dataclass(frozen=True)
class Batch:
    """Pictures that are drawn together.

    Attributes:
        seeds: One per picture.
        labels: Class or prompt of each.
        settings: How; guidance and negative prompt may differ from picture to picture.
    """

    seeds: list[int]
    labels: list[str | None]
    settings: Settings

    @property
    def generators(self) -> list[torch.Generator]:
        """One generator per picture, at its beginning."""
        from diffkit.engine.sampling import generators

        return generators(self.seeds)


@dataclass(frozen=True)
class Drawn:
    """What a job made of a batch.

    Attributes:
        pictures: One per row.
        calls: Network calls beyond those of `PictureJob.sampling_timesteps`, of further models.
        sheet: Labelled pictures to be shown side by side, in place of a plain grid.
        scores: Numbers for `--json`.
        frames: An animation of its own, in place of that of the denoising.
        shown: What stands on the sheet in place of each picture: an illusion in all its views.
    """

    pictures: list[Image.Image]
    calls: int = 0
    sheet: list[tuple[str, Image.Image]] = field(default_factory=list)
    scores: dict[str, Any] = field(default_factory=dict)
    frames: list[Image.Image] = field(default_factory=list)
    shown: list[Image.Image] = field(default_factory=list)


Drawing = Generator["Step", None, Drawn]


@dataclass(frozen=True)
class Found:
    """What a search among seeds gives.

    Attributes:
        seeds: Those to draw, best first.
        scores: For `--json`.
        sheet: All candidates with their scores.
        calls: Network calls of the search.
        silent: The fields of the search, which the pictures' metadata leave out.
        marks: What the metadata of each seed say of its scores.
    """

    seeds: list[int]
    scores: dict[str, Any]
    sheet: Image.Image
    calls: int
    silent: tuple[str, ...] = ()
    marks: Mapping[int, Any] = field(default_factory=dict)
