"""`diffkit sample`: pictures from noise, of a class, a prompt, or freely."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import Field

from diffkit.engine.settings import seeds_from
from diffkit.errors import UsageError
from diffkit.jobs.base import STABLE_DIFFUSION, arg
from diffkit.jobs.batch import Batch, Drawing, Drawn, Row
from diffkit.jobs.choose import DEFAULT_RUN, default_run
from diffkit.jobs.fields import opt
from diffkit.jobs.guides import Guided
from diffkit.jobs.shared import MOST_PICTURES, Batched, Eta, Grid, check_label
from diffkit.models.classes import class_label
from diffkit.types import Model, ModelInfo, Step

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from diffkit.models import LoadOptions

# What the model that ships with diffkit draws where nothing is asked for.
EXAMPLES = ("a red heart", "a handwritten three", "the letter R", "a green tree", "the blue letter K", "an orange star")


class Sample(Batched, Grid, Eta, Guided, name="sample", hub=STABLE_DIFFUSION):
    """Draw pictures from noise: of a class (`--class all` draws one of each) or a prompt, as the model takes them.

    Sources: Ho et al., arXiv:2006.11239; Song et al., arXiv:2010.02502.
    """

    per_picture: ClassVar[frozenset[str]] = frozenset({"classes", "prompt", "negative_prompt", "guidance"})
    offers: ClassVar[frozenset[str]] = Grid.offers | {"columns"}
    cell_side: ClassVar[int] = 64

    model: Annotated[str | None, arg("[MODEL]")] = Field(
        None,
        description="A run's or model's folder, or a Hub id; when left out runs/digits if there, else the model that"
        " ships with diffkit.",
    )
    classes: Annotated[tuple[str, ...] | None, opt("class", "c")] = Field(
        None, description="A class by name or number; may be repeated, or a,b,c."
    )
    prompt: Annotated[tuple[str, ...] | None, opt("prompt", "p")] = Field(
        None, description="What to draw, in words; may be repeated."
    )
    stop_noise_after: Annotated[int | None, opt(metavar="N")] = Field(
        None, ge=0, description="No fresh noise after N steps."
    )
    states: Annotated[int | None, opt(metavar="N")] = Field(
        None, ge=1, description="On the sheet the first picture at every N-th step, and below it what it was to be."
    )
    num: Annotated[int | None, opt("num", "n")] = Field(
        None, ge=1, le=MOST_PICTURES, description="How many pictures; one per class when left out."
    )
    batch_size: int = Field(64, ge=1, le=4096, description="Pictures per batch.")
    raw: Annotated[bool, opt("raw/ema")] = Field(
        False, description="A run's last weights, in place of their moving average."
    )

    @classmethod
    def fold(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Take one prompt or class for several, and classes by number."""
        folded = super().fold(values)
        if "label" in folded:  # what a sweep of earlier versions wrote
            folded.setdefault("classes", (folded.pop("label"),))
        for key in ("classes", "prompt"):
            if isinstance(given := folded.get(key), (str, int)):
                folded[key] = (str(given),)
            elif isinstance(given, tuple):
                folded[key] = tuple(str(one) if isinstance(one, int) else one for one in given)
        return folded

    def words(self) -> list[str]:
        return [*(self.prompt or ()), *super().words()]

    def default_model(self, words: Sequence[str]) -> str:
        """Ask for a model where classes are wanted and the default recipe's run is not there."""
        if self.classes and not self.prompt and not default_run():
            raise UsageError(
                f"no model is named, and there is no {DEFAULT_RUN}",
                "Run `diffkit train` first, give a folder or a Hub id, or a `prompt` in place of the class.",
            )
        return super().default_model(words)

    def example(self) -> tuple[dict[str, Any], str] | None:
        """Draw some of what the small model knows, where it was not asked for by name."""
        if self.model is not None or self.words() or self.classes:
            return None
        return {"prompt": EXAMPLES}, ", ".join(EXAMPLES)

    def label_for(self, info: ModelInfo) -> str | None:
        """Return the first prompt or class that is none of the empty ones."""
        return next((label for label in self.labels(info) if label), None)

    def labels(self, info: ModelInfo) -> list[str | None]:
        """Return what was asked for: prompts, or classes in the model's own spelling; [None] where nothing was."""
        if info.text:
            return [*(self.prompt or [None])]
        wanted: list[str] = []
        for entry in self.classes or ():
            if entry in info.classes:  # a name may hold a comma
                wanted.append(entry)
            elif entry == "all":
                wanted += info.classes
            else:
                wanted += [part.strip() for part in entry.split(",") if part.strip()]
        return [info.classes[class_label(name, info)] for name in wanted] or [None]

    def defaults(self, info: ModelInfo) -> dict[str, Any]:
        """Add the number of pictures: one of each class or prompt."""
        return {**super().defaults(info), "num": len(self.labels(info))}

    def fitted(self, info: ModelInfo) -> Self:
        """Spell classes as the model does."""
        self.check(info)
        named = [label for label in self.labels(info) if label is not None]
        job = self.filled({"classes": tuple(named)}) if self.classes and not info.text else self
        return super(Sample, job).fitted(info)

    def check(self, info: ModelInfo) -> None:
        """Refuse a class for a model of prompts, a prompt for a model of classes, and unknown classes."""
        super().check(info)
        first = (self.classes or (None,))[0]
        if first == "all" and not info.text:
            if not info.classes:
                raise UsageError("`classes` all: this model is unconditional and has no classes", "Leave it out.")
            first = None
        prompt = (self.prompt or (None,))[0]
        if info.text or prompt is not None or not info.classes:
            check_label(info, prompt, first, "classes")
        self.labels(info)
        if info.one_step:
            self._check_one_step()

    def _check_one_step(self) -> None:
        asked = (
            self.scheduler,
            self.steps,
            self.spacing,
            self.shift,
            self.timesteps,
            self.stop_noise_after,
            self.guidance_interval,
        )
        if any(value is not None for value in asked) or self.eta:
            raise UsageError(
                "this model is a one-step denoiser: it has no sampling steps to choose",
                "Leave `scheduler`, `steps`, `spacing`, `shift`, `timesteps`, `eta`, `stop_noise_after`,"
                " `guidance_interval` out.",
            )

    def loading(self) -> LoadOptions:
        """Add which weights of a run are read."""
        return replace(super().loading(), raw=self.raw)

    def rows(self, info: ModelInfo) -> list[Row]:
        """Return one picture per seed, classes and prompts in turn."""
        labels = self.labels(info)
        seeds = seeds_from(self.seed, self.num or len(labels))
        return [Row(seed, labels[k % len(labels)]) for k, seed in enumerate(seeds)]

    def columns(self) -> int | None:
        """Return one column per class or prompt."""
        several = len(self.prompt or self.classes or ())
        return several if several > 1 else None

    def notices(self, info: ModelInfo) -> list[str]:
        """Say what a one-step denoiser does."""
        line = "a one-step denoiser is asked once, about pure noise: its answer is near the mean of the data"
        return [*super().notices(info), *([line] if info.one_step else [])]

    def sampling_timesteps(self, info: ModelInfo) -> list[float]:
        """Return those of the grid; [0] for a one-step denoiser."""
        return [0] if info.one_step else super().sampling_timesteps(info)

    def draw(self, model: Model, batch: Batch) -> Drawing:
        """Draw one picture per seed."""
        from diffkit.jobs.sampling import take
        from diffkit.models.conditioning import finished
        from diffkit.pictures.tensors import from_tensor

        sheet: list[tuple[str, Image.Image]] = []
        x = yield from take(self.steps_of(model, batch, sheet))
        return Drawn(from_tensor(finished(model, x)), sheet=sheet)

    def _shown(
        self, steps: Iterator[Step], model: Model, sheet: list[tuple[str, Image.Image]], clean: Callable[[], Tensor]
    ) -> Iterator[Step]:
        """Pass steps on; put the first picture's state after every N-th on the sheet, its estimate of x0 below.

        Of schedulers that do not give that estimate `clean` does.
        """
        import torch

        from diffkit.engine.levels import timestep_text
        from diffkit.pictures.tensors import from_tensor

        for step in steps:
            if self.states is not None and (step.index % self.states == 0 or step.index + 1 == step.total):
                estimate = clean() if step.x0 is None else step.x0
                with torch.no_grad():
                    parts = [model.codec.decode(x[:1]).float().cpu() for x in (step.x, estimate)]
                sheet.append((timestep_text(model.scheduler, step.t), from_tensor(torch.cat(parts, dim=2))[0]))
            yield step

    def steps_of(
        self, model: Model, batch: Batch, sheet: list[tuple[str, Image.Image]] | None = None
    ) -> Iterator[Step]:
        """Draw one batch, step by step; put what `states` asks for on the sheet.

        A one-step denoiser is asked once, about pure noise: what it answers is the mean of the data.
        """
        import torch

        from diffkit.engine.estimates import Remembered
        from diffkit.engine.sampling import denoise, pure_noise
        from diffkit.jobs.sampling import make_scheduler
        from diffkit.models.conditioning import conditioned

        random, settings, sheet = batch.generators, batch.settings, [] if sheet is None else sheet
        noise = model.noise(random)
        net, cond = conditioned(model, batch.labels, settings)
        if model.info.one_step:
            t = torch.zeros((), dtype=torch.long)
            with torch.no_grad():
                out = net(noise, t, cond).out
            yield from self._shown(iter([Step(0, 1, t, out, out)]), model, sheet, lambda: out)
            return
        # A new scheduler: a multistep solver remembers the batch before.
        scheduler = make_scheduler(model.scheduler, settings)
        asked = Remembered(self.steered(net, model, scheduler, batch.seeds))
        steps = denoise(
            asked, pure_noise(scheduler, noise), scheduler, cond,
            generators=random, eta=settings.eta, stop_noise_after=settings.stop_noise_after,
        )  # fmt: skip
        yield from self._shown(steps, model, sheet, lambda: asked.clean(scheduler))
