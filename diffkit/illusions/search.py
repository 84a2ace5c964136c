"""The best of many seeds: illusions are sampled, scored view by view, dropped early where they fail, and the best kept.

Holds the search; its plan is in `halving.py`, what is drawn in `drawing.py`, how it is judged in
`scoring.py`, the contact sheet in `contact_sheet.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diffkit.engine.estimates import Remembered
from diffkit.engine.samplers import is_memoryless
from diffkit.engine.sampling import denoise, generators, pure_noise
from diffkit.engine.settings import Settings
from diffkit.illusions.composition import Composition
from diffkit.illusions.drawing import (
    Prompted,
    finished_pictures,
    make_scheduler,
    reference_constraint,
    shared_net,
)  # fmt: skip
from diffkit.illusions.halving import CUTS, Stretch, candidate_seeds, halving_plan
from diffkit.illusions.scoring import alignment, concealment
from diffkit.models.base import WrappedModel
from diffkit.types import Cond, Model, Prediction, Step

LOG = logging.getLogger("diffkit.illusions")


@dataclass(frozen=True)
class Candidate:
    """One seed that was tried.

    Attributes:
        seed: Its seed.
        image: (C, H, W) fp32 on the CPU in [-1, 1]: the picture, or the last clean estimate of one that was dropped.
        matrix: (V, V), similarity of view i with prompt j.
        alignment: A, that of the worst aligned view.
        concealment: C in (0, 1].
        steps: Steps that were taken.
        dropped: It was not drawn to the end.
    """

    seed: int
    image: Tensor
    matrix: Tensor
    alignment: float
    concealment: float
    steps: int
    dropped: bool = False

    def describe(self) -> dict[str, Any]:
        """What `--json` and the metadata say of it."""
        scores = [[_short(v) for v in row] for row in self.matrix.tolist()]
        return {"seed": self.seed, "A": _short(self.alignment), "C": _short(self.concealment), "matrix": scores,
                "steps": self.steps, "dropped": self.dropped}  # fmt: skip


def _short(score: float) -> float:
    """To five digits that count: what a measure tells candidates apart by may be small."""
    return float(f"{score:.5g}")


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        images: The kept pictures, best first, (K, C, H, W).
        best: The kept candidates, best first.
        tried: All candidates, in the order of their seeds.
        steps: Steps of one whole picture.
        rows: Rows that went through the network: pictures x views x guidance, summed over all steps.
    """

    images: Tensor
    best: tuple[Candidate, ...]
    tried: tuple[Candidate, ...]
    steps: int
    rows: int

    @property
    def seeds(self) -> list[int]:
        """The kept seeds, best first."""
        return [one.seed for one in self.best]

    @property
    def saved(self) -> float:
        """The share of picture steps that early rejection left out."""
        return self.saved_if()

    def saved_if(self, redrawn: int = 0) -> float:
        """The same, where so many pictures are drawn once more; below 0 where that costs more than it saves."""
        drawn = sum(one.steps for one in self.tried) + self.steps * redrawn
        return 1.0 - drawn / (self.steps * len(self.tried))

    def describe(self) -> dict[str, Any]:
        """What `--json` and the metadata say of the search."""
        return {"best": self.seeds, "rows": self.rows, "saved": round(self.saved, 4),
                "tried": [one.describe() for one in self.tried]}  # fmt: skip


class Counted(WrappedModel):
    """A model that counts its network's calls and the rows of them."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.calls = self.rows = 0

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        """Predict as the inner model does, and count."""
        self.calls, self.rows = self.calls + 1, self.rows + x.shape[0]
        return self.inner(x, t, cond)


@dataclass(frozen=True)
class Task:
    """What is searched among: how a candidate is drawn, and how it is judged.

    Attributes:
        counted: The loaded model.
        model: What `drawing.model_for` makes of it.
        composition: How the prompts share a picture.
        prompted: From the pictures' seeds to the guided network and the conditions.
        judge: From the pictures as each prompt's judge looks at them to the matrices (B, V, V) of views against
            prompts.
        tau: The temperature of the judge's similarities.
        settings: How pictures are drawn.
    """

    counted: Counted
    model: Model
    composition: Composition
    prompted: Callable[[Sequence[int]], Prompted]
    judge: Callable[[Sequence[Tensor]], Tensor]
    tau: float
    settings: Settings

    def rate(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Score pictures (B, C, H, W) in [-1, 1]: the matrices (B, V, V), A (B,) and C (B,)."""
        matrix = self.judge(self.composition.shown(images.clamp(-1, 1)))
        return matrix, alignment(matrix), concealment(matrix, self.tau)


def search(
    task: Task,
    seeds: Sequence[int],
    *,
    best_of: int,
    keep: int = 1,
    cuts: Sequence[float] = CUTS,
    batch_size: int = 64,
    on_step: Callable[[Step, range], None] | None = None,
) -> Found:
    """Draw many seeds and keep the best by their A, and by C among equals.

    A picture is the same as if its seed were drawn alone. Samplers that build on earlier steps cannot stop in the
    middle: with these all candidates are drawn to the end.

    Args:
        task: What is drawn, and how it is judged.
        seeds: The first seeds to try; more follow, counted on from the last one.
        best_of: How many seeds are tried.
        keep: How many are kept.
        cuts: Fractions of the steps after which the worse half is dropped, by the clean estimates of that step.
        batch_size: Pictures per network call, before views and guidance.
        on_step: Called after each step with the step and the positions of its batch among those still alive.

    Raises:
        UsageError: Numbers that do not fit together, or a prompt that the judge refuses.
        NumericalError: A picture is not finite.
    """
    wanted = candidate_seeds(seeds, best_of)
    before = task.counted.rows
    scheduler = make_scheduler(task.model.info, task.settings)
    if cuts and not is_memoryless(scheduler):
        LOG.info("%s builds on earlier steps: nothing is dropped before the end", type(scheduler).__name__)
        cuts = ()
    plan = halving_plan(best_of, keep, len(scheduler.timesteps), cuts)
    alive = [_Row(seed, random) for seed, random in zip(wanted, generators(wanted), strict=True)]
    done: list[Candidate] = []
    best: tuple[Candidate, ...] = ()
    for number, stretch in enumerate(plan):
        last = number == len(plan) - 1
        ranked: list[tuple[Candidate, _Row]] = []
        for first in range(0, stretch.count, batch_size):
            positions = range(first, min(first + batch_size, stretch.count))
            some = [alive[k] for k in positions]
            images = _advance(task, some, stretch, positions, last, on_step)
            matrix, aligned, concealed = task.rate(images)
            for k, row in enumerate(some):
                scores = matrix[k], float(aligned[k]), float(concealed[k])
                ranked.append((Candidate(row.seed, images[k], *scores, stretch.stop, not last), row))
        ranked.sort(key=lambda pair: (pair[0].alignment, pair[0].concealment), reverse=True)
        kept = keep if last else plan[number + 1].count
        if last:
            best = tuple(candidate for candidate, _ in ranked[:kept])
            done += [candidate for candidate, _ in ranked]
        else:
            done += [candidate for candidate, _ in ranked[kept:]]
            going_on = {row.seed for _, row in ranked[:kept]}
            alive = [row for row in alive if row.seed in going_on]
            LOG.info("after %d of %d steps %d of %d go on", stretch.stop, plan[-1].stop, kept, stretch.count)
    place = {seed: k for k, seed in enumerate(wanted)}
    tried = tuple(sorted(done, key=lambda one: place[one.seed]))
    return Found(torch.stack([one.image for one in best]), best, tried, plan[-1].stop, task.counted.rows - before)


@dataclass
class _Row:
    """A candidate on its way."""

    seed: int
    random: torch.Generator
    x: Tensor | None = None


def _advance(
    task: Task,
    rows: list[_Row],
    stretch: Stretch,
    positions: range,
    last: bool,
    on_step: Callable[[Step, range], None] | None,
) -> Tensor:
    """Take a batch through a stretch of the grid; return its pictures, or clean estimates before the end."""
    settings, start, model = task.settings, stretch.start, task.model
    scheduler = make_scheduler(model.info, settings)  # a new one: most count their own steps
    total = len(scheduler.timesteps)
    random = [row.random for row in rows]
    known = [row.x for row in rows if row.x is not None]
    x = torch.cat(known) if known else pure_noise(scheduler, model.noise(random))
    watched = Remembered(shared_net(model, task.composition, task.prompted([row.seed for row in rows]), scheduler))
    silent = settings.stop_noise_after
    clean: Tensor | None = None
    for step in denoise(
        watched, x, scheduler, start=start, path=range(start, stretch.stop), generators=random,
        constrain=reference_constraint(model, task.composition), eta=settings.eta,
        stop_noise_after=None if silent is None else max(0, silent - start),
    ):  # fmt: skip
        x, clean = step.x, step.x0
        if on_step is not None:
            on_step(replace(step, total=total), positions)
    for k, row in enumerate(rows):
        row.x = x[k : k + 1]
    if not last:
        x = watched.clean(scheduler) if clean is None else clean
    return finished_pictures(model, task.composition, x, estimate=not last)
