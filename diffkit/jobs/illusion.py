"""What `anagram` and `hybrid` share: their fields, larger stages, and the search among seeds. No command of its own."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from diffkit.engine.settings import Settings, seeds_from
from diffkit.errors import UsageError
from diffkit.jobs.base import DEEPFLOYD
from diffkit.jobs.batch import Batch, Drawing, Drawn, Found, Row
from diffkit.jobs.fields import opt
from diffkit.jobs.guides import Guided, calls_of_guides, check_guides, cost_of_guides
from diffkit.jobs.shared import Eta, Many, Steps

if TYPE_CHECKING:
    from PIL import Image

    from diffkit.illusions.cascade import Cascade
    from diffkit.illusions.composition import Composition
    from diffkit.illusions.display import Display
    from diffkit.illusions.drawing import Prompted
    from diffkit.jobs.options import Watch
    from diffkit.types import Model, ModelInfo

LOG = logging.getLogger("diffkit.jobs")

VIEW_FILE = "view "  # before the name of a view's own file, among a picture's inputs


class Illusion(Many, Steps, Eta, Guided, hub=DEEPFLOYD):
    """A picture that shows a prompt, or a class, to each of several ways of looking."""

    per_picture: ClassVar[frozenset[str]] = frozenset({"negative_prompt", "guidance"})
    offers: ClassVar[frozenset[str]] = Many.offers | {"animate"}
    leading: ClassVar[tuple[str, ...]] = ("prompts", "views")
    paired: ClassVar[Mapping[str, tuple[str, ...]]] = {"prompts": ("p1", "p2"), "classes": ("c1", "c2")}
    sharing: ClassVar[tuple[str, ...]] = ("views", "latent")  # fields that `compose` takes

    prompts: Annotated[tuple[str, ...], opt("prompt", "p")] = Field(
        (), description="What to show, in words; once per view or part, in order."
    )
    classes: Annotated[tuple[str, ...], opt("class", "c")] = Field(
        (), description="Of models with classes: a name or number; once per view or part, in order."
    )
    views: Annotated[tuple[str, ...], opt("view")] = Field(
        (), description="How a prompt is seen; may be repeated. `diffkit views` lists them."
    )
    style: str | None = Field(None, description='Put before every prompt: "an oil painting of".')
    latent: Literal["auto", "direct", "decode"] = Field(
        "auto", description="Latent models: views act on latents, on the decoded picture, or as fits them."
    )
    best_of: int | None = Field(None, ge=1, le=4096, description="Try so many seeds, score each, keep the best.")
    scorer: str | None = Field(
        None,
        description="What scores: model (the one that draws), model:ID_OR_FOLDER, clip, clip:ID_OR_FOLDER or"
        " classifier:FILE; left out: model for anagrams by models that diffkit trained or of classes, else clip.",
    )
    model_2: Annotated[str | None, opt("model-2", "stage2")] = Field(
        None, description="Stage II of DeepFloyd IF: an id, a folder, or none."
    )
    model_3: Annotated[str | None, opt("model-3", "stage3")] = Field(
        None, description="Stage III, the x4 upscaler: an id, a folder, or none."
    )
    size: int | None = Field(None, description="64 (stage I alone), 256 (one stage more) or 1024 (two).")
    noise_2: int | None = Field(
        None, ge=0, le=999, description="Stage II: noise on the small picture that it sees; 50 timesteps."
    )
    noise_3: int = Field(
        0, ge=0, le=999, description="Stage III: noise on the small picture; more lets it change more."
    )
    steps_3: int | None = Field(None, ge=1, description="Stage III: sampling steps; 30 when left out.")
    mode_3: Literal["multiview", "first"] = Field(
        "multiview", description="Stage III is told all prompts, or for comparison the first one alone."
    )

    # --- what is shown, and to whom

    @classmethod
    def aliases(cls) -> dict[str, str]:
        """Return the options of two prompts or classes."""
        return {"p1": "The first prompt.", "p2": "The second.", "c1": "The first class.", "c2": "The second."}

    def check_fields(self) -> None:
        """Refuse an option without the one that it belongs to."""
        if self.size not in (None, 64, 256, 1024):
            raise UsageError(f"`size` {self.size}: choose 64, 256 or 1024", "It says how many stages are used.")
        if self.scorer is not None and self.best_of is None:
            raise UsageError(f"`scorer` {self.scorer}: there is nothing to choose from", "Give `best_of`.")

    @staticmethod
    def compose(prompts: int, **fields: Any) -> Composition:
        """Say how so many prompts share a picture, whatever they are.

        Raises:
            UsageError: Numbers that do not go together, or an unknown view or filter.
        """
        raise NotImplementedError

    @cached_property
    def composition(self) -> Composition:
        """How the prompts share the picture."""
        return self.compose(len(self.prompts or self.classes), **{key: getattr(self, key) for key in self.sharing})

    @cached_property
    def bare(self) -> list[str]:
        """One prompt or class per view or part; a single one is shown in every view."""
        words, count = list(self.prompts or self.classes), len(self.composition.views)
        return words * count if len(words) == 1 else words

    @cached_property
    def labels(self) -> list[str]:
        """The same behind the style, as the model gets them."""
        return [self.styled(word) for word in self.bare]

    def styled(self, prompt: str) -> str:
        """Put the style before a prompt."""
        return f"{self.style or ''} {prompt}".strip()

    def words(self) -> list[str]:
        return [word for word in (*map(self.styled, self.prompts), self.negative_prompt) if word]

    def rows(self, info: ModelInfo) -> list[Row]:
        """One picture per seed; it has several prompts."""
        return [Row(seed) for seed in seeds_from(self.seed, self.num)]

    def about(self) -> dict[str, Any]:
        """Say what the picture shows, every random view with its seed."""
        described = {"prompts": self.labels, **({"style": self.style} if self.style else {})}
        return {"illusion": {**described, **self.composition.describe()}}

    def inputs(self) -> dict[str, Path]:
        """Add the views' own files."""
        paths = [name.partition(":")[2] for name in self.views if name.startswith("permutation:")]
        return {**super().inputs(), **{f"{VIEW_FILE}{path}": Path(path) for path in paths}}

    # --- what is known before anything is drawn

    def defaults(self, info: ModelInfo) -> dict[str, Any]:
        """30 steps or what suits the model, and the sampler and guidance that suit several prompts in one picture."""
        from diffkit.illusions.drawing import filled

        own = filled(info, self.settings)
        guided = any(self.labels) and info.conditioning != "none"
        return {
            "steps": own.steps, "scheduler": own.scheduler, "guidance": info.illusion_guidance if guided else None,
        }  # fmt: skip

    @cached_property
    def cascade(self) -> Cascade:
        """The stages above the first."""
        from diffkit.illusions.cascade import Cascade, stages_for
        from diffkit.illusions.stages import NOISE_LEVEL

        two, three = stages_for(self.model or "", self.size, self.model_2, self.model_3)
        noise_2 = NOISE_LEVEL if self.noise_2 is None else self.noise_2
        return Cascade(two, three, noise_2, self.noise_3, self.steps_3, self.mode_3)

    def check(self, info: ModelInfo) -> None:
        """Refuse what the models cannot do, before any weights are read."""
        from diffkit.illusions.checks import check_fit

        check_fit(self.composition, info)
        if any(self.labels):
            self._check_prompts(info)
        if self.guides:
            check_guides(self, info)
        if self.style and not info.text:
            raise UsageError(f"`style` {self.style!r}: {info.id} knows no prompts", "Leave it out.")
        self.cascade.check(self.composition, info, self.size)
        if self.best_of is not None:
            if self.num > self.best_of:
                raise UsageError(
                    f"`best_of` {self.best_of} cannot give {self.num} pictures", f"Use {self.num} or more."
                )
            from diffkit.jobs.best_of import scorer_for

            scorer_for(self, info)

    def _check_prompts(self, info: ModelInfo) -> None:
        if info.conditioning == "none":
            raise UsageError(
                f"{info.id} is unconditional: it knows neither prompts nor classes",
                "Give another `model`; or, for what it would draw in every view, an empty `prompts` for each `views`.",
            )
        if bool(self.classes) == info.text:
            wants, has = ("prompts", "classes") if info.text else ("classes", "prompts")
            fields = "`p1` and `p2`" if info.text else "`c1` and `c2`"
            raise UsageError(f"{info.id} takes {wants}, and {has} were given", f"Give {fields}, or another `model`.")

    def notices(self, info: ModelInfo) -> list[str]:
        """Say that one prompt is shown in every view, what is approximate, and which parts are nearly empty."""
        from diffkit.illusions.checks import notes

        single = len(self.prompts or self.classes) < len(self.composition.views)
        views = ", ".join(view.spec for view in self.composition.views)
        said = [f"one prompt: it is shown in every view ({views})"] if single else []
        said += cost_of_guides(self, info, self.cascade.three) if self.guides else []
        return [*said, *notes(self.composition, info)]

    def extra_calls(self, info: ModelInfo, timesteps: Sequence[float], *, searching: bool = False) -> dict[str, int]:
        pixels = 0 if searching or not self.losses else self.cascade.steps_of_pixels(info, self.settings)
        return calls_of_guides(self, info, len(timesteps), pixels)

    def sampling_timesteps(self, info: ModelInfo) -> list[float]:
        from diffkit.illusions.drawing import make_scheduler
        from diffkit.jobs.sampling import numbers_of

        return numbers_of(make_scheduler(info, self.settings).timesteps)

    def stages(self, info: ModelInfo) -> list[dict[str, Any]]:
        return self.cascade.planned(info, self.settings)

    # --- drawing

    def prompted(self, model: Model, settings: Settings, seeds: Sequence[int]) -> Prompted:
        """Encode the prompts for a stage, and guide its network: one picture per seed, one condition per prompt."""
        from diffkit.illusions.drawing import Prompted
        from diffkit.models.conditioning import guide_each

        labels, above = self.labels, model.info.source == "small"
        if above and settings.guidance is None and any(labels):  # of the first stage it is filled in already
            settings = replace(settings, guidance=model.info.illusion_guidance)
        if above and model.info.latent and self.mode_3 == "first":
            labels = labels[:1]
        # Back through an upscaler's decoder, at 1024 px, it would take more memory than all else.
        guided = self.guides and not (above and model.info.latent)
        around = partial(self.steered, seeds=seeds) if guided else None
        return Prompted(*guide_each(model, labels, settings, len(seeds)), around)

    def draw(self, model: Model, batch: Batch) -> Drawing:
        """Draw one batch through all stages."""
        from diffkit.illusions.drawing import draw_steps, model_for
        from diffkit.jobs.sampling import counted
        from diffkit.pictures.tensors import from_tensor

        settings, shared, calls = batch.settings, self.composition, 0

        def prompted(stage: Model, how: Settings) -> Prompted:
            return self.prompted(stage, how, batch.seeds)

        images = yield from draw_steps(
            model_for(model, shared), shared, prompted(model, settings), settings, batch.generators
        )
        if self.cascade.names():
            upper = self.cascade.draw(model, shared, prompted, images, batch.seeds, settings)
            images, calls = yield from counted(upper)
        images = model.screen(images.to(model.device))[0].cpu()
        return Drawn(from_tensor(images), calls, shown=self.display.strips(images))

    @cached_property
    def display(self) -> Display:
        """How it is shown: views side by side, animations."""
        from diffkit.illusions.display import Display

        return Display.of(self.composition, self.bare)

    def animate(self, picture: Image.Image, path: Path, kind: str) -> Path:
        return self.display.write_animation(kind, picture, path)

    # --- the best of many seeds

    def batched(self) -> frozenset[str]:
        """Nothing is shared by pictures that a search has found."""
        return frozenset() if self.best_of else super().batched()

    def search(self, model: Model, seeds: list[int], batch_size: int, watch: Watch) -> Found | None:
        if self.best_of is None:
            return None
        from diffkit.jobs.best_of import best_of

        return best_of(self, model, seeds, batch_size, watch)

    def conditions(self, info: ModelInfo) -> int:
        """Return how many prompts a picture shows in one step: all of them, or where views take turns one."""
        return 1 if self.composition.reduce == "alternate" else len(self.labels)

    def search_calls(self, info: ModelInfo, batch_size: int) -> int:
        """Return how many network calls the search takes, those of the judge left out."""
        if self.best_of is None:
            return 0
        from diffkit.jobs.best_of import calls

        return calls(self, self.best_of, info, batch_size)

    def uncounted(self) -> dict[str, str]:
        """Say that the judge's calls are not known before."""
        own = self.best_of is not None and self.scorer in (None, "model")
        return {"uncounted": "what the scorer asks the model"} if own else {}
