"""How often an illusion works: of n anagrams and hybrids, those whose every reading a judge recognises.

For each pair of prompts, groups of `--best-of` seeds are drawn with a model that knows them: a class-conditional run,
or a text model. An anagram works if each view is read as its prompt; a hybrid if its low pass is read as the first
prompt and the picture itself as the second. Three rates are counted: of single samples (all seeds), of the best of each
group, and of the best with early rejection, which draws half of the seeds only halfway.

A reading counts as recognised where the judge's first choice is its prompt. A judge that knows ten digits sees one in
every scrawl, so a second number counts what it is sure of: as sure as of all but 5 % of real, held-out pictures, which
are low-passed where the reading is. The judge that counts is not the judge that chooses: the same kind of network
trained from another seed picks the best (`--judge mnist`), or one that `--chooser` names.

The control draws plain pictures of both prompts and asks how many of them read as both already: 6 and 9 might.

Run: python benchmarks/illusion_quality.py runs/mnist-class --judge mnist [--groups 8] [--guidance 4] [--steps 20]
     [--pair 6/9@rotate_180 --pair 0/1@low_high:4 ...] [--json FILE]
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import OUTPUTS, describe, finish, machine, parser, table
from drawing import job_for, pictures
from judge import KINDS, held_out, judge_file
from torch import Tensor

from diffkit.evaluation.scorers import ClassifierScorer, parse_scorer
from diffkit.illusions.composition import Composition
from diffkit.illusions.filters import FILTERS
from diffkit.illusions.scoring import Scorer
from diffkit.illusions.search import CUTS, search
from diffkit.jobs.anagram import Anagram
from diffkit.jobs.best_of import task
from diffkit.jobs.hybrid import Hybrid
from diffkit.jobs.illusion import Illusion
from diffkit.jobs.sample import Sample
from diffkit.models import load
from diffkit.pictures.grids import grid, magnify
from diffkit.pictures.metadata import write_png
from diffkit.pictures.tensors import from_tensor
from diffkit.types import Model

# Digits whose shapes allow it; 6 and 9 are the easy ones. The first of a hybrid is read from afar.
PAIRS = (
    "6/9@rotate_180", "4/7@rotate_180", "2/8@rotate_180", "2/5@flip", "4/7@flip", "0/6@flip", "7/4@rotate_cw",
    "4/5@rotate_cw", "0/8@rotate_cw", "0/3@inner_circle", "3/8@square_hinge",
    "0/8@low_high:3", "8/3@low_high:3", "9/4@low_high:3", "8/5@low_high:3", "8/6@low_high:3", "0/6@low_high:3",
)  # fmt: skip
BLUR = 5.0  # the judges read low-passed pictures up to this sigma, at 64 pixels
SURE = 0.05  # of the real pictures, the judge is less sure than it must be of an illusion
SHOWN = 8
CELL = 64


@dataclass(frozen=True)
class Pair:
    """Two prompts and how they share a picture."""

    first: str
    second: str
    way: str

    @classmethod
    def parse(cls, text: str) -> Pair:
        """Read `P1/P2@VIEW` or `P1/P2@FILTER`."""
        prompts, at, way = text.rpartition("@")
        first, slash, second = prompts.partition("/")
        if not (at and slash and first and second and way):
            raise SystemExit(f"--pair {text!r}: write it as 6/9@rotate_180")
        return cls(first, second, way)

    @property
    def hybrid(self) -> bool:
        """It shares by frequencies or colours, not by a view."""
        return self.way.partition(":")[0] in FILTERS

    @property
    def prompts(self) -> tuple[str, str]:
        """What it is drawn by."""
        return self.first, self.second

    @property
    def composition(self) -> Composition:
        """How the prompts share the picture."""
        return Composition.of_parts(2, self.way) if self.hybrid else Composition.of_views(2, (self.way,))

    def job(self, model: Model, **how: Any) -> Illusion:
        """Return what draws it."""
        words = {"prompts" if model.info.text else "classes": self.prompts}
        if self.hybrid:
            return job_for(Hybrid, model, split=self.way, **words, **how)
        return job_for(Anagram, model, views=(self.way,), **words, **how)

    def __str__(self) -> str:
        return f"{self.first}/{self.second}@{self.way}"


class Reader:
    """Says what a picture shows, out of all that it might.

    Args:
        scorer: The judge.
        choices: What it chooses from.
        real: Held-out pictures (N, C, H, W), and for each which choice it shows (N,); none where there are none.
    """

    def __init__(self, scorer: Scorer, choices: list[str], real: tuple[Tensor, Tensor] | None = None) -> None:
        self.scorer, self.choices, self.real = scorer, choices, real
        self._of_real: dict[str, tuple[float, float]] = {}

    def works(self, pair: Pair, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) bool: every reading is that of its prompt; and the judge is as sure of it as of real pictures."""
        right, sure = [], []
        parts = pair.composition.shown(images.clamp(-1, 1))
        for k, (part, prompt) in enumerate(zip(parts, pair.prompts, strict=True)):
            scores, wanted = self.scorer.score(part, self.choices), self.choices.index(prompt)
            right.append(scores.argmax(1) == wanted)
            sure.append(right[-1] & (scores[:, wanted] >= self.of_real(pair, k)[1]))
        return torch.stack(right).all(0), torch.stack(sure).all(0)

    def of_real(self, pair: Pair, k: int) -> tuple[float, float]:
        """The judge's accuracy on real pictures, low-passed as part k of a hybrid is, and how sure it has to be."""
        if self.real is None:
            return float("nan"), -float("inf")
        images, truth = self.real
        split = pair.composition.split
        far = split is not None and k < split.parts - 1
        key = f"{pair.way} {k}" if far else ""
        if key not in self._of_real:
            scores = self.scorer.score(split.part(images, k) if far else images, self.choices)
            accuracy = float((scores.argmax(1) == truth).float().mean())
            self._of_real[key] = accuracy, float(scores[torch.arange(len(truth)), truth].quantile(SURE))
        return self._of_real[key]


def measure(model: Model, pair: Pair, args: Any, reader: Reader, chooser: Scorer) -> tuple[dict[str, Any], list[Any]]:
    """Draw and count one pair; return the numbers and a row of pictures."""
    job = pair.job(model, steps=args.steps, guidance=args.guidance, scheduler=args.scheduler)
    start = time.perf_counter()
    singles: list[Tensor] = []
    best: list[Tensor] = []
    early: list[Tensor] = []
    rows, rows_early = 0, 0
    for group in range(args.groups):
        seeds = [args.seed + group * args.best_of]
        whole = search(task(job, model, chooser), seeds, best_of=args.best_of, cuts=())
        singles += [one.image for one in whole.tried]
        best.append(whole.images[0])
        rows += whole.rows
        if not args.no_early:
            cut = search(task(job, model, chooser), seeds, best_of=args.best_of, cuts=args.cuts)
            early.append(cut.images[0])
            rows_early += cut.rows
    result: dict[str, Any] = {"pair": str(pair), "hybrid": pair.hybrid}
    for name, images in (("single", singles), ("best", best), ("best_early", early)):
        if images:
            result[name] = counts(reader, pair, torch.stack(images))
    result["control"] = control(model, pair, job, args, reader)
    result["rows"], result["rows_early"] = rows, rows_early or None
    result["seconds"] = round(time.perf_counter() - start, 1)
    result["judge_on_real"] = [round(100 * reader.of_real(pair, k)[0], 2) for k in (0, 1)]
    shown = torch.stack(best)[:SHOWN]
    return result, row(pair, shown, *reader.works(pair, shown))


def counts(reader: Reader, pair: Pair, images: Tensor) -> list[int]:
    """[recognised, surely recognised, of how many]."""
    right, sure = reader.works(pair, images)
    return [int(right.sum()), int(sure.sum()), len(images)]


def control(model: Model, pair: Pair, job: Illusion, args: Any, reader: Reader) -> list[int]:
    """Count the plain pictures, half of them of each prompt, that read as both without any trick."""
    count = max(1, args.groups * args.best_of // 2)
    plain = job_for(Sample, model, steps=job.steps, guidance=job.guidance, scheduler=job.scheduler)
    labels = [pair.first] * count + [pair.second] * count
    seeds = [args.seed + k for k in range(len(labels))]
    # A picture of the second prompt is put so that the second view shows it the right way up.
    images = pictures(model, plain, seeds, labels)
    images[count:] = pair.composition.views[1].invert(images[count:])
    return counts(reader, pair, images)


def row(pair: Pair, images: Tensor, right: Tensor, sure: Tensor) -> list[Any]:
    """One cell per picture, its readings side by side; (picture, mark)."""
    readings = pair.composition.shown(images.clamp(-1, 1))
    cells = []
    for k in range(len(images)):
        parts = [magnify(from_tensor(reading[k])[0], CELL) for reading in readings]
        cells.append((grid(parts, len(parts), gap=1, min_cell=1), "" if sure[k] else "unsure" if right[k] else "no"))
    return cells


def total(results: list[dict[str, Any]], name: str, hybrid: bool) -> list[int] | None:
    """Sum a count over the pairs of one kind."""
    found = [r[name] for r in results if r["hybrid"] == hybrid and name in r]
    return [sum(c) for c in zip(*found, strict=True)] if found else None


def percent(count: list[int] | None) -> str:
    """Recognised, and surely recognised, in percent."""
    return "-" if not count else f"{100.0 * count[0] / count[2]:.0f} / {100.0 * count[1] / count[2]:.0f}"


def judges(args: Any, prompts: list[str]) -> tuple[Reader, Scorer, dict[str, Any]]:
    """Return the one who counts, the one who chooses, and what to say of them."""
    if args.judge in KINDS:
        (path, accuracy, n), (other, _, _) = (judge_file(args.judge, seed=seed, blur=BLUR) for seed in (0, 1))
        count = ClassifierScorer(str(path), args.device)
        choose = parse_scorer(args.chooser or f"classifier:{other}", device=args.device)
        about = {"judge": args.judge, "accuracy": round(100 * accuracy, 2), "n": n, "chooser": args.chooser or "seed 1"}
        return Reader(count, count.class_names, held_out(KINDS[args.judge])), choose, about
    judge = parse_scorer(args.judge, device=args.device)
    choose = parse_scorer(args.chooser, device=args.device) if args.chooser else judge
    about = {"judge": args.judge, "chooser": args.chooser or "the judge itself, whose best-of rates flatter"}
    return Reader(judge, list(getattr(judge, "class_names", None) or dict.fromkeys(prompts))), choose, about


def main() -> None:
    options = parser(__doc__)
    options.add_argument("model", help="A folder that `diffkit train` wrote, class-conditional; or a text model.")
    options.add_argument("--judge", required=True, help=f"{', '.join(KINDS)}, or a scorer: classifier:FILE, clip:ID.")
    options.add_argument("--chooser", help="The scorer that picks the best; another one than the judge.")
    options.add_argument("--pair", action="append", help="P1/P2@VIEW or P1/P2@FILTER, repeated; digits when left out.")
    options.add_argument("--groups", type=int, default=8, help="Groups of --best-of seeds.")
    options.add_argument("--best-of", type=int, default=8)
    options.add_argument("--guidance", type=float, default=None, help="The illusions' own when left out.")
    options.add_argument("--steps", type=int, default=None)
    options.add_argument("--scheduler", default=None)
    options.add_argument("--cuts", type=float, nargs="*", default=list(CUTS), help="Of the steps, for early rejection.")
    options.add_argument("--no-early", action="store_true", help="Leave early rejection out.")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--device", default="cpu")
    args = options.parse_args()
    facts = machine(args.device)
    pairs = [Pair.parse(text) for text in args.pair or PAIRS]
    reader, chooser, about = judges(args, [p for pair in pairs for p in (pair.first, pair.second)])
    model = load(args.model, device=args.device)
    results, cells = [], []
    for pair in pairs:
        result, pictures = measure(model, pair, args, reader, chooser)
        results.append(result)
        cells += [(cell, f"{pair} {mark}" if k == 0 else mark) for k, (cell, mark) in enumerate(pictures)]
        print(f"{pair}: {result['single']} single, {result['best']} best, {result['seconds']} s", flush=True)
    path = OUTPUTS / f"illusions-{Path(args.model).resolve().name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, grid([c for c, _ in cells], min(SHOWN, args.groups), labels=[t for _, t in cells], min_cell=1))
    report(results, args, facts, about, path)


def report(results: list[dict[str, Any]], args: Any, facts: dict[str, Any], about: dict[str, Any], path: Path) -> None:
    """Print the tables and write the numbers."""
    names = ("single", "best", "best_early", "control")
    head = ["pair", "single", "n", f"best of {args.best_of}", "early", "n", "control", "n", "judge on real %"]

    def line(title: str, found: dict[str, Any]) -> list[Any]:
        single, best, early, plain = (found.get(name) for name in names)
        assert single
        assert best
        assert plain
        real = " ".join(f"{v:.1f}" for v in found.get("judge_on_real", ()))
        return [
            title,
            percent(single),
            single[2],
            percent(best),
            percent(early),
            best[2],
            percent(plain),
            plain[2],
            real,
        ]

    rows = [line(r["pair"], r) for r in results]
    totals = {}
    for kind, hybrid in (("anagrams", False), ("hybrids", True)):
        sums = {name: total(results, name, hybrid) for name in names}
        if sums["single"]:
            totals[kind] = sums
            rows.append(line(f"all {kind}", sums))
    print("\n" + describe(facts))
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print("in percent: recognised / recognised as surely as 95 % of real pictures")
    print(table(head, rows))
    print(f"pictures: {path}")
    told = {key: value for key, value in vars(args).items() if key != "json"}
    finish({"options": told, "judge": about, "machine": facts, "totals": totals, "pairs": results}, args.json)


if __name__ == "__main__":
    main()
