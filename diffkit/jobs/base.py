"""A picture command is a job: one frozen pydantic model that says what a picture is.

Its fields are the command's options, the Python function's arguments, what a PNG remembers, what `replay` validates and
what a sweep varies. How a job becomes files is in `run.py`; how the command line calls the fields, in `diffkit.cli`.
Importing this module imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from diffkit.engine.settings import Settings, check_settings, interval, without_effect
from diffkit.errors import UsageError, did_you_mean
from diffkit.jobs.batch import Row
from diffkit.jobs.choose import default_model
from diffkit.jobs.fields import ONE_SIDE, Option, explain, opt, size_of
from diffkit.jobs.fields import arg as arg
from diffkit.jobs.hooks import Hooks
from diffkit.models.options import LoadOptions
from diffkit.models.vocabulary import bundled_tokens, unknown_words

if TYPE_CHECKING:
    from diffkit.jobs.options import Again, Run
    from diffkit.jobs.output import Result
    from diffkit.types import ModelInfo

STABLE_DIFFUSION = "stable-diffusion-v1-5/stable-diffusion-v1-5"
DEEPFLOYD = "DeepFloyd/IF-I-M-v1.0"

J = TypeVar("J", bound="Job")


class Job(BaseModel):
    """Base of all jobs: what follows from the fields.

    Attributes:
        name: The command's name.
        hub: The model that is used where none is named and the one inside the package does not do.
        offers: Fields of `Run` that have a meaning for it.
        leading: Fields that come first, though another class gives them.
        renamed: Names that stand for fields: what Python calls shorter, and what older pictures say.
        paired: By field, names whose values are put before its entries: `p1` and `p2` before `prompts`. Two such fields
            exclude each other.
        gaps: Whether a later one of those may be given without the one before it.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, arbitrary_types_allowed=True,
        protected_namespaces=("model_dump", "model_validate"),  # pydantic 2.9 would warn of the field `model_2`
    )  # fmt: skip

    name: ClassVar[str] = ""
    hub: ClassVar[str] = STABLE_DIFFUSION
    offers: ClassVar[frozenset[str]] = frozenset({"out"})
    renamed: ClassVar[Mapping[str, str]] = {"n": "num"}
    leading: ClassVar[tuple[str, ...]] = ()
    paired: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    gaps: ClassVar[bool] = False

    def __init_subclass__(cls, *, name: str = "", hub: str = "", **more: Any) -> None:
        """Take the command's name and its Hub model as class arguments."""
        super().__init_subclass__(**more)
        cls.name, cls.hub = name or cls.name, hub or cls.hub

    @classmethod
    def aliases(cls) -> dict[str, str]:
        """Return options of the command line that are no fields but are folded into one, with their help: --p1."""
        return {}

    @classmethod
    def fold(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return values under the names of fields; lists become tuples."""
        folded = {cls.renamed.get(key, key): value for key, value in values.items()}
        folded = {key: tuple(v) if isinstance(v, list) else v for key, v in folded.items()}
        used = [k for k, names in cls.paired.items() if any(folded.get(n) not in (None, ()) for n in (k, *names))]
        if len(used) > 1:
            raise UsageError(
                f"{' and '.join(used)} at once: a model takes the one or the other", "Leave one of them out."
            )
        for field_, names in cls.paired.items():
            given = [name for name in names if folded.get(name) is not None]
            if given and not cls.gaps and given != list(names[: len(given)]):
                raise UsageError(f"`{given[-1]}` without `{names[0]}`", f"Give both, or `{names[0]}` alone.")
            values_of = [folded.pop(name) for name in names if name in folded]
            first = tuple(value for value in values_of if value is not None)
            if first:
                folded[field_] = first + tuple(folded.get(field_) or ())
        return folded

    def model_post_init(self, context: Any) -> None:
        """Check what no single field can say."""
        self.check_fields()

    def check_fields(self) -> None:
        """Do nothing if the fields go together.

        Raises:
            UsageError: They contradict each other, or are out of range.
            DataError: An image that cannot be read.
        """

    def revised(self, changes: Mapping[str, Any]) -> Self:
        """Return the job with other values, validated as if they had been given."""
        return build(type(self), {**self.given(), **changes})

    def filled(self, changes: Mapping[str, Any]) -> Self:
        """Return the job with values of the program's own choice, of the right types; None changes nothing."""
        chosen = {key: value for key, value in changes.items() if value is not None}
        fields = {key: getattr(self, key) for key in type(self).model_fields}
        return cast("Self", type(self).model_construct(self.model_fields_set | set(chosen), **(fields | chosen)))

    def given(self) -> dict[str, Any]:
        """Return the fields that were given, as they are."""
        return {key: getattr(self, key) for key in type(self).model_fields if key in self.model_fields_set}

    def execute(self, options: Run, again: Again) -> Result | None:
        """Do all the work of a job that needs no model; None for one that draws with a model."""
        return None

    def inputs(self) -> dict[str, Path]:
        """Return the files that go in, by field; their hashes go into the picture's metadata."""
        files = {key: getattr(self, key) for key in type(self).model_fields}
        return {key: value for key, value in files.items() if isinstance(value, Path)}

    @classmethod
    def own_fields(cls) -> list[str]:
        """Return the fields in the order of the help: arguments, the command's own options, then those it shares."""
        first = cls.first_fields()
        rest = [key for key in cls.model_fields if key not in first]
        return first + sorted(rest, key=lambda key: key in PictureJob.__annotations__)

    @classmethod
    def first_fields(cls) -> list[str]:
        """Return arguments and the command's own options: what Python takes by position, too."""
        fields = cls.model_fields
        found = [k for k, info in fields.items() if any(isinstance(m, Option) and m.argument for m in info.metadata)]
        found += cls.leading
        return found + [key for key in cls.__annotations__ if key in fields and key not in found]

    def arguments(self) -> dict[str, Any]:
        """Return the fields as a picture's metadata has them: what is set, in JSON's types."""
        kept = {}
        dumped = self.model_dump(mode="json")
        for key, info in type(self).model_fields.items():
            value = dumped[key]
            shared = key not in type(self).__annotations__
            if value in (None, False) or (shared and value == info.default and key not in ("seed", "num")):
                continue
            kept[key] = value
        return kept


class PictureJob(Job, Hooks):
    """Base of the commands that draw with a model."""

    offers: ClassVar[frozenset[str]] = frozenset({"out", "gif", "device", "dry_run", "allow_pickle", "sweep"})

    model: Annotated[str | None, opt("model", "m")] = Field(
        None, description="A Hub id or a folder: a pipeline, or a run of `diffkit train`."
    )
    revision: str | None = Field(None, description="The model's revision on the Hub.")
    variant: str | None = Field(None, description="The model's weight variant, for example fp16.")
    resolution: Annotated[str | None, ONE_SIDE, opt(metavar="WIDTHxHEIGHT")] = Field(
        None, description="Pixels of its pictures, 768x512 or 512, of models that draw other sizes, too."
    )
    negative_prompt: str | None = Field(None, description="What to stay away from, in words.")
    guidance: Annotated[float | None, opt("guidance", "g")] = Field(
        None, description="Classifier-free guidance: 0 unconditional, 1 conditional, above 1 guided."
    )
    guidance_interval: Annotated[str | None, opt(metavar="START:STOP")] = Field(
        None, description="Guide these noise levels only; 0 is noise, 1 the picture."
    )
    scheduler: str | None = Field(None, description="The sampler: ddpm, ddim, dpmsolver++, euler, ...")
    seed: int = Field(0, ge=0, le=2**63 - 1, description="Seed of the first picture; the next has seed + 1.")
    dtype: Literal["auto", "fp32", "fp16", "bf16"] = Field("auto", description="The weights' type; auto: by device.")
    memory: Literal["auto", "low", "lowest"] = Field(
        "auto", description="How hard to save memory, at the price of time."
    )
    max_batch: int | None = Field(None, ge=1, description="Most images in one network call; larger batches are split.")
    compile: bool = Field(False, description="Compile the network first: a slow start, then faster; for many pictures.")
    no_safety_checker: bool = Field(False, description="Do not judge the pictures of models that come with a checker.")

    def model_post_init(self, context: Any) -> None:
        """Refuse settings that no model could take, and fields that do not go together."""
        check_settings(self.settings)
        self.picture_size()
        self.check_fields()

    def picture_size(self) -> tuple[int, int] | None:
        """Return (height, width) of the pictures that were asked for; None for the model's own.

        Raises:
            UsageError: It is no size.
        """
        return None if self.resolution is None else size_of(self.resolution, "resolution")

    def words(self) -> list[str]:
        """Return all prompts, negative ones included: the default model depends on them, and they are encoded early."""
        return [self.negative_prompt] if self.negative_prompt else []

    def label_for(self, info: ModelInfo) -> str | None:
        """Return the class or prompt of its pictures, as the model takes it; None for none."""
        return None

    @cached_property
    def settings(self) -> Settings:
        """How pictures are drawn, as the engine takes it; of fields that a command does not have the defaults."""
        same = ("scheduler", "steps", "spacing", "shift", "eta", "stop_noise_after", "guidance", "max_batch")
        own = {key: getattr(self, key) for key in same if key in type(self).model_fields}
        return Settings(negative=self.negative_prompt, interval=interval(self.guidance_interval), **own)

    def default_model(self, words: Sequence[str]) -> str:
        """Return the model that draws where none is named; `words` are the prompts of all combinations."""
        return default_model(self.hub, bool(words), unknown_words(" ".join(words), bundled_tokens()))

    def example(self) -> tuple[dict[str, Any], str] | None:
        """Return what the model inside the package is to draw where nobody says, and how that is said."""
        return None

    def loading(self) -> LoadOptions:
        """Return how the model is loaded, as far as the job says."""
        safety = "off" if self.no_safety_checker else "auto"
        return LoadOptions(variant=self.variant, memory=self.memory, compile=self.compile, safety=safety)

    def defaults(self, info: ModelInfo) -> dict[str, Any]:
        """Return what suits the model of what may be left out: guidance, sampler, steps."""
        if info.one_step:
            return {}
        from diffkit.engine.samplers import default_sampler

        prompted = bool(self.label_for(info) or self.negative_prompt) and info.conditioning != "none"
        return {
            "scheduler": default_sampler(info.scheduler),
            "guidance": info.guidance if prompted and self.unguided() is None else None,
        }

    def assumed(self, info: ModelInfo) -> list[str]:
        """Return what is to be said of defaults that are about to be filled in."""
        return []

    def fitted(self, info: ModelInfo) -> Self:
        """Return the job with what was left out filled in as it suits the model; so its pictures remember it."""
        missing = {key: value for key, value in self.defaults(info).items() if getattr(self, key) is None}
        return self.filled({**missing, "model": info.id})

    def check(self, info: ModelInfo) -> None:
        """Do nothing if the model can draw this; called before its weights are read.

        Raises:
            UsageError: It cannot.
        """

    def rows(self, info: ModelInfo) -> list[Row]:
        """Return the pictures to draw, in order."""
        return [Row(self.seed)]

    def sampling_timesteps(self, info: ModelInfo) -> list[float]:
        """Return the timesteps of one batch, one per network call: those of the grid."""
        from diffkit.jobs.sampling import make_scheduler, numbers_of

        return numbers_of(make_scheduler(info.scheduler, self.settings).timesteps)

    def warnings(self) -> list[str]:
        """Return what has no effect or not the effect that was meant; said even where notices are not."""
        found = [line] if (line := without_effect(self.settings)) and self.unguided() is None else []
        if (why := self.unguided()) is not None:
            silent = [key for key in ("guidance", "guidance_interval", "negative_prompt") if getattr(self, key)]
            found += [f"{why}: no effect of {', '.join(f'`{key}`' for key in silent)}"] if silent else []
        return found

    def unguided(self) -> str | None:
        """Return why nothing is guided, where nothing is."""
        return None


def build(cls: type[J], values: Mapping[str, Any]) -> J:
    """Make a job of values as the command line, Python, a picture's metadata or a sweep give them: the only door.

    Raises:
        UsageError: An unknown name, or a value of the wrong type or out of range; the message names the argument.
        DataError: An image that was never in a file.
    """
    folded = cls.fold({key: value for key, value in values.items() if value is not None})
    unknown = [key for key in folded if key not in cls.model_fields]
    if unknown:
        raise UsageError(f"{cls.name} has no option `{unknown[0]}`", did_you_mean(unknown[0], cls.model_fields))
    try:
        return cls.model_validate(folded)
    except ValidationError as error:
        raise explain(error, cls.model_fields) from None
