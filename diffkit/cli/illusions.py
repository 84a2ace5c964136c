"""What `anagram` and `hybrid` share: their options, and the plan of an illusion.

No command of its own.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from diffkit.cli.plan import Batch, Picked, Plan
from diffkit.cli.replay import VIEW_FILE
from diffkit.errors import ModelError, UsageError

if TYPE_CHECKING:
    from diffkit.illusions.cascade import Ladder
    from diffkit.illusions.drawing import Illusion

LOG = logging.getLogger("diffkit")

HUB = "DeepFloyd/IF-I-M-v1.0"
# Of the shared options these are one per picture; here each picture has several.
WITHOUT = ("prompt", "label")

Prompts = Annotated[
    list[str] | None, typer.Option("--prompt", "-p", help="What to show, in words; once per view or part, in order.")
]
Classes = Annotated[
    list[str] | None,
    typer.Option("--class", "-c", help="Of models with classes: a name or number; once per view or part, in order."),
]
Views = Annotated[
    list[str] | None, typer.Option("--view", help="How a prompt is seen; may be repeated. `diffkit views` lists them.")
]
Style = Annotated[str | None, typer.Option("--style", help='Put before every prompt: "an oil painting of".')]
Latent = Annotated[
    Literal["auto", "direct", "decode"],
    typer.Option("--latent", help="Latent models: views act on latents, on the decoded picture, or as fits them."),
]
BestOf = Annotated[
    int | None, typer.Option("--best-of", min=1, help="Try so many seeds, score each, and keep the best -n.")
]
Scorer = Annotated[
    str | None,
    typer.Option(
        "--scorer",
        help="What scores: model (the one that draws), model:ID_OR_FOLDER, clip, clip:ID_OR_FOLDER or classifier:FILE;"
        " left out: model for anagrams by models that diffkit trained or of classes, else clip.",
    ),
]
Second = Annotated[
    str | None, typer.Option("--model-2", "--stage2", help="Stage II of DeepFloyd IF: an id, a folder, or none.")
]
Third = Annotated[
    str | None, typer.Option("--model-3", "--stage3", help="Stage III, the x4 upscaler: an id, a folder, or none.")
]
Size = Annotated[
    int | None,
    typer.Option("--size", help="64 (stage I alone), 256 (one stage more) or 1024 (two)."),
]
NoiseSecond = Annotated[
    int | None,
    typer.Option("--noise-2", min=0, max=999, help="Stage II: noise on the small picture that it sees; 50 timesteps."),
]
NoiseThird = Annotated[
    int,
    typer.Option("--noise-3", min=0, max=999, help="Stage III: noise on the small picture; more lets it change more."),
]
StepsThird = Annotated[
    int | None, typer.Option("--steps-3", min=1, help="Stage III: sampling steps; 30 when left out.")
]
ModeThird = Annotated[
    Literal["multiview", "first"],
    typer.Option("--mode-3", help="Stage III hears all prompts, or for comparison the first one alone."),
]
Animate = Annotated[
    Literal["gif", "mp4"] | None, typer.Option("--animate", help="Write an animation of each picture, too.")
]


@dataclass(frozen=True)
class Upper:
    """The options of the stages above the first, as they were given."""

    model_2: str | None = None
    model_3: str | None = None
    size: int | None = None
    noise_2: int | None = None
    noise_3: int = 0
    steps_3: int | None = None
    mode_3: Literal["multiview", "first"] = "multiview"


def said(
    pairs: tuple[tuple[str | None, str | None], tuple[str | None, str | None]],
    prompts: list[str] | None,
    classes: list[str] | None,
) -> tuple[list[str | None], bool]:
    """Return the words of all prompts in order, and whether they are classes.

    Args:
        pairs: (--p1, --p2) and (--c1, --c2); None stands for a missing one beside the other.
        prompts: Of --prompt, after those.
        classes: Of --class, after those.

    Raises:
        UsageError: Prompts and classes at once.
    """
    found = []
    for first, more in zip(pairs, (prompts, classes), strict=True):
        own: list[str | None] = [] if first == (None, None) else list(first)
        found.append([*own, *(more or [])])
    if any(found[0]) and any(found[1]):
        raise UsageError("prompts and classes at once: a model takes the one or the other", "Leave one of them out.")
    return (found[1], True) if found[1] else (found[0], False)


def plan(
    illusion: Illusion,
    *,
    classes: bool,
    best_of: int | None,
    scorer: str | None,
    animate: str | None,
    upper: Upper,
    inputs: dict[str, Path | None] | None = None,
    free: bool = False,
) -> Plan:
    """Return the plan of an illusion.

    Args:
        illusion: What to draw.
        classes: Its prompts are classes.
        best_of: Seeds to try.
        scorer: What scores them.
        animate: gif or mp4.
        upper: The further stages.
        inputs: Files that went in.
        free: Nobody asked for this split: the model inside the package takes the one that suits its small pictures.

    Raises:
        UsageError: Options that do not go together.
    """
    from diffkit.illusions import drawing as task
    from diffkit.illusions.checks import about, space_of
    from diffkit.illusions.display import write_moving

    if upper.size not in (None, 64, 256, 1024):
        raise UsageError(f"--size {upper.size}: choose 64, 256 or 1024", "It says how many stages are used.")
    if scorer is not None and best_of is None:
        raise UsageError(f"--scorer {scorer}: there is nothing to choose from", "Give --best-of N.")
    job = _Job(illusion, classes, best_of, scorer, upper, animate, free)

    def say(model: Any, settings: Any) -> list[str]:
        return about(job.illusion, space_of(model))

    def move(made: list[tuple[Path, Any]]) -> dict[str, list[str]]:
        return write_moving(job.illusion, str(animate), made)

    own: Any = [view for view in illusion.views if hasattr(view, "digest")]
    files = {f"{VIEW_FILE}{view.path}": Path(view.path) for view in own}
    return Plan(
        job.draw, task.visits, {**(inputs or {}), **files}, say, words=[] if classes else illusion.labels(),
        about=job.about, before=job.before, pick=job.pick if best_of else None, further=job.further, later=job.later,
        batched=best_of is None, after=move if animate is not None else None,
    )  # fmt: skip


class _Job:
    """One illusion on its way from options to pictures."""

    def __init__(
        self, illusion: Illusion, classes: bool, best_of: int | None, scorer: str | None,
        upper: Upper, animate: str | None, free: bool,
    ) -> None:  # fmt: skip
        self.illusion, self.classes, self.best_of, self.scorer = illusion, classes, best_of, scorer
        self.upper, self.animate, self.free = upper, animate, free
        self.about: dict[str, Any] = {"illusion": illusion.describe()}
        self.ladder: Ladder | None = None

    def before(self, source: str, given: dict[str, Any]) -> None:
        """Refuse what the models cannot do, before any weights are read."""
        from diffkit.illusions.cascade import Ladder, stages_for
        from diffkit.illusions.checks import check_fit, space_in
        from diffkit.illusions.stages import NOISE_LEVEL
        from diffkit.models.hub import open_repo
        from diffkit.models.vocabulary import BUNDLED

        repo = open_repo(source, revision=given["revision"])
        space = space_in(repo)
        if source == BUNDLED and self.free:
            self._suit()
        if not (space.text or space.classes) and any(self.illusion.prompts):
            raise UsageError(
                f"{source} is unconditional: it knows neither prompts nor classes",
                "Give another --model; or, for what it would draw in every view, an empty --prompt for each --view.",
            )
        if self.classes == space.text and any(self.illusion.prompts):
            wants, has = ("prompts", "classes") if space.text else ("classes", "prompts")
            flags = "--p1 and --p2" if space.text else "--c1 and --c2"
            raise UsageError(f"{source} takes {wants}, and {has} were given", f"Give {flags}, or another --model.")
        check_fit(self.illusion, space)
        if self.animate == "mp4":
            from diffkit.pictures.mp4 import need_mp4

            need_mp4()
        upper = self.upper
        two, three = stages_for(source, upper.size, upper.model_2, upper.model_3)
        options = {key: given[key] for key in ("device", "dtype", "allow_pickle", "memory", "compile")}
        noise_2 = NOISE_LEVEL if upper.noise_2 is None else upper.noise_2
        self.ladder = Ladder(two, three, options, noise_2, upper.noise_3, upper.steps_3, upper.mode_3)
        self.ladder.check(self.illusion, space, upper.size)
        if self.best_of is not None:
            self._check_search(repo, space.text, given["num"])
        told = self.illusion
        if source == BUNDLED and told.split is not None and not any(" on " in prompt for prompt in told.prompts):
            LOG.info(
                "the small model draws hybrids best with prompts that leave a part open: %r from afar, %r from near",
                "a sign on a red heart", "the letter K on a shape",
            )  # fmt: skip

    def _suit(self) -> None:
        """Take the split and the guidance that suit the small pictures of the model inside the package."""
        from diffkit.illusions.filters import parse_filter
        from diffkit.jobs.hybrid import SMALL_GUIDANCE, SMALL_SPLIT

        self.illusion = replace(self.illusion, split=parse_filter(SMALL_SPLIT), guidance=SMALL_GUIDANCE)
        self.about["illusion"] = self.illusion.describe()
        LOG.info("no --split: %s suits the small model, and guidance %g", SMALL_SPLIT, SMALL_GUIDANCE)

    def _check_search(self, repo: Any, text: bool, num: int) -> None:
        from diffkit.evaluation.scorers import check_judge, parse_scorer

        assert self.best_of is not None
        if num > self.best_of:
            raise UsageError(f"--best-of {self.best_of} cannot give -n {num} pictures", f"Use --best-of {num} or more.")
        labels, asked = self.illusion.labels(), self.scorer
        # Of hybrids a model judges its own no better than chance: it has not learned blurred pictures.
        own = (not text or repo.has("diffkit.json")) and self.illusion.split is None
        self.scorer = (asked or ("model" if own else "clip")).strip().removesuffix(":")
        if self.scorer == "model":
            check_judge(repo, labels)
            return
        if asked is None and not text:
            raise UsageError(
                "--best-of needs something that scores the classes of this model", "Give --scorer classifier:FILE."
            )
        try:
            parse_scorer(self.scorer, prompts=labels)
        except ModelError as error:
            if asked is not None:
                raise
            raise ModelError(
                f"--best-of {self.best_of} has nothing to score with: without --scorer it is CLIP, and {error.message}",
                f"{error.hint} Or give --scorer clip:FOLDER, --scorer classifier:FILE whose classes are the prompts, or"
                f" for anagrams --scorer model, the one that draws; or draw -n {self.best_of} and choose by eye.",
            ) from None

    def draw(self, model: Any, batch: Batch) -> Any:
        """Draw one batch through all stages."""
        from diffkit.illusions import drawing as task
        from diffkit.illusions.display import strips
        from diffkit.jobs.edit import Edit, pictures_of
        from diffkit.jobs.sample import takes_prompts

        assert self.ladder is not None
        images = task.draw(model, self.illusion, batch.seeds, batch.settings, batch.on_step)
        settings = task.usual(model, batch.settings)
        images, more = self.ladder.climb(model, self.illusion, images, batch.seeds, settings, batch.advance)
        if takes_prompts(model):
            images = model.screen(images.to(model.device))[0].cpu()
        visited = task.visits(model, batch.settings)
        return Edit(pictures_of(images), visited, len(visited) + more, shown=strips(self.illusion, images))

    def pick(self, model: Any, settings: Any, seeds: list[int], batch_size: int) -> Picked:
        """Search for the best seeds."""
        from diffkit.cli.progress import Bar
        from diffkit.evaluation.scorers import parse_scorer
        from diffkit.illusions.contact_sheet import contact_sheet
        from diffkit.illusions.drawing import visits
        from diffkit.illusions.search import Counted, search

        assert self.best_of is not None
        assert self.scorer is not None
        asked = Counted(model)  # what a model that judges its own pictures is asked
        judge = parse_scorer(self.scorer, device=model.device, model=asked, max_batch=settings.max_batch)
        calls = self._search_calls(settings, len(visits(model, settings)), len(seeds), batch_size)
        with Bar(f"best of {self.best_of}", calls) as bar:
            found = search(
                model, self.illusion, seeds, settings, judge, best_of=self.best_of, keep=len(seeds),
                batch_size=batch_size, on_step=bar.advance,
            )  # fmt: skip
        told = {one.seed: {"scorer": self.scorer, **one.describe()} for one in found.best}
        sheet = contact_sheet(found, self.illusion)
        # The winners are drawn once more, together, so that `replay` can draw them again bit for bit.
        saved = round(found.saved_if(redrawn=len(found.seeds)), 4)
        scores = {"scorer": self.scorer, **found.describe(), "saved": saved}
        if asked.calls:
            scores |= {"judge_calls": asked.calls, "judge_rows": asked.rows}
        return Picked(found.seeds, scores, sheet, calls + asked.calls, ("best_of", "scorer"), told)

    def _search_calls(self, settings: Any, steps: int, keep: int, batch_size: int) -> int:
        from diffkit.engine.samplers import MEMORYLESS, canonical
        from diffkit.illusions.search import CUTS, network_calls, rounds

        assert self.best_of is not None
        name = canonical(settings.scheduler) if settings.scheduler else None
        cuts = CUTS if name is None or name in MEMORYLESS else ()
        return network_calls(rounds(self.best_of, keep, steps, cuts), batch_size)

    def further(self, settings: Any) -> int:
        """Steps of the further stages for each batch, about."""
        from diffkit.illusions.drawing import STEPS

        assert self.ladder is not None
        return len(self.ladder.names()) * (settings.steps or STEPS)

    def later(self, settings: Any, count: int, batch_size: int, steps: int) -> dict[str, Any]:
        """What `--dry-run` adds: the further stages, and the search."""
        from diffkit.illusions.cascade import planned_steps
        from diffkit.jobs.sample import batches

        assert self.ladder is not None
        stages = planned_steps(self.ladder, settings)
        calls = len(batches(count, batch_size)) * sum(stage["steps"] for stage in stages)
        if self.best_of:
            calls += self._search_calls(settings, steps, count, batch_size)
        own = {"uncounted": "what the scorer asks the model"} if self.best_of and self.scorer == "model" else {}
        return {"unet_calls": calls, **({"stages": stages} if stages else {}), **own}
