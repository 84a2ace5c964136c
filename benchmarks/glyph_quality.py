"""How many samples of a text-to-image model trained on `glyphs` show what their captions say.

For each kind (digits, letters, shapes, colours, glyphs on shapes) n pictures are drawn, the captions taken in turn and
seed k for picture k, and the judge of glyph_judge.py reads them. A picture counts where every part that its caption
names is read so; for colours it is the colour alone. Beside each rate stand the same with twins allowed (O and zero may
be the same strokes), the control (the same pictures against shuffled captions), and the judge's own rate on real
held-out pictures of that kind. A grid of each kind, wrong pictures labelled with what was read, goes to outputs/.

Run: python benchmarks/glyph_quality.py MODEL [--guidance 5] [--steps 30] [--scheduler ddim] [-n 200] [--kinds digits]
"""

from __future__ import annotations

import random
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common import OUTPUTS, describe, finish, machine, parser, table
from drawing import job_for, pictures
from glyph_judge import HEADS, NONE, Reader, Verdict, load_judge
from torch import Tensor

from diffkit.data.glyphs.wording import DIGITS, GLYPHS, INKS, LETTERS, SHAPES, Subject, caption
from diffkit.jobs.sample import Sample
from diffkit.models import load
from diffkit.pictures.grids import grid
from diffkit.pictures.metadata import write_png
from diffkit.pictures.tensors import from_tensor

KINDS = ("digits", "letters", "shapes", "colours", "compositions")
JUDGED_AS = {"digits": "digit", "letters": "letter", "shapes": "shape", "compositions": "composition"}
SHOWN = 60  # pictures of a grid


def subjects(kind: str, count: int) -> list[Subject]:
    """Return what `count` pictures of a kind are to show: classes in turn, so each as often as any other.

    Digits and letters are black, as their natural captions say; shapes and `colours` take every ink in turn, and
    compositions are drawn at random, always the same ones.
    """
    inks = INKS[1:]
    if kind == "digits":
        every = [Subject(glyph, "black") for glyph in DIGITS]
    elif kind == "letters":
        every = [Subject(glyph, "black") for glyph in LETTERS]
    elif kind == "shapes":
        every = [Subject(shape=SHAPES[k % 8], ground=INKS[(k + k // 8) % 5]) for k in range(40)]
    elif kind == "colours":
        things = (*GLYPHS, *SHAPES)
        every = [_coloured(thing, inks[(k + turn) % 4]) for turn in range(4) for k, thing in enumerate(things)]
    else:
        every = [Subject(glyph, "black", shape, ink) for glyph in GLYPHS for shape in SHAPES for ink in inks]
    if kind in ("colours", "compositions"):
        random.Random(0).shuffle(every)
    return [every[k % len(every)] for k in range(count)]


def _coloured(thing: str, ink: str) -> Subject:
    return Subject(shape=thing, ground=ink) if thing in SHAPES else Subject(thing, ink)


def good(verdict: Verdict, k: int, wanted: Subject, kind: str, *, twins: bool = False) -> bool:
    """Whether picture k shows what was wanted."""
    parts = verdict.right(k, wanted, twins=twins)
    return parts["colour"] if kind == "colours" else all(parts.values())


def said(verdict: Verdict, k: int) -> str:
    """Say in a caption's words what the judge read in picture k."""
    glyph, shape, ink, ground = (
        None if value == NONE else value
        for value in (verdict.glyph[k], verdict.shape[k], verdict.ink[k], verdict.ground[k])
    )
    if glyph is None and shape is None:
        return "nothing"
    return caption(Subject(glyph, ink, shape, ground))


def differing(verdict: Verdict, k: int, wanted: Subject) -> str:
    """Return what the judge read in picture k where it is not what was wanted, short enough for a grid."""
    seen = asdict(verdict)
    return ", ".join(seen[head][k] for head in HEADS if seen[head][k] != (getattr(wanted, head) or NONE))


def judged(kind: str, wanted: list[Subject], images: Tensor, read: Reader, path: Path) -> dict[str, Any]:
    """Judge the pictures of one kind, write their grid, and count."""
    verdict = read(images)
    right = [good(verdict, k, subject, kind) for k, subject in enumerate(wanted)]
    twins = [good(verdict, k, subject, kind, twins=True) for k, subject in enumerate(wanted)]
    mixed = list(wanted)
    random.Random(1).shuffle(mixed)
    control = [good(verdict, k, subject, kind) for k, subject in enumerate(mixed)]
    wrong = [f"{caption(s)}: {said(verdict, k)}" for k, s in enumerate(wanted) if not right[k]]
    marks = ["" if ok else differing(verdict, k, wanted[k]) for k, ok in enumerate(right[:SHOWN])]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, grid(from_tensor(images[:SHOWN]), 10, labels=marks, min_cell=96))
    return {
        "n": len(wanted),
        "right": 100 * sum(right) / len(wanted),
        "with_twins": 100 * sum(twins) / len(wanted),
        "control": 100 * sum(control) / len(wanted),
        "wrong": wrong,
        "grid": str(path),
    }


def measure(args: Any) -> dict[str, Any]:
    """Draw, judge and count every kind."""
    facts = machine(args.device)
    read, judge = load_judge()
    model = load(args.model, device=args.device)
    job = job_for(Sample, model, scheduler=args.scheduler, steps=args.steps, guidance=args.guidance)
    name = Path(args.model).resolve().name
    start = time.perf_counter()
    kinds = {}
    for kind in args.kinds:
        wanted = subjects(kind, args.num)
        images = pictures(model, job, range(len(wanted)), [caption(one) for one in wanted], args.batch_size)
        kinds[kind] = judged(kind, wanted, images, read, OUTPUTS / f"glyphs-{name}-{kind}.png")
        real = 100 * judge["heads"]["ink"] if kind == "colours" else 100 * judge["kinds"][JUDGED_AS[kind]]["right"]
        kinds[kind]["judge"] = real
    return {
        "model": str(args.model),
        "steps": args.steps,
        "guidance": args.guidance,
        "scheduler": args.scheduler or "ddim",
        "kinds": kinds,
        "seconds": round(time.perf_counter() - start, 1),
        "machine": facts,
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("model", help="A folder with a text-to-image model of 32 pixels.")
    options.add_argument("-n", "--num", type=int, default=200, help="Pictures of each kind.")
    options.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    options.add_argument("--guidance", type=float, default=5.0)
    options.add_argument("--steps", type=int, default=30)
    options.add_argument("--scheduler", default=None, help="ddim when left out.")
    options.add_argument("--batch-size", type=int, default=100)
    options.add_argument("--device", default="cpu")
    args = options.parse_args()
    result = measure(args)
    print(describe(result["machine"]))
    rows = [
        [kind, r["right"], r["with_twins"], r["control"], r["judge"], r["n"]] for kind, r in result["kinds"].items()
    ]
    print(table(["kind", "% right", "% with twins", "% control", "% judge on real", "n"], rows))
    for kind, r in result["kinds"].items():
        print(f"\n{kind}: {r['grid']}")
        print("\n".join(f"  {line}" for line in r["wrong"][:12]))
    print(f"\ndrawn in {result['seconds']} s")
    finish(result, args.json)


if __name__ == "__main__":
    main()
