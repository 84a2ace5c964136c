"""What the benchmarks of tricks share, and those that edit a picture: SDEdit and inpainting. See glyph_tricks.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from drawing import job_for, pictures
from glyph_judge import HEADS, NONE, Panel, Reader, same_glyph, split
from torch import Tensor

from diffkit.data.glyphs.wording import DIGITS, GLYPHS, SHAPES, Subject, caption
from diffkit.jobs.inpaint import Inpaint
from diffkit.jobs.sample import Sample
from diffkit.jobs.sdedit import SDEdit
from diffkit.pictures.grids import grid
from diffkit.pictures.metadata import write_png
from diffkit.pictures.tensors import from_tensor, to_tensor

KEPT, CHANGED = 0.3, 0.9  # strengths of SDEdit
SHIFT = 17  # places between a thing and the one that it is changed to
SHOWN = 24
CELL = 64


def to_tensors(images: Sequence[Tensor]) -> Tensor:
    """Return pictures as a PNG file keeps them, (N, 3, 32, 32) in [-1, 1]."""
    return to_tensor(from_tensor(torch.stack(list(images))))


@dataclass
class Tally:
    """Counts, and the sheet's cells with their labels."""

    counts: dict[str, list[int]] = field(default_factory=dict)  # [right, right with twins, n]
    each: dict[str, list[int]] = field(default_factory=dict)  # of an illusion: singles, n, best, groups, controls
    cells: list[tuple[Tensor, str]] = field(default_factory=list)  # (parts (K, 3, H, W), label)

    def add(self, name: str, right: Sequence[bool], twins: Sequence[bool] | None = None) -> None:
        """Count pictures."""
        old = self.counts.setdefault(name, [0, 0, 0])
        for k, more in enumerate((sum(right), sum(right if twins is None else twins), len(right))):
            old[k] += more

    def sheet(self, path: Path) -> None:
        """Write the cells, all of as many parts."""
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [grid(from_tensor(parts.clamp(-1, 1)), len(parts), min_cell=CELL) for parts, _ in self.cells]
        write_png(path, grid(rows, 6, labels=[label for _, label in self.cells], min_cell=1, gap=6))


@dataclass
class Bench:
    """What all tricks share."""

    model: Any
    args: Any
    judge: Reader
    chooser: Panel

    def plain(self, prompts: Sequence[str], seed: int = 0) -> Tensor:
        """Draw one picture per prompt, each of its own seed."""
        job = job_for(Sample, self.model, scheduler="ddim", steps=self.args.steps, guidance=self.args.guidance)
        return pictures(self.model, job, range(seed, seed + len(prompts)), prompts)


def prompt(thing: str) -> str:
    """How the dataset calls a thing: black glyphs, red shapes."""
    return caption(Subject(shape=thing, ground="red") if thing in SHAPES else Subject(thing, "black"))


def edits(bench: Bench) -> Tally:
    """SDEdit that keeps the class, and that changes it."""
    tally, args = Tally(), bench.args
    things = (*GLYPHS, *SHAPES)
    names = [things[k % len(things)] for k in range(args.num)]
    others = [things[(k + SHIFT) % len(things)] for k in range(args.num)]
    source = bench.plain([prompt(name) for name in names])
    shown, marks = [source], [f"{a} to {b}" for a, b in zip(names, others, strict=True)]
    tally.add("plain", *things_right(bench.judge, source, names)[:2])
    for strength, title, asked in ((KEPT, "kept", names), (CHANGED, "changed", others)):
        shown.append(edited(bench, source, [prompt(name) for name in asked], strength))
        exact, alike, read = things_right(bench.judge, shown[-1], asked)
        tally.add(f"{title} at {strength}", exact, alike)
        marks = [mark + ("" if ok else f", {title}: {what}") for mark, ok, what in zip(marks, exact, read, strict=True)]
    # Wrong ones first.
    order = sorted(range(args.num), key=lambda k: "," not in marks[k])
    tally.cells = [(torch.stack([part[k] for part in shown]), marks[k]) for k in order[:SHOWN]]
    return tally


def edited(bench: Bench, source: Tensor, prompts: Sequence[str], strength: float) -> Tensor:
    """SDEdit each picture with its own prompt."""
    args, found = bench.args, []
    for k, (image, words) in enumerate(zip(from_tensor(source), prompts, strict=True)):
        job = job_for(
            SDEdit, bench.model, image=image, strength=strength, steps=args.steps, guidance=args.sdedit_guidance,
            scheduler=args.sdedit_scheduler,
        )  # fmt: skip
        found.append(pictures(bench.model, job, [9000 + k], [words]))
    return torch.cat(found)


def things_right(judge: Reader, images: Tensor, names: Sequence[str]) -> tuple[list[bool], list[bool], list[str]]:
    """Whether pictures show one glyph or shape and nothing else, the same with twins, and what was read."""
    verdict = judge(images)
    wanted = [(NONE, name) if name in HEADS["shape"] else (name, NONE) for name in names]
    seen_ = list(zip(verdict.glyph, verdict.shape, strict=True))
    exact = [a == b for a, b in zip(seen_, wanted, strict=True)]
    alike = [same_glyph(a[0], b[0], twins=True) and a[1] == b[1] for a, b in zip(seen_, wanted, strict=True)]
    return exact, alike, [" ".join(part for part in pair if part != NONE) or "nothing" for pair in seen_]


def inpainting(bench: Bench) -> Tally:
    """The right half of digits, painted anew."""
    tally, args, count = Tally(), bench.args, bench.args.num
    drawn = [DIGITS[k % 10] for k in range(count)]
    real, truth = split("test", 12 * count)
    rows = ((truth["glyph"] < 10) & (truth["ink"] == 0) & (truth["shape"] == len(SHAPES))).nonzero()[:count, 0]
    named = [DIGITS[int(truth["glyph"][row])] for row in rows]
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 16:] = 1
    sources = (
        ("drawn", bench.plain([prompt(name) for name in drawn], 20_000), drawn),
        ("real", to_tensors(list(real[rows])), named),
    )
    for title, source, names in sources:
        found: list[Tensor] = []
        for k, image in enumerate(from_tensor(source)):
            job = job_for(
                Inpaint, bench.model, image=image, mask=from_tensor(mask * 2 - 1)[0], steps=args.steps,
                guidance=args.inpaint_guidance, scheduler="ddpm",
            )  # fmt: skip
            found.append(pictures(bench.model, job, [7000 + k], [prompt(names[k])]))
        images = torch.cat(found)
        exact, alike, read = things_right(bench.judge, images, names)
        same = (images[..., :16] == source[..., :16]).flatten(1).all(1)
        tally.add(title, exact, alike)
        tally.add(f"{title}, known pixels exact", same.tolist())
        tally.add(f"{title}, before it", *things_right(bench.judge, source, names)[:2])
        for k in sorted(range(len(names)), key=exact.__getitem__)[: SHOWN // 2]:  # wrong ones first
            label = f"{title} {names[k]}{'' if exact[k] else ' no: ' + read[k]}"
            tally.cells.append((torch.stack([source[k], source[k] * (1 - mask[0]), images[k]]), label))
    return tally
