"""The stages above the first: which there are, whether they fit, and pictures taken through them.

What a stage does is in `stages.py`; nothing is drawn here. Models are loaded when the first picture comes.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from torch import Tensor

from diffkit.engine.settings import Settings
from diffkit.errors import UsageError
from diffkit.illusions.animation import nearly_same_when_larger
from diffkit.illusions.checks import check_sizes
from diffkit.illusions.composition import Composition
from diffkit.illusions.drawing import filled, make_scheduler
from diffkit.illusions.stages import NOISE_LEVEL, Prompt, enlarge, refine
from diffkit.illusions.views import parse_view
from diffkit.models import Repo, info, load_opened, open_repo
from diffkit.models.base import BaseModel, plain
from diffkit.models.memory import count_parameters
from diffkit.types import Model, ModelInfo, Step

LOG = logging.getLogger("diffkit.illusions")

STAGE_2 = "DeepFloyd/IF-II-M-v1.0"
STAGE_3 = "stabilityai/stable-diffusion-x4-upscaler"
_HUB_STAGE_1 = "DeepFloyd/IF-I-"
NONE = "none"


def stages_for(
    source: str, size: int | None = None, second: str | None = None, third: str | None = None
) -> tuple[str | None, str | None]:
    """Say which models follow the first: those that were named, and for DeepFloyd IF from the Hub the usual ones.

    Args:
        source: The first model.
        size: 64: none; 256: stage II; 1024: both; all there are when left out.
        second: Stage II: an id, a folder, "none", or left out.
        third: Stage III, likewise.

    Raises:
        UsageError: A size that the stages do not give.
    """
    of_hub = source.startswith(_HUB_STAGE_1)
    two = None if second == NONE else second or (STAGE_2 if of_hub and size != 64 else None)
    three = None if third == NONE else third or (STAGE_3 if of_hub and two and size in (None, 1024) else None)
    named = [name for name, model in (("`model_2`", two), ("`model_3`", three)) if model]
    if size is not None and len(named) != {64: 0, 256: 1, 1024: 2}[size]:
        there = " and ".join(named) or "no further stage"
        raise UsageError(
            f"`size` {size} with {there}: 64 is stage I alone, 256 one stage more, 1024 two", "Name the stages to use."
        )
    return two, three


@dataclass(frozen=True)
class Stage:
    """A stage above the first: its files, and what its model is."""

    repo: Repo
    info: ModelInfo


@dataclass(frozen=True)
class Cascade:
    """The stages above the first.

    Attributes:
        two: Stage II: an id or a folder, or None.
        three: Stage III, or None.
        noise_2: Noise on the small picture that stage II sees, in timesteps.
        noise_3: The same of stage III.
        steps_3: Steps of stage III; 30 when left out.
        mode_3: Whether stage III is told all prompts, or the first alone.
        loaded: The models, once they are there, by name.
    """

    two: str | None = None
    three: str | None = None
    noise_2: int = NOISE_LEVEL
    noise_3: int = 0
    steps_3: int | None = None
    mode_3: Literal["multiview", "first"] = "multiview"
    loaded: dict[str, Model] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def stages(self) -> dict[str, Stage]:
        """Both stages, opened, as far as there are any."""
        repos = {name: open_repo(name) for name in (self.two, self.three) if name}
        return {name: Stage(repo, info(repo)) for name, repo in repos.items()}

    def names(self) -> list[str]:
        """Return the models that there are."""
        return [name for name in (self.two, self.three) if name]

    def check(self, composition: Composition, first: ModelInfo, wanted: int | None = None) -> None:
        """Refuse stages that are not there, are of another kind, or cannot turn the picture; no weights are read.

        Raises:
            UsageError: A model that is no such stage, an option of a stage that is not there, or a size that it or a
                view cannot take.
            ModelError: No such model.
        """
        for name, model, given in (
            ("noise_2", self.two, self.noise_2 != NOISE_LEVEL),
            ("noise_3", self.three, self.noise_3 != 0),
            ("steps_3", self.three, self.steps_3 is not None),
            ("mode_3", self.three, self.mode_3 != "multiview"),
        ):
            if given and model is None:
                raise UsageError(f"`{name}`: there is no such stage", f"Name it with `model_{name[-1]}`.")
        side = first.size[0]
        if self.two is not None:
            side = self._check_second(composition)
        if self.three is not None:
            side = self._check_third(composition, side)
        _check_scale(composition, first, side)
        if wanted not in (None, side):
            drawn = " with ".join([first.id, *self.names()])
            raise UsageError(f"`size` {wanted}: {drawn} draws {side} px", "Leave `size` out, or name other stages.")

    def _check_second(self, composition: Composition) -> int:
        assert self.two is not None
        known = self.stages[self.two].info
        if known.source != "small" or known.latent:
            raise UsageError(f"`model_2` {self.two} is not stage II of DeepFloyd IF", f"Use {STAGE_2}.")
        check_sizes(composition, known)
        return known.size[0]

    def _check_third(self, composition: Composition, side: int) -> int:
        assert self.three is not None
        known = self.stages[self.three].info
        if known.source != "small" or not known.latent:
            raise UsageError(f"`model_3` {self.three} is not Stable Diffusion's x4 upscaler", f"Use {STAGE_3}.")
        if side % known.input_multiple:
            raise UsageError(
                f"`model_3` {self.three} takes pictures of multiples of {known.input_multiple} px, not of {side}",
                "Use another model.",
            )
        large = side * known.factor
        check_sizes(composition, replace(known, sample=(known.sample[0], side, side), size=(large, large)))
        return large

    def steps_of_pixels(self, first: ModelInfo, settings: Settings) -> int:
        """Return how many steps of the stages above are taken on pixels: those of stage II, where guides act, too."""
        if self.two is None:
            return 0
        return len(make_scheduler(self.stages[self.two].info, above(first, settings)).timesteps)

    def planned(self, first: ModelInfo, settings: Settings) -> list[dict[str, Any]]:
        """Return what `--dry-run` says of each stage: model, steps, parameters; no weights are read.

        Raises:
            ModelError: A stage is not there.
        """
        found = []
        for name, how in ((self.two, above(first, settings)), (self.three, Settings(steps=self.steps_3))):
            if name is not None:
                known = self.stages[name].info
                steps = len(make_scheduler(known, how).timesteps)
                found.append({"model": name, "steps": steps, "parameters": count_parameters(known.network)})
        return found

    def draw(
        self,
        first: Model,
        composition: Composition,
        prompt: Prompt,
        images: Tensor,
        seeds: Sequence[int],
        settings: Settings,
    ) -> Generator[Step, None, Tensor]:
        """Take pictures through the stages: their steps, and in the end the pictures.

        Pictures are (B, 3, h, w) in [-1, 1]. Sampler, grid and guidance of stage III are its own; the first
        model may lend its text encoder.
        """
        if self.two is not None:
            model = self._model(self.two, first)
            LOG.info("stage II: %s", self.two)
            how = above(first.info, settings)
            images = yield from refine(model, composition, prompt, images, seeds, how, noise_level=self.noise_2)
        if self.three is not None:
            LOG.info("stage III: %s", self.three)
            own = Settings(steps=self.steps_3, negative=settings.negative, max_batch=settings.max_batch)
            if self.mode_3 == "first":
                composition = Composition((parse_view("identity"),))
            model = self._model(self.three, first)
            images = yield from enlarge(model, composition, prompt, images, seeds, own, noise_level=self.noise_3)
        return images

    def _model(self, name: str, first: Model) -> Model:
        """A stage's model, loaded as the first one was; a text encoder of the same kind is shared."""
        if name not in self.loaded:
            stage, lender = self.stages[name], plain(first)
            assert isinstance(lender, BaseModel)
            shared = lender.prompts if stage.info.text_encoder == first.info.text_encoder else None
            options = replace(lender.options, variant=None, safety="auto", raw=False, prompts=shared)
            self.loaded[name] = load_opened(stage.repo, stage.info, options)
        return self.loaded[name]


def above(first: ModelInfo, settings: Settings) -> Settings:
    """Return the settings of stage II: those of the first stage, on its own grid, without what was that model's own."""
    own = filled(first, Settings())
    return replace(
        settings, timesteps=None, scheduler=None if settings.scheduler == own.scheduler else settings.scheduler,
        guidance=None if settings.guidance == first.illusion_guidance else settings.guidance,
    )  # fmt: skip


def _check_scale(composition: Composition, first: ModelInfo, side: int) -> None:
    """Refuse views that cut large pictures in other places than the small one, whose parts would be torn."""
    small = first.size[0]
    for view in composition.views:
        if side > small and side % small == 0 and not nearly_same_when_larger(view, small, side // small):
            raise UsageError(
                f"view {view.spec} is another one at {side} px than at {small} px: the stages would not agree",
                f"Use one whose pieces divide {small} px, or stage I alone.",
            )
