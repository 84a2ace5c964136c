"""Enlarging anagrams four times: by all prompts at once against the first prompt alone, counted view by view.

MODEL draws anagrams of the natural pairs, in both orders; brought down to 16 px they are enlarged to 64 px by
`enlarge` and the small upscaler of glyph_upscaler.py:

first      the naive way: the picture as the first prompt alone would have it
direct     all prompts at once; the half turn acts on the latents
decode     the same with latent "decode": a latent for each view, brought together as pictures

The controls are the pictures as they were drawn, the 16 px enlarged bicubically, and held-out pictures of one glyph
with their own prompt, which say how good the upscaler is. The level is that of the noise on the small picture, in
timesteps: the higher, the more of the result is the prompts' work. The judge of glyph_judge.py reads every view at
32 px; log p is what it gives the prompt. Against `first`, with the same pictures: "2nd +" and "2nd -" count those whose
second view is read only now, and only there; "gain" is the mean change of the second view's log p, with its standard
error. For each level a sheet with both views of four anagrams goes to outputs/.

MNIST is found as by glyph_judge.py. Run: python benchmarks/upscale_views.py tiny [--levels 20 350 700] [--seeds 8]
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from common import OUTPUTS, describe, finish, machine, parser, table
from drawing import enlarged, illusions
from glyph_edits import prompt
from glyph_judge import Reader, load_judge
from glyph_tricks import NATURAL, Wanted, anagram
from glyph_upscaler import LARGE, SMALL, load_upscaler, pictures, shrunk, to_float
from torch import Tensor

from diffkit.engine.settings import Settings
from diffkit.illusions.composition import Composition
from diffkit.illusions.views import parse_view
from diffkit.models import load
from diffkit.pictures.grids import grid
from diffkit.pictures.metadata import write_png
from diffkit.types import Model

READ = 32  # pixels that the judge reads
PLAIN = Composition((parse_view("identity"),))
SHOWN = 4  # illusions on a sheet


@dataclass(frozen=True)
class Read:
    """What the judge made of pictures in V views: read as the prompt or not, and log p of it; both (N, V)."""

    right: Tensor
    scores: Tensor

    @classmethod
    def of(
        cls, judge: Reader, composition: Composition, prompts: Sequence[str], names: Sequence[str], images: Tensor
    ) -> Read:
        """Read every view."""
        right, scores = [], []
        for part, label, name in zip(composition.shown(images), prompts, names, strict=True):
            right.append(torch.tensor([found == name for found in judge(shrunk(part, READ)).glyph]))
            scores.append(judge.score(shrunk(part, READ), [label])[:, 0])
        return cls(torch.stack(right, 1), torch.stack(scores, 1))

    @classmethod
    def joined(cls, parts: list[Read]) -> Read:
        """Readings one after another."""
        return cls(torch.cat([one.right for one in parts]), torch.cat([one.scores for one in parts]))

    def row(self, first: Read | None = None) -> list[Any]:
        """Cells of the table; `first` is the naive way with the same pictures."""
        rates, scores = (100 * self.right.float().mean(0)).tolist(), self.scores.mean(0).tolist()
        cells: list[Any] = [rates[0], scores[0], None, None, None]
        if len(rates) > 1:
            cells[2:] = [rates[1], scores[1], 100 * float(self.right.all(1).float().mean())]
        changes: list[Any] = [None] * 4
        if first is not None:
            now, before, gain = self.right[:, 1], first.right[:, 1], (self.scores - first.scores)[:, 1]
            error = float(gain.std()) / math.sqrt(len(gain))
            changes = [int((now & ~before).sum()), int((before & ~now).sum()), float(gain.mean()), error]
        return [*cells, *changes, len(self.right)]


HEAD = ["level", "way", "1st %", "log p 1st", "2nd %", "log p 2nd", "both %", "2nd +", "2nd -", "gain", "error", "n"]


def commuting(upscaler: Any, images: Tensor) -> dict[str, float]:
    """Mean absolute errors of the VAE, and of turned latents against turned pictures; [-1, 1]."""
    latents = upscaler.codec.encode(images)
    turned = upscaler.codec.decode(latents.flip(2, 3)).flip(2, 3)
    return {
        "vae": float((upscaler.codec.decode(latents) - images).abs().mean()),
        "vae, latents turned": float((turned - images).abs().mean()),
        "bicubic": float((shrunk(shrunk(images, SMALL), LARGE) - images).abs().mean()),
    }


def ways(upscaler: Model, one: Wanted, small: Tensor, settings: Settings, level: int) -> dict[str, Tensor]:
    """Enlarge pictures (N, 3, 16, 16) in every way."""
    shared = one.composition
    both = enlarged(upscaler, shared, one.prompts, small, settings, level)
    decoded = enlarged(upscaler, replace(shared, latent="decode"), one.prompts, small, settings, level)
    first = enlarged(upscaler, PLAIN, one.prompts[:1], small, settings, level)
    return {"first": first, "direct": both, "decode": decoded}


def sheet(path: Path, rows: dict[str, list[Tensor]], names: list[tuple[str, ...]], one: Composition) -> None:
    """Write one row for each way, a column for each view; the first picture of each illusion."""
    cells = [view[0].clamp(-1, 1) for images in rows.values() for some in images for view in one.shown(some[:1])]
    heads = [name for pair in names for name in pair]
    labels = [f"{way}: {head}" if k == 0 else head for way in rows for k, head in enumerate(heads)]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, grid(torch.stack(cells), len(heads), labels=labels, min_cell=128, gap=4))


def main() -> None:
    options = parser(__doc__)
    options.add_argument("model", help="A text-to-image model of 32 pixels: tiny, or a folder.")
    options.add_argument("--levels", type=int, nargs="+", default=[20, 350, 700])
    options.add_argument("--seeds", type=int, default=8, help="Pictures of each of the ten illusions.")
    options.add_argument("--steps", type=int, default=20)
    options.add_argument("--guidance", type=float, default=4.0)
    options.add_argument("--retrain", action="store_true", help="Train even if there is an upscaler of these settings.")
    args = options.parse_args()
    facts, start = machine(), time.perf_counter()
    (upscaler, record), judge = load_upscaler(retrain=args.retrain), load_judge()[0]
    images, names = pictures("test", 10 * args.seeds)
    real, errors = to_float(images), commuting(upscaler, to_float(images))
    settings = Settings(steps=args.steps, guidance=args.guidance)
    model, wanted = load(args.model, device="cpu"), [anagram(*p) for pair in NATURAL for p in (pair, pair[::-1])]
    drawn = [illusions(model, one.job(model, guidance=4.0), range(args.seeds)).clamp(-1, 1) for one in wanted]
    small = [shrunk(some, SMALL) for some in drawn]
    rows: list[list[Any]] = []

    def told(level: int | None, way: str, some: list[Tensor], first: Read | None = None) -> Read:
        parts = [
            Read.of(judge, one.composition, one.prompts, one.names, part)
            for one, part in zip(wanted, some, strict=True)
        ]
        rows.append([level, way, *Read.joined(parts).row(first)])
        return Read.joined(parts)

    told(None, "as drawn, 32 px", drawn)
    plain = [shrunk(some, LARGE) for some in small]
    told(None, "bicubic", plain)
    for level in args.levels:
        made = [ways(upscaler, one, some, settings, level) for one, some in zip(wanted, small, strict=True)]
        large = {way: [each[way] for each in made] for way in made[0]}
        first = told(level, "first", large["first"])
        for way in ("direct", "decode"):
            told(level, way, large[way], first)
        parts = []
        for name in dict.fromkeys(names):
            some = real[torch.tensor([name == other for other in names])]
            alone = enlarged(upscaler, PLAIN, [prompt(name)], shrunk(some, SMALL), settings, level)
            parts.append(Read.of(judge, PLAIN, [prompt(name)], [name], alone))
        rows.append([level, "held out, one view", *Read.joined(parts).row()])
        chosen = range(0, 2 * SHOWN, 2)
        shown = {way: [some[k] for k in chosen] for way, some in {"16 px": plain, **large}.items()}
        path = OUTPUTS / f"upscale-views-{level}.png"
        sheet(path, shown, [wanted[k].names for k in chosen], wanted[0].composition)
        print(f"level {level}: {path}, {time.perf_counter() - start:.0f} s", flush=True)
    print(f"\n{table(HEAD, rows)}\n")
    print(f"{table(['mean absolute error', ''], [[what, f'{error:.3f}'] for what, error in errors.items()])}\n")
    print(describe(facts))
    told_rows = [dict(zip(HEAD, row, strict=True)) for row in rows]
    finish({"options": vars(args) | {"json": str(args.json)}, "machine": facts, "training": record, "errors": errors,
            "rows": told_rows}, args.json)  # fmt: skip


if __name__ == "__main__":
    main()
