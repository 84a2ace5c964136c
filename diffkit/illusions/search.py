"""The best of many seeds: illusions are sampled, scored view by view, dropped early where they fail, and the best kept.

Holds the search; its plan is in `halving.py`, what is drawn in `drawing.py`, how it is judged in
`diffkit.evaluation.scorers`, the contact sheet in `contact_sheet.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from diffkit.engine.levels import x0_of
from diffkit.engine.samplers import is_memoryless
from diffkit.engine.sampling import denoise, generators, pure_noise
from diffkit.errors import UsageError
from diffkit.evaluation.scorers import Scorer, alignment, concealment, score_matrix
from diffkit.illusions.drawing import Illusion, decoded, held, illusion_net, seen, usual, working
from diffkit.illusions.halving import CUTS as CUTS
from diffkit.illusions.halving import Round as Round
from diffkit.illusions.halving import candidate_seeds as candidate_seeds
from diffkit.illusions.halving import network_calls as network_calls
from diffkit.illusions.halving import rounds as rounds
from diffkit.jobs.sample import Settings, batches, prepare
from diffkit.types import Cond, Denoiser, Prediction, Step

LOG = logging.getLogger("diffkit.tasks")


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
        images: The kept pictures, best first, (K, C, H, W): as `finish` returned them, or as they were drawn.
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


def rate(illusion: Illusion, images: Tensor, scorer: Scorer) -> tuple[Tensor, Tensor, Tensor]:
    """Score pictures.

    Args:
        illusion: What they should show.
        images: (B, C, H, W) in [-1, 1].
        scorer: The measure.

    Returns:
        The matrices (B, V, V) of views against prompts, A (B,) and C (B,).
    """
    matrix = score_matrix(scorer, seen(illusion, images.clamp(-1, 1)), illusion.labels())
    return matrix, alignment(matrix), concealment(matrix, scorer.tau)


def search(
    model: Any,
    illusion: Illusion,
    seeds: Sequence[int],
    settings: Settings,
    scorer: Scorer,
    *,
    best_of: int,
    keep: int = 1,
    finish: Callable[[Tensor, Sequence[int]], Tensor] | None = None,
    by: Literal["alignment", "concealment"] = "alignment",
    cuts: Sequence[float] = CUTS,
    batch_size: int = 64,
    on_step: Callable[[Step, range], None] | None = None,
) -> Found:
    """Draw many seeds of an illusion and keep the best.

    A picture is the same as if its seed were drawn alone. Samplers that build on earlier steps cannot stop in the
    middle: with these all candidates are drawn to the end.

    Args:
        model: A loaded model.
        illusion: What to draw.
        seeds: The first seeds to try; more follow, counted on from the last one.
        settings: How.
        scorer: The measure.
        best_of: How many seeds are tried.
        keep: How many are kept.
        finish: From the kept pictures and their seeds to larger ones (stages II and III).
        by: What candidates are ranked by; the other one decides between equals.
        cuts: Fractions of the steps after which the worse half is dropped, by the clean estimates of that step.
        batch_size: Pictures per network call, before views and guidance.
        on_step: Called after each step with the step and the positions of its batch among those still alive.

    Raises:
        UsageError: Numbers that do not fit together, or a model or prompt that the illusion or the scorer refuses.
        NumericalError: A picture is not finite.
    """
    if by not in ("alignment", "concealment"):
        raise UsageError(f"rank by {by!r}; choose alignment or concealment")
    wanted = candidate_seeds(seeds, best_of)
    counted = Counted(model)
    settings = usual(model, settings)
    work = _Work(working(counted, illusion), illusion, settings, on_step)
    scheduler = prepare(model.scheduler, settings)
    if cuts and not is_memoryless(scheduler):
        LOG.info("%s builds on earlier steps: nothing is dropped before the end", type(scheduler).__name__)
        cuts = ()
    plan = rounds(best_of, keep, len(scheduler.timesteps), cuts)
    alive = [_Row(seed, random) for seed, random in zip(wanted, generators(wanted), strict=True)]
    done: list[Candidate] = []
    for number, one in enumerate(plan):
        last = number == len(plan) - 1
        ranked: list[tuple[Candidate, _Row]] = []
        for positions in batches(one.count, batch_size):
            some = [alive[k] for k in positions]
            images = work.advance(some, one, positions, last)
            matrix, aligned, concealed = rate(illusion, images, scorer)
            for k, row in enumerate(some):
                scores = matrix[k], float(aligned[k]), float(concealed[k])
                ranked.append((Candidate(row.seed, images[k], *scores, one.stop, not last), row))
        ranked.sort(key=lambda pair: _rank(pair[0], by), reverse=True)
        kept = keep if last else plan[number + 1].count
        if last:
            best = tuple(candidate for candidate, _ in ranked[:kept])
            done += [candidate for candidate, _ in ranked]
        else:
            done += [candidate for candidate, _ in ranked[kept:]]
            going_on = {row.seed for _, row in ranked[:kept]}
            alive = [row for row in alive if row.seed in going_on]
            LOG.info("after %d of %d steps %d of %d go on", one.stop, plan[-1].stop, kept, one.count)
    images = torch.stack([one.image for one in best])
    if finish is not None:
        images = finish(images, [one.seed for one in best])
    place = {seed: k for k, seed in enumerate(wanted)}
    tried = tuple(sorted(done, key=lambda one: place[one.seed]))
    return Found(images, best, tried, plan[-1].stop, counted.rows)


def _rank(one: Candidate, by: str) -> tuple[float, float]:
    scores = (one.alignment, one.concealment)
    return scores if by == "alignment" else scores[::-1]


@dataclass
class _Row:
    """A candidate on its way."""

    seed: int
    random: torch.Generator
    x: Tensor | None = None


@dataclass(frozen=True)
class _Work:
    """How candidates are taken from one step of the grid to another."""

    model: Any
    illusion: Illusion
    settings: Settings
    on_step: Callable[[Step, range], None] | None

    def advance(self, rows: list[_Row], stretch: Round, positions: range, last: bool) -> Tensor:
        """Take a batch through a stretch of the grid; return its pictures, or clean estimates before the end."""
        settings, start = self.settings, stretch.start
        scheduler = prepare(self.model.scheduler, settings)  # a new one: most count their own steps
        total = len(scheduler.timesteps)
        random = [row.random for row in rows]
        known = [row.x for row in rows if row.x is not None]
        x = torch.cat(known) if known else pure_noise(scheduler, self.model.noise(random))
        net, cond = illusion_net(self.model, self.illusion, settings, len(rows), scheduler=scheduler)
        watched = _Watched(net)
        silent = settings.stop_noise_after
        clean: Tensor | None = None
        for step in denoise(
            watched, x, scheduler, cond, start=start, path=range(start, stretch.stop), generators=random,
            constrain=held(self.model, self.illusion), eta=settings.eta,
            stop_noise_after=None if silent is None else max(0, silent - start),
        ):  # fmt: skip
            x, clean = step.x, step.x0
            if self.on_step is not None:
                self.on_step(replace(step, total=total), positions)
        for k, row in enumerate(rows):
            row.x = x[k : k + 1]
        if not last:
            x = watched.clean(scheduler) if clean is None else clean
        return decoded(self.model, self.illusion, x, estimate=not last)


class _Watched:
    """A denoiser that remembers its last answer, for schedulers that do not say what the clean estimate was."""

    def __init__(self, net: Denoiser) -> None:
        self.net = net
        self.last: tuple[Tensor, Tensor, Tensor] | None = None

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        prediction = self.net(x, t, cond)
        self.last = prediction.out, x, t
        return prediction

    def clean(self, scheduler: Any) -> Tensor:
        assert self.last is not None
        return x0_of(*self.last, scheduler)


class Counted:
    """A model that counts its network's calls and the rows of them; all else is the model's own."""

    def __init__(self, model: Any) -> None:
        self._model, self.calls, self.rows = model, 0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        self.calls, self.rows = self.calls + 1, self.rows + x.shape[0]
        prediction: Prediction = self._model(x, t, cond)
        return prediction
