"""Fields that several commands share, as classes that a command adds to its own: steps, seeds, one prompt or class."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from diffkit.engine.sampler_names import default_steps
from diffkit.engine.settings import Settings, seeds_from
from diffkit.errors import UsageError
from diffkit.jobs.base import PictureJob
from diffkit.jobs.batch import Row
from diffkit.jobs.fields import WITH_COMMAS, numbers, opt, whole_numbers
from diffkit.models.classes import class_label

if TYPE_CHECKING:
    from diffkit.types import ModelInfo

MOST_PICTURES = 1_000_000


class Steps(PictureJob):
    """How many steps are taken, and where."""

    steps: int | None = Field(None, ge=1, description="Sampling steps.")
    spacing: str | None = Field(None, description="Of the grid: leading, trailing or linspace.")
    shift: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Of flow models: above 1 more steps where there is much noise; the model's own when left out.",
    )

    def defaults(self, info: ModelInfo) -> dict[str, Any]:
        """Add the number of steps that suits the model, or else the sampler."""
        found = super().defaults(info)
        if info.one_step or self.settings.timesteps is not None:
            return found
        return {**found, "steps": default_steps(self.scheduler or found["scheduler"], info.timesteps, info.steps)}


class Grid(Steps):
    """Steps, or the timesteps themselves."""

    timesteps: Annotated[str | None, WITH_COMMAS, whole_numbers("999,750,500,250,0")] = Field(
        None, description="The grid itself: descending, 999,750,500,250,0."
    )

    @cached_property
    def settings(self) -> Settings:
        """Those of all commands, with the grid."""
        grid = None if self.timesteps is None else tuple(numbers(self.timesteps, "timesteps", ""))
        return replace(super().settings, timesteps=grid)


class Eta(PictureJob):
    """Fresh noise in DDIM's steps."""

    eta: float = Field(0.0, ge=0, le=1, description="DDIM's noise: 0 deterministic, 1 as DDPM.")


class Batched(PictureJob):
    """As many pictures as the command makes when nobody says, in batches."""

    num: Annotated[int | None, opt("num", "n")] = Field(
        None, ge=1, le=MOST_PICTURES, description="How many pictures; one per class when left out."
    )
    batch_size: int = Field(64, ge=1, le=4096, description="Pictures per batch.")


class Many(Batched):
    """Several pictures, in batches."""

    num: Annotated[int, opt("num", "n")] = Field(1, ge=1, le=MOST_PICTURES, description="How many pictures.")
    batch_size: int = Field(16, ge=1, le=4096, description="Pictures per batch.")

    def rows(self, info: ModelInfo) -> list[Row]:
        """One picture per seed."""
        label = self.label_for(info)
        return [Row(seed, label) for seed in seeds_from(self.seed, self.num)]


class Prompted(PictureJob):
    """One prompt for all pictures."""

    per_picture: ClassVar[frozenset[str]] = frozenset({"label", "prompt", "negative_prompt", "guidance"})

    prompt: Annotated[str | None, opt("prompt", "p")] = Field(None, description="What to draw, in words.")

    def words(self) -> list[str]:
        return [*([self.prompt] if self.prompt else []), *super().words()]

    def label_for(self, info: ModelInfo) -> str | None:
        return self.prompt

    def check(self, info: ModelInfo) -> None:
        """Refuse a prompt for a model that takes none."""
        super().check(info)
        check_label(info, self.prompt, None)


class OnePrompt(Prompted):
    """One class or prompt for all pictures."""

    label: Annotated[str | None, opt("class", "c")] = Field(
        None, description="A class by name or number, of models with classes."
    )

    def label_for(self, info: ModelInfo) -> str | None:
        return self.prompt if info.text else self.label

    def check(self, info: ModelInfo) -> None:
        """Refuse a class for a model of prompts, a prompt for a model of classes, and unknown classes."""
        super().check(info)
        check_label(info, self.prompt, self.label)


def check_label(info: ModelInfo, prompt: str | None, label: str | None, name: str = "label") -> None:
    """Refuse a prompt or a class that a model does not take.

    Raises:
        UsageError: It takes the other one, or does not know the class.
    """
    if info.text and label is not None:
        raise UsageError(f"`{name}` {label!r}: this model takes prompts", "Give `prompt`.")
    if not info.text and prompt is not None:
        raise UsageError(f"`prompt` {prompt!r}: this model knows no prompts", f"Give `{name}`, or leave it out.")
    if label is None:
        return
    if info.conditioning == "none":
        raise UsageError(f"class {label!r}: this model is unconditional and has no classes", f"Leave `{name}` out.")
    class_label(label, info)
