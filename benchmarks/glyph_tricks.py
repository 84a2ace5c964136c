"""How often the tricks work on a text-to-image model trained on `glyphs`: illusions, SDEdit, inpainting.

The judge of glyph_judge.py counts (seed 0); where the best of several is kept, three others choose it (seeds 1 to 3).

anagrams   rotate_180 of pairs whose glyphs allow it and are not symmetric by themselves. A picture counts where both
           views are read as their prompts: of single samples, and of the best of each group. The controls are the
           same pictures against another pair's names, and plain pictures of p1 that are p2 when turned: a six is a
           nine, and an M is nearly a W, before any trick.
pairs      The same for all pairs of different digits, best of `--best-of` (with early rejection, as in the command).
           A picture of six over nine is one of nine over six turned, so that 45 pairs stand for 90, which `--pairs 90`
           draws all the same. The control is the best of as many plain pictures of p1.
hybrids    A shape from afar, a glyph from near: it counts where the shape is read in the low pass and the glyph in the
           picture itself. The controls are plain pictures of either prompt, counted in the same way.
sdedit     Plain samples of every thing in turn; at strength 0.3 with the same prompt the class is to stay, at 0.9 with
           another thing's prompt it is to be that.
inpaint    The right half of digits painted anew with their prompts: those that the model drew, and real ones held out.
           Counted are those read as their digit, and those whose known pixels are exactly the same.

`with twins`: glyphs that can be the same strokes, like O and zero, count as each other. Each trick leaves a sheet with
labels in outputs/.

Run: python benchmarks/glyph_tricks.py MODEL [--only anagrams hybrids] [-n 100] [--groups 2] [--split low_high:6]
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import OUTPUTS, describe, finish, machine, parser, table
from drawing import illusions as drawn
from drawing import job_for
from glyph_edits import Bench, Tally, edits, inpainting, prompt
from glyph_judge import Panel, Reader, load_judge, same_glyph
from torch import Tensor

from diffkit.data.glyphs.wording import DIGITS, Subject, caption
from diffkit.illusions.composition import Composition
from diffkit.illusions.scoring import alignment, concealment, score_matrix
from diffkit.illusions.search import CUTS, search
from diffkit.jobs.anagram import Anagram
from diffkit.jobs.base import build
from diffkit.jobs.best_of import task
from diffkit.jobs.hybrid import Hybrid
from diffkit.jobs.illusion import Illusion
from diffkit.models import load
from diffkit.types import Model

CHOOSERS = (1, 2, 3)  # seeds of the judges that choose
TRICKS = ("anagrams", "pairs", "hybrids", "sdedit", "inpaint")
VIEW = "rotate_180"
NATURAL = (("six", "nine"), ("M", "W"), ("A", "V"), ("three", "E"), ("seven", "L"))
# What is seen from afar, and what from near.
HYBRIDS = (
    ("heart", "red", "A"), ("star", "blue", "E"), ("tree", "green", "K"), ("disc", "orange", "X"),
    ("square", "red", "three"), ("house", "blue", "H"), ("triangle", "orange", "two"), ("cross", "green", "T"),
)  # fmt: skip


@dataclass(frozen=True)
class Wanted:
    """An illusion and what its two readings are to be: names of the judge's classes."""

    kind: type[Illusion]
    fields: dict[str, Any]  # of the job
    heads: tuple[str, str]
    names: tuple[str, str]

    def job(self, model: Model, **how: Any) -> Illusion:
        """Return what draws it."""
        return job_for(self.kind, model, **self.fields, **how)

    @property
    def prompts(self) -> tuple[str, str]:
        """What it is drawn by."""
        found: tuple[str, str] = self.fields["prompts"]
        return found

    @property
    def composition(self) -> Composition:
        """How the prompts share the picture."""
        return build(self.kind, self.fields).composition

    def right(
        self, judge: Reader, images: Tensor, names: tuple[str, str] | None = None
    ) -> tuple[list[bool], list[bool], list[str]]:
        """Whether both readings are right (or other names), the same with twins, and what was read."""
        wanted = names or self.names
        readings = [judge(part) for part in self.composition.shown(images.clamp(-1, 1))]
        found = [getattr(reading, head) for reading, head in zip(readings, self.heads, strict=True)]
        each = list(zip(*found, strict=True))
        exact = [pair == wanted for pair in each]
        alike = [all(same_glyph(a, b, twins=True) for a, b in zip(pair, wanted, strict=True)) for pair in each]
        return exact, alike, ["/".join(pair) for pair in each]


def anagram(first: str, second: str) -> Wanted:
    """One picture, two glyphs."""
    fields = {"prompts": (prompt(first), prompt(second)), "views": (VIEW,)}
    return Wanted(Anagram, fields, ("glyph", "glyph"), (first, second))


def hybrid(shape: str, ground: str, glyph: str, args: Any) -> Wanted:
    """One picture, a shape from afar and a glyph from near; `open` captions leave the other part open."""
    whole = Subject(glyph, "black", shape, ground)
    far = caption(whole, open_part="glyph") if args.far == "open" else caption(Subject(shape=shape, ground=ground))
    near = caption(whole, open_part="shape") if args.near == "open" else caption(Subject(glyph, "black"))
    return Wanted(Hybrid, {"prompts": (far, near), "split": args.split}, ("shape", "glyph"), (shape, glyph))


def best_of(bench: Bench, one: Wanted, images: Tensor) -> list[int]:
    """Return which picture of each group the chooser prefers."""
    parts = one.composition.shown(images.clamp(-1, 1))
    matrix = score_matrix(bench.chooser, parts, one.prompts)
    aligned, concealed = alignment(matrix), concealment(matrix, bench.chooser.tau)
    scores = list(zip(aligned.tolist(), concealed.tolist(), strict=True))
    size = bench.args.best_of
    return [max(range(k, k + size), key=scores.__getitem__) for k in range(0, len(images), size)]


def illusions(bench: Bench, wanted: Sequence[Wanted], guidance: float, controls: Sequence[int], tally: Tally) -> None:
    """Draw groups of each illusion; count singles, the best of each group, and plain pictures of the prompts."""
    args, size = bench.args, bench.args.best_of
    for number, one in enumerate(wanted):
        job = one.job(bench.model, steps=args.steps, guidance=guidance, scheduler=args.scheduler)
        first = args.seed + 1000 * number
        groups = [list(range(first + size * k, first + size * (k + 1))) for k in range(args.groups)]
        images = torch.cat([drawn(bench.model, job, seeds) for seeds in groups]).clamp(-1, 1)
        exact, alike, read = one.right(bench.judge, images)
        best = best_of(bench, one, images)
        tally.add("single", exact, alike)
        tally.add(f"best of {size}", [exact[i] for i in best], [alike[i] for i in best])
        tally.add("control: read as another pair", *one.right(bench.judge, images, wanted[number - 2].names)[:2])
        each = [sum(exact), len(exact), sum(exact[i] for i in best), len(best)]
        for which in controls:
            plain = bench.plain([one.prompts[which]] * size, first)
            found, twins, _ = one.right(bench.judge, plain)
            tally.add(f"control: plain pictures of p{which + 1}", found, twins)
            each.append(sum(found))
        name = "/".join(one.names)
        tally.each[name] = each
        print(f"{name}: {each[0]} of {each[1]}, best {each[2]} of {each[3]}, control {each[4:]} of {size}", flush=True)
        parts, front = torch.stack(one.composition.shown(images), 1), best[:2]
        for k, i in enumerate([*front, *[i for i in range(len(images)) if i not in front]][:6]):
            words = [name] * (k == 0) + ["best"] * (i in best) + [f"no: {read[i]}"] * (not exact[i])
            tally.cells.append((parts[i], " ".join(words)))


def anagrams(bench: Bench) -> Tally:
    """Pairs whose glyphs allow it."""
    tally = Tally()
    both = [pair for one in NATURAL for pair in (one, one[::-1])]
    illusions(bench, [anagram(*pair) for pair in both], bench.args.anagram_guidance, [0], tally)
    return tally


def pairs(bench: Bench) -> Tally:
    """All pairs of digits, the best of each."""
    tally, args = Tally(), bench.args
    every = [(a, b) for k, a in enumerate(DIGITS) for b in DIGITS[k + 1 :]]
    random.Random(0).shuffle(every)  # a few of them are a fair sample
    # First one order of each, by turns, then the other.
    every = [pair if k % 2 else pair[::-1] for k, pair in enumerate(every)]
    every += [pair[::-1] for pair in every]
    plain = bench.plain([prompt(name) for name in DIGITS for _ in range(args.best_of)]).split(args.best_of)
    for number, names in enumerate(every[: args.pairs]):
        one, seeds = anagram(*names), [args.seed + 50_000 + 100 * number]
        job = one.job(
            bench.model, steps=args.steps, guidance=args.pairs_guidance, scheduler=args.scheduler,
            guidance_interval=args.pairs_interval,
        )  # fmt: skip
        found = search(task(job, bench.model, bench.chooser), seeds, best_of=args.best_of, cuts=args.cuts)
        exact, alike, read = one.right(bench.judge, found.images)
        tally.add(f"best of {args.best_of}", exact, alike)
        some = plain[DIGITS.index(names[0])]
        tally.add(
            f"control: the best of {args.best_of} plain pictures of p1",
            *one.right(bench.judge, some[best_of(bench, one, some)])[:2],
        )
        label = "/".join(names) + ("" if exact[0] else " no: " + read[0])
        tally.cells.append((torch.cat(one.composition.shown(found.images)), label))
    return tally


def hybrids(bench: Bench) -> Tally:
    """Shapes from afar, glyphs from near."""
    tally = Tally()
    illusions(bench, [hybrid(*one, bench.args) for one in HYBRIDS], bench.args.hybrid_guidance, [0, 1], tally)
    return tally


def main() -> None:
    options = parser(__doc__)
    options.add_argument("model", help="A text-to-image model of 32 pixels: tiny, or a folder.")
    options.add_argument("--only", nargs="+", choices=TRICKS, default=list(TRICKS))
    options.add_argument("-n", "--num", type=int, default=100, help="Pictures of sdedit and inpaint.")
    options.add_argument("--groups", type=int, default=2, help="Groups of --best-of seeds, of anagrams and hybrids.")
    options.add_argument("--best-of", type=int, default=8)
    options.add_argument("--pairs", type=int, default=45, help="Of the 90 pairs of digits; the first 45 differ.")
    options.add_argument("--cuts", type=float, nargs="*", default=list(CUTS), help="Where pairs drop half.")
    options.add_argument("--steps", type=int, default=30)
    options.add_argument("--guidance", type=float, default=5.0, help="Of plain pictures.")
    options.add_argument("--sdedit-guidance", type=float, default=5.0)
    options.add_argument("--sdedit-scheduler", default="ddpm")
    options.add_argument("--inpaint-guidance", type=float, default=5.0)
    options.add_argument("--pairs-guidance", type=float, default=4.0)
    options.add_argument("--pairs-interval", metavar="START:STOP", help="As --guidance-interval of the command.")
    options.add_argument("--anagram-guidance", type=float, default=4.0)
    options.add_argument("--hybrid-guidance", type=float, default=8.0)
    options.add_argument("--scheduler", default=None, help="Of illusions; their own, ddpm, when left out.")
    options.add_argument("--split", default="low_high:6", help="Of hybrids.")
    options.add_argument("--far", choices=("plain", "open"), default="open", help="a red heart; a sign on a red heart.")
    options.add_argument("--near", choices=("plain", "open"), default="open", help="the letter A; ... on a shape.")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--device", default="cpu")
    options.add_argument("--dtype", default="auto")
    args = options.parse_args()
    facts = machine(args.device)
    model = load(args.model, device=args.device, dtype=args.dtype)
    bench = Bench(model, args, load_judge()[0], Panel([load_judge(seed=k)[0] for k in CHOOSERS]))
    tricks: dict[str, Callable[[Bench], Tally]] = {
        "anagrams": anagrams, "pairs": pairs, "hybrids": hybrids, "sdedit": edits, "inpaint": inpainting,
    }  # fmt: skip
    results: dict[str, Any] = {}
    for name in args.only:
        start = time.perf_counter()
        tally = tricks[name](bench)
        path = OUTPUTS / f"tricks-{Path(args.model).resolve().name}-{name}.png"
        tally.sheet(path)
        seconds = round(time.perf_counter() - start, 1)
        results[name] = {"counts": tally.counts, "each": tally.each, "sheet": str(path), "seconds": seconds}
        rows = [[what, 100 * a / n, 100 * b / n, n] for what, (a, b, n) in tally.counts.items()]
        print(f"\n{name} ({seconds} s): {path}\n{table(['what', '% right', '% with twins', 'n'], rows)}\n", flush=True)
    print(describe(facts))
    told = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    finish({"options": told, "machine": facts, "tricks": results}, args.json)


if __name__ == "__main__":
    main()
