"""The stages above the first: which there are, whether they fit, and pictures taken through them.

What a stage does is in `stages.py`; nothing is drawn here. Models are loaded when the first picture comes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor

from diffkit.errors import UsageError
from diffkit.illusions.checks import Space, check_sizes, name_of, space_in
from diffkit.illusions.drawing import Illusion, usual
from diffkit.illusions.stages import NOISE_LEVEL
from diffkit.jobs.sample import Settings

LOG = logging.getLogger("diffkit.tasks")

STAGE_2 = "DeepFloyd/IF-II-M-v1.0"
STAGE_3 = "stabilityai/stable-diffusion-x4-upscaler"
_HUB_STAGE_1 = "DeepFloyd/IF-I-"
_MULTIPLE = 8  # of the x4 upscaler's input
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
    usual_ones = source.startswith(_HUB_STAGE_1)
    two = None if second == NONE else second or (STAGE_2 if usual_ones and size != 64 else None)
    three = None if third == NONE else third or (STAGE_3 if usual_ones and two and size in (None, 1024) else None)
    named = [flag for flag, model in (("--model-2", two), ("--model-3", three)) if model]
    if size is not None and len(named) != {64: 0, 256: 1, 1024: 2}[size]:
        there = " and ".join(named) or "no further stage"
        raise UsageError(
            f"--size {size} with {there}: 64 is stage I alone, 256 one stage more, 1024 two", "Name the stages to use."
        )
    return two, three


@dataclass
class Ladder:
    """The stages above the first.

    Attributes:
        two: Stage II, or None.
        three: Stage III, or None.
        options: What `models.load` takes: device, dtype, memory and the like.
        noise_2: Noise on the small picture that stage II sees, in timesteps.
        noise_3: The same of stage III.
        steps_3: Steps of stage III; 30 when left out.
        mode_3: Whether stage III hears all prompts, or the first alone.
    """

    two: str | None = None
    three: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    noise_2: int = NOISE_LEVEL
    noise_3: int = 0
    steps_3: int | None = None
    mode_3: Literal["multiview", "first"] = "multiview"
    _loaded: dict[str, Any] = field(default_factory=dict, repr=False)

    def check(self, illusion: Illusion, first: Space, wanted: int | None = None) -> None:
        """Refuse stages that are not there, are of another kind, or cannot turn the picture; no weights are read.

        Args:
            illusion: What is drawn.
            first: Where stage I draws.
            wanted: Side that the last stage's pictures are to have, pixels.

        Raises:
            UsageError: A model that is no such stage, an option of a stage that is not there, or a size that it or a
                view cannot take.
            ModelError: No such model.
        """
        from diffkit.models import family_of
        from diffkit.models.hub import load_config, open_repo

        side = first.picture[0]
        for flag, model, given in (
            ("--noise-2", self.two, self.noise_2 != NOISE_LEVEL),
            ("--noise-3", self.three, self.noise_3 != 0),
            ("--steps-3", self.three, self.steps_3 is not None),
            ("--mode-3", self.three, self.mode_3 != "multiview"),
        ):
            if given and model is None:
                raise UsageError(f"{flag}: there is no such stage", f"Name it with --model-{flag[-1]}.")
        for flag, name, family, channels in (
            ("--model-2", self.two, "deepfloyd", 6),
            ("--model-3", self.three, "stable_diffusion", 7),
        ):
            if name is None:
                continue
            repo = open_repo(name)
            takes = int(load_config(repo, repo.part("unet"), "config.json").get("in_channels", 0))
            if family_of(repo) != family or takes != channels:
                right = "stage II of DeepFloyd IF" if channels == 6 else "Stable Diffusion's x4 upscaler"
                raise UsageError(f"{flag} {name} is not {right}", f"Use {STAGE_2 if channels == 6 else STAGE_3}.")
            space = space_in(repo)
            if channels == 6:
                check_sizes(illusion, space)
                side = space.picture[0]
                continue
            if side % _MULTIPLE:
                raise UsageError(
                    f"{flag} {name} takes pictures of multiples of {_MULTIPLE} px, not of {side}", "Use another model."
                )
            check_sizes(illusion, replace(space, size=(side, side), picture=(side * space.factor,) * 2))
            side *= space.factor
        self._check_scale(illusion, first, side)
        if wanted not in (None, side):
            drawn = " with ".join([first.name, *self.names()])
            raise UsageError(f"--size {wanted}: {drawn} draws {side} px", "Leave --size out, or name other stages.")

    def _check_scale(self, illusion: Illusion, first: Space, side: int) -> None:
        """Refuse views that cut large pictures in other places than the small one, whose parts would be torn."""
        from diffkit.illusions.animation import scales

        small = first.picture[0]
        for view in illusion.views:
            if side > small and side % small == 0 and not scales(view, small, side // small):
                raise UsageError(
                    f"view {name_of(view)} is another one at {side} px than at {small} px: the stages would not agree",
                    f"Use one whose pieces divide {small} px, or stage I alone.",
                )

    def names(self) -> list[str]:
        """Return the models that there are."""
        return [name for name in (self.two, self.three) if name]

    def climb(
        self,
        first: Any,
        illusion: Illusion,
        images: Tensor,
        seeds: Sequence[int],
        settings: Settings,
        advance: Callable[[], None] | None = None,
    ) -> tuple[Tensor, int]:
        """Take pictures through the stages; return them and the number of steps that were taken.

        Args:
            first: The first model, which may lend its text encoder.
            illusion: What the pictures show.
            images: (B, 3, h, w) in [-1, 1].
            seeds: One per picture.
            settings: Those of the first stage; sampler, grid and guidance of stage III are its own.
            advance: Called after each step.
        """
        from diffkit.illusions import stages

        taken = 0

        def on_step(*_: Any) -> None:
            nonlocal taken
            taken += 1
            if advance is not None:
                advance()

        if self.two is not None:
            model = self._model(self.two, first)
            LOG.info("stage II: %s", self.two)
            images = stages.refine(
                model, illusion, images, seeds, above(settings), noise_level=self.noise_2, on_step=on_step
            )
        if self.three is not None:
            LOG.info("stage III: %s", self.three)
            own = Settings(steps=self.steps_3, negative=settings.negative, max_batch=settings.max_batch)
            images = stages.enlarge(
                self._model(self.three, first), illusion, images, seeds, own, mode=self.mode_3,
                noise_level=self.noise_3, on_step=on_step,
            )  # fmt: skip
        return images, taken

    def _model(self, name: str, first: Any) -> Any:
        if name not in self._loaded:
            from diffkit.models import load

            shared = {"prompts": first.prompts} if name == self.two and first.family == "deepfloyd" else {}
            self._loaded[name] = load(name, **self.options, **shared)
        return self._loaded[name]


def above(settings: Settings) -> Settings:
    """Return the settings of stage II: the first stage's, on its own grid."""
    return replace(settings, timesteps=None)


def planned_steps(ladder: Ladder, settings: Settings) -> list[dict[str, Any]]:
    """Return what `--dry-run` says of each stage: model, steps, parameters; no weights are read.

    Raises:
        ModelError: A stage is not there.
    """
    from diffkit.illusions.drawing import visits
    from diffkit.jobs.estimate import preview
    from diffkit.models.hub import open_repo

    found = []
    for name, how in ((ladder.two, above(settings)), (ladder.three, Settings(steps=ladder.steps_3))):
        if name is None:
            continue
        model = preview(open_repo(name))
        steps = len(visits(model, usual(model, how)))
        found.append({"model": name, "steps": steps, "parameters": model.parameters})
    return found
