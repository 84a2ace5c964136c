"""The search of anagrams and hybrids among seeds: what scores the candidates, what is searched, what it costs.

How candidates are drawn, dropped and ranked is in `diffkit.illusions.search`. No command of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from diffkit.engine.sampler_names import MEMORYLESS, canonical
from diffkit.errors import ModelError, UsageError
from diffkit.evaluation.scorers import check_judge, parse_scorer
from diffkit.illusions.contact_sheet import candidates_sheet
from diffkit.illusions.display import captions
from diffkit.illusions.drawing import model_for
from diffkit.illusions.halving import CUTS, halving_plan, network_calls
from diffkit.illusions.scoring import Scorer, score_matrix
from diffkit.illusions.search import Counted, Task, search
from diffkit.jobs.batch import Found
from diffkit.jobs.options import Watch
from diffkit.types import Model, ModelInfo

if TYPE_CHECKING:
    from diffkit.jobs.illusion import Illusion


def scorer_for(job: Illusion, info: ModelInfo) -> str:
    """Return what scores a job's candidates.

    Raises:
        UsageError: It does not know the prompts or classes.
        ModelError: It is not there.
    """
    # Of hybrids a model judges its own no better than chance: it has not learned blurred pictures.
    own = (not info.text or bool(info.record)) and job.composition.split is None
    name = (job.scorer or ("model" if own else "clip")).strip().removesuffix(":")
    if name == "model":
        check_judge(info, job.labels)
        return name
    if job.scorer is None and not info.text:
        raise UsageError(
            "`best_of` needs something that scores the classes of this model", "Give `scorer` classifier:FILE."
        )
    try:
        parse_scorer(name, prompts=job.labels)
    except ModelError as error:
        if job.scorer is not None:
            raise
        raise ModelError(
            f"`best_of` {job.best_of} has nothing to score with: without `scorer` it is CLIP, and {error.message}",
            f"{error.hint} Or give `scorer` clip:FOLDER, or classifier:FILE whose classes are the prompts, or for"
            f" anagrams model, the one that draws; or draw with `num` {job.best_of} and choose by eye.",
        ) from None
    return name


def task(job: Illusion, model: Model, scorer: Scorer) -> Task:
    """Return what is searched among: candidates by a model, judged by a scorer."""
    counted, settings = Counted(model), job.settings
    return Task(
        counted, model_for(counted, job.composition), job.composition,
        lambda seeds: job.prompted(counted, settings, seeds),
        lambda parts: score_matrix(scorer, parts, job.labels), scorer.tau, settings,
    )  # fmt: skip


def best_of(job: Illusion, model: Model, seeds: Sequence[int], batch_size: int, watch: Watch) -> Found:
    """Draw a job's candidates, and choose as many as there are seeds."""
    assert job.best_of is not None
    name = scorer_for(job, model.info)
    asked = Counted(model)  # what a model that judges its own pictures is asked
    scorer = parse_scorer(name, device=model.device, model=asked, max_batch=job.settings.max_batch)
    foretold = calls(job, job.best_of, model.info, batch_size)
    watch.begin(f"best of {job.best_of}", foretold)
    found = search(
        task(job, model, scorer), seeds, best_of=job.best_of, keep=len(seeds), batch_size=batch_size,
        on_step=watch.step,
    )  # fmt: skip
    watch.end()
    marks = {one.seed: {"scorer": name, **one.describe()} for one in found.best}
    # The winners are drawn once more, together, so that `replay` can draw them again bit for bit.
    saved = round(found.saved_if(redrawn=len(found.seeds)), 4)
    scores = {"scorer": name, **found.describe(), "saved": saved}
    if asked.calls:
        scores |= {"judge_calls": asked.calls, "judge_rows": asked.rows}
    sheet = candidates_sheet(found, job.composition, captions(job.composition, job.bare))
    return Found(found.seeds, scores, sheet, foretold + asked.calls, ("best_of", "scorer"), marks)


def calls(job: Illusion, candidates: int, info: ModelInfo, batch_size: int) -> int:
    """Return how many network calls a search takes, those of the judge left out."""
    name = canonical(job.scheduler) if job.scheduler else None
    cuts = CUTS if name is None or name in MEMORYLESS else ()
    plan = halving_plan(candidates, job.num, len(job.sampling_timesteps(info)), cuts)
    return network_calls(plan, batch_size)
