"""The classifier that judges pictures like those of the dataset `glyphs`: which glyph, which shape, in which colours.

One small convolutional network with four heads learns the split `validation`: digits and fonts that a model trained on
`train` never sees. Pictures are shifted, turned, blurred and made noisy while it learns, and some blurred so strongly
that only shapes and colours count: it also has to read the far half of a hybrid image. The accuracy printed is on the
split `test`, whose digits neither saw. Where two glyphs can be the same strokes (`TWINS`), a second number counts
either as right. Kept in outputs/judges under a hash of its settings, as in judge.py.

MNIST: $DIFFKIT_MNIST, else $DIFFKIT_TEST_DATA/mnist, else the Hub.
Run: python benchmarks/glyph_judge.py [--retrain] [--confusion 12]
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import finish, parser, table
from judge import Settings, augment
from torch import Tensor, nn

from diffkit.data import open_dataset
from diffkit.data.glyphs.dataset import GlyphSource
from diffkit.data.glyphs.wording import ANY_GLYPH, ANY_SHAPE, GLYPHS, INKS, LETTERS, SHAPES, Subject, parse
from diffkit.models.devices import keep_memory
from diffkit.recipes.schema import DatasetSpec
from diffkit.training.fast import emulated

NONE = "-"
# Each head's classes; the last is "there is none". `ink` is the glyph's colour, `ground` the shape's.
HEADS = {"glyph": (*GLYPHS, NONE), "shape": (*SHAPES, NONE), "ink": (*INKS, NONE), "ground": (*INKS, NONE)}
# Glyphs that are the same strokes in many a hand and face.
TWINS = ({"O", "zero"}, {"I", "one"}, {"Z", "two"}, {"S", "five"})
SETTINGS = Settings(
    "glyphs", resolution=32, epochs=5, held_out=0.0, batch_size=128, degrees=8.0, scale=0.08, shift=0.06, version=3
)
CPU = torch.device("cpu")
PICTURES = 45_000
HELD_OUT = 6_000
FAR = 0.2  # share of pictures blurred so strongly that their glyphs do not count


class GlyphJudge(nn.Module):
    """Five convolutions, three poolings, one linear layer: (N, 3, 32, 32) in [-1, 1] -> logits by head."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        plan = [(3, width, 1), (width, width, 2), (width, 2 * width, 1), (2 * width, 2 * width, 2)]
        for before, after, pool in [*plan, (2 * width, 3 * width, 2)]:
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if pool == 2 else []
        self.sizes = [len(names) for names in HEADS.values()]
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(3 * width * 16, sum(self.sizes)))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return logits (N, classes) by head."""
        return dict(zip(HEADS, self.layers(images).split(self.sizes, 1), strict=True))


def split(name: str, count: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return `count` pictures (N, 3, 32, 32) in [-1, 1] of a split, and their classes (N,) by head."""
    if "DIFFKIT_MNIST" not in os.environ and (folder := os.environ.get("DIFFKIT_TEST_DATA")):
        os.environ["DIFFKIT_MNIST"] = str(Path(folder) / "mnist")
    source = open_dataset(DatasetSpec(name=f"glyphs:,{count}", split=name, resolution=32)).source
    assert isinstance(source, GlyphSource)
    pixels = torch.cat([torch.from_numpy(source.render(rows.numpy())) for rows in torch.arange(count).split(512)])
    plan = source.plan
    alone = (plan.glyph < 0) & (plan.shape >= 0)  # then the plan's ink is the shape's
    columns = {
        "glyph": plan.glyph,
        "shape": plan.shape,
        "ink": (plan.ink + 1) * ~alone - 1,
        "ground": plan.ground * ~alone + plan.ink * alone,
    }
    truth = {head: torch.from_numpy(rows).long() % len(HEADS[head]) for head, rows in columns.items()}  # -1: none
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1, truth


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur each picture (N, C, H, W) by its own sigma (N,), pixels; edges are repeated."""
    reach = math.ceil(3 * float(sigma.max()))
    at = torch.arange(-reach, reach + 1).float()
    kernel = torch.exp(-(at[None] ** 2) / (2 * sigma.clamp(min=0.05)[:, None] ** 2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(images.shape[1], 0)
    flat = images.reshape(1, -1, *images.shape[2:])
    for shape, pad in (
        ((-1, 1, 1, 2 * reach + 1), (reach, reach, 0, 0)),
        ((-1, 1, 2 * reach + 1, 1), (0, 0, reach, reach)),
    ):
        flat = F.conv2d(F.pad(flat, pad, mode="replicate"), kernel.view(shape), groups=flat.shape[1])
    return flat.view_as(images)


def disturb(images: Tensor, settings: Settings, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Turn, move, blur and spoil pictures; return them and which of them are blurred beyond reading a glyph (N,)."""
    images = -augment(-images, settings, generator)  # `augment` fills with -1, paper is 1
    far, some = torch.rand(2, len(images), generator=generator)
    amount = torch.rand(len(images), generator=generator)
    sigma = torch.where(far < FAR, 1.5 + 2 * amount, torch.where(some < 0.4, amount, torch.zeros(())))
    images = blur(images, sigma)
    noise = 0.1 * torch.rand(len(images), 1, 1, 1, generator=generator)
    gain = 1 + 0.15 * (2 * torch.rand(len(images), 3, 1, 1, generator=generator) - 1)
    spoilt = (1 - (1 - images) * gain) + noise * torch.randn(images.shape, generator=generator)
    return spoilt.clamp(-1, 1), far < FAR


def train(settings: Settings) -> tuple[GlyphJudge, dict[str, Any]]:
    """Train the judge on `validation`; return it with what is measured on `test`."""
    keep_memory()
    images, truth = split("validation", PICTURES)
    generator = torch.Generator().manual_seed(settings.seed)
    with torch.random.fork_rng(devices=[]):  # initial weights and dropout
        torch.manual_seed(settings.seed)
        judge = GlyphJudge().train().to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(judge.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
        per_epoch = len(images) // settings.batch_size
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, settings.lr, total_steps=settings.epochs * per_epoch, pct_start=0.2
        )
        for _ in range(settings.epochs):
            order = torch.randperm(len(images), generator=generator)
            for k in range(per_epoch):
                rows = order[k * settings.batch_size : (k + 1) * settings.batch_size]
                spoilt, far = disturb(images[rows], settings, generator)
                loss = torch.zeros(())
                with torch.autocast("cpu", torch.bfloat16, enabled=not emulated("bf16", CPU)):  # a third of the time
                    found = judge(spoilt.contiguous(memory_format=torch.channels_last))
                for head, logits in found.items():
                    wanted = truth[head][rows]
                    each = F.cross_entropy(logits.float(), wanted, label_smoothing=settings.smoothing, reduction="none")
                    loss = loss + (each * ~far if head in ("glyph", "ink") else each).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    judge = judge.to(memory_format=torch.contiguous_format)
    return judge, measure(Reader(judge), *split("test", HELD_OUT))


@dataclass(frozen=True)
class Verdict:
    """What the judge reads in N pictures: a name of `HEADS` each, "-" for none."""

    glyph: list[str]
    shape: list[str]
    ink: list[str]
    ground: list[str]

    def right(self, k: int, wanted: Subject, *, twins: bool = False) -> dict[str, bool]:
        """Return for each part that a subject names whether picture k has it; `colour` is that of what it names."""
        found: dict[str, bool] = {}
        if wanted.glyph != ANY_GLYPH:
            found["glyph"] = same_glyph(self.glyph[k], wanted.glyph or NONE, twins=twins)
        if wanted.shape != ANY_SHAPE:
            found["shape"] = self.shape[k] == (wanted.shape or NONE)
        pairs = [(self.ink[k], wanted.ink), (self.ground[k], wanted.ground)]
        if any(asked for _, asked in pairs):
            found["colour"] = all(seen == asked for seen, asked in pairs if asked)
        return found


def same_glyph(seen: str, wanted: str, *, twins: bool = False) -> bool:
    """Whether two glyphs are the same, or with `twins` may be the same strokes."""
    return seen == wanted or (twins and any({seen, wanted} <= pair for pair in TWINS))


class Reader:
    """A trained judge as a function of pictures (N, 3, 32, 32) in [-1, 1]; also a `Scorer`."""

    tau = 1.0

    def __init__(self, judge: GlyphJudge) -> None:
        self.judge = judge.eval()

    @torch.no_grad()
    def logits(self, images: Tensor) -> dict[str, Tensor]:
        """Return logits (N, classes) by head; the classes are those of `HEADS`."""
        if tuple(images.shape[1:]) != (3, 32, 32):
            raise SystemExit(f"this judge reads pictures of shape (3, 32, 32), not {tuple(images.shape[1:])}")
        parts = [self.judge(part) for part in images.float().cpu().clamp(-1, 1).split(512)]
        return {head: torch.cat([part[head] for part in parts]) for head in HEADS}

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Log-probabilities (N, P) of the glyph and the shape that captions name; colours do not count."""
        found = {head: logits.log_softmax(1) for head, logits in self.logits(images).items()}
        columns = []
        for wanted in map(parse, prompts):
            named = {"glyph": wanted.glyph, "shape": wanted.shape}
            parts = [found[h][:, HEADS[h].index(name)] for h, name in named.items() if name in HEADS[h]]
            columns.append(torch.stack(parts).sum(0))
        return torch.stack(columns, 1)

    def __call__(self, images: Tensor) -> Verdict:
        """Read pictures."""
        found = self.logits(images)
        return Verdict(**{head: [HEADS[head][i] for i in found[head].argmax(1).tolist()] for head in HEADS})


class Panel:
    """Several judges as one `diffkit.evaluation.scorers.Scorer`: the mean of their log-probabilities."""

    tau = 1.0

    def __init__(self, readers: Sequence[Reader]) -> None:
        self.readers = readers

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (N, P), as of `Reader.score`."""
        return torch.stack([reader.score(images, prompts) for reader in self.readers]).mean(0)


def measure(read: Reader, images: Tensor, truth: dict[str, Tensor]) -> dict[str, Any]:
    """Return accuracies by head and kind, and the confusions among the 44 single things."""
    verdict = read(images)
    named = {head: [HEADS[head][i] for i in rows.tolist()] for head, rows in truth.items()}
    heads = {
        head: sum(a == b for a, b in zip(getattr(verdict, head), named[head], strict=True)) / len(images)
        for head in HEADS
    }
    kinds: dict[str, list[int]] = {}
    confused: Counter[tuple[str, str]] = Counter()
    for k in range(len(images)):
        glyph, shape = named["glyph"][k], named["shape"][k]
        both = glyph != NONE and shape != NONE
        kind = "composition" if both else "shape" if glyph == NONE else "letter" if glyph in LETTERS else "digit"
        good = verdict.glyph[k] == glyph and verdict.shape[k] == shape
        twin = same_glyph(verdict.glyph[k], glyph, twins=True) and verdict.shape[k] == shape
        counts = kinds.setdefault(kind, [0, 0, 0])
        counts[0] += good
        counts[1] += twin
        counts[2] += 1
        if not both:
            real = shape if glyph == NONE else glyph
            seen = verdict.shape[k] if glyph == NONE else verdict.glyph[k]
            if seen != real:
                confused[real, seen] += 1
    return {
        "heads": heads,
        "kinds": {kind: {"right": a / n, "with_twins": b / n, "n": n} for kind, (a, b, n) in sorted(kinds.items())},
        "confused": [[real, seen, count] for (real, seen), count in confused.most_common()],
        "n": len(images),
    }


def load_judge(*, retrain: bool = False, seed: int = 0) -> tuple[Reader, dict[str, Any]]:
    """Return the judge, trained now or earlier, and what was measured on `test`.

    Another seed is another judge: one that chooses among pictures should not be the one that counts them.
    """
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    settings = replace(SETTINGS, seed=seed)
    path = settings.path()
    if path.is_file() and not retrain:
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["facts"])
        judge = GlyphJudge()
        judge.load_state_dict(load_file(path))
        return Reader(judge), facts
    judge, facts = train(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(judge.state_dict(), path, metadata={"facts": json.dumps({**facts, "settings": asdict(settings)})})
    return Reader(judge), facts


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--retrain", action="store_true", help="Train even if there is a judge of these settings.")
    options.add_argument("--seed", type=int, default=0, help="Another seed is another judge.")
    options.add_argument("--confusion", type=int, default=12, metavar="N", help="Show the N most frequent confusions.")
    args = options.parse_args()
    start = time.perf_counter()
    _, facts = load_judge(retrain=args.retrain, seed=args.seed)
    rows = [[kind, 100 * r["right"], 100 * r["with_twins"], r["n"]] for kind, r in facts["kinds"].items()]
    print(table(["held out", "% right", "% with twins", "n"], rows))
    print(f"\n{table(['head', '% right'], [[head, 100 * value] for head, value in facts['heads'].items()])}")
    print(f"\n{table(['is', 'read as', 'times'], facts['confused'][: args.confusion])}")
    print(f"\n{time.perf_counter() - start:.0f} s; the judge is kept at {replace(SETTINGS, seed=args.seed).path()}")
    finish(facts, args.json)


if __name__ == "__main__":
    main()
