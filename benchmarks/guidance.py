"""How near guidance by a colour comes to it, and whether the pictures still show what their prompts say.

For digits and letters n pictures are drawn plain, and with `--guide color:COLOR,side=1@SCALE` for each scale, the
captions taken in turn and seed k for picture k, always the same ones. Two numbers stand beside each other: the largest
channel error of the picture's mean colour, out of 255, as the mean and the worst over pictures; and the share of
pictures in which the judge of glyph_judge.py reads the prompt's glyph. The judge has seen white paper only, so that a
control says what it loses by the colour alone: the plain pictures, shifted to the colour by arithmetic.

Run: python benchmarks/guidance.py [MODEL] [-n 32] [--scales 40 60] [--color '#b4a0b4'] [--through network]
"""

from __future__ import annotations

import time
from typing import Any

import torch
from common import OUTPUTS, describe, finish, machine, parser, table
from drawing import job_for, pictures
from glyph_judge import Reader, load_judge
from glyph_quality import subjects
from torch import Tensor

from diffkit.data.glyphs.wording import Subject, caption
from diffkit.jobs.sample import Sample
from diffkit.models import load
from diffkit.pictures.grids import grid
from diffkit.pictures.images import parse_color
from diffkit.pictures.metadata import write_png
from diffkit.pictures.tensors import from_tensor, to_tensor
from diffkit.types import Model

KINDS = ("digits", "letters")
PLAIN, SHIFTED = "plain", "plain, shifted"


def color_errors(images: Tensor, color: str) -> Tensor:
    """Return each picture's largest channel error of its mean colour, (N,) out of 255.

    Args:
        images: (N, 3, H, W) in [-1, 1].
        color: A name or `#rrggbb`.
    """
    wanted = torch.tensor(parse_color(color)) - 127.5
    return (images.mean((2, 3)) * 127.5 - wanted).abs().amax(1)


def shifted(images: Tensor, color: str, rounds: int = 50) -> Tensor:
    """Shift pictures, channel by channel, until their mean has a colour, as a file keeps them: white is cut off."""
    wanted = torch.tensor(parse_color(color)).view(3, 1, 1) / 127.5 - 1
    found = images
    for _ in range(rounds):
        found = (found + wanted - found.mean((2, 3), keepdim=True)).clamp(-1, 1)
    return to_tensor(from_tensor(found))


def counted(images: Tensor, wanted: list[Subject], read: Reader, color: str) -> dict[str, Any]:
    """Measure pictures of these subjects."""
    errors, verdict = color_errors(images, color), read(images)
    right = [verdict.right(k, subject)["glyph"] for k, subject in enumerate(wanted)]
    twins = [verdict.right(k, subject, twins=True)["glyph"] for k, subject in enumerate(wanted)]
    return {
        "n": len(wanted),
        "error_mean": float(errors.mean()),
        "error_worst": float(errors.max()),
        "read": 100 * sum(right) / len(wanted),
        "read_with_twins": 100 * sum(twins) / len(wanted),
    }


def draw(model: Model, kind: str, scale: float, args: Any) -> Tensor:
    """Draw pictures of a kind, guided where the scale is not 0: (N, 3, H, W) in [-1, 1]."""
    labels = [caption(one) for one in subjects(kind, args.num)]
    guides = [f"color:{args.color},side=1@{scale:g}"] if scale else []
    job = job_for(Sample, model, steps=args.steps, guidance=args.guidance, guides=guides, guide_through=args.through)
    images = pictures(model, job, range(len(labels)), labels, args.batch_size)
    print(f"{kind} {guides or PLAIN}: mean error {float(color_errors(images, args.color).mean()):.2f}", flush=True)
    return images


def drawn(args: Any) -> dict[str, dict[str, Tensor]]:
    """Draw every kind plain and guided; pictures by kind and way."""
    model = load(args.model, device=args.device)
    found: dict[str, dict[str, Tensor]] = {}
    for kind in KINDS:
        plain = draw(model, kind, 0.0, args)
        guided = {f"@{scale:g}": draw(model, kind, scale, args) for scale in args.scales}
        found[kind] = {PLAIN: plain, **guided, SHIFTED: shifted(plain, args.color)}
    return found


def measure(args: Any) -> dict[str, Any]:
    """Draw, measure and judge."""
    facts, start = machine(args.device), time.perf_counter()
    found = drawn(args)
    read, judge = load_judge()
    kinds: dict[str, dict[str, Any]] = {}
    for kind, ways in found.items():
        wanted = subjects(kind, args.num)
        kinds[kind] = {way: counted(images, wanted, read, args.color) for way, images in ways.items()}
        path = OUTPUTS / f"guided-{kind}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        shown = torch.cat([images[:8] for images in ways.values()])
        labels = [way if k == 0 else "" for way in ways for k in range(min(8, args.num))]
        write_png(path, grid(from_tensor(shown), min(8, args.num), labels=labels, min_cell=96))
    return {
        "model": str(args.model),
        "color": args.color,
        "guide": f"color:{args.color},side=1@SCALE",
        "through": args.through,
        "steps": args.steps,
        "guidance": args.guidance,
        "seeds": [0, args.num - 1],
        "kinds": kinds,
        "judge_on_real": {kind: judge["kinds"][kind[:-1]] for kind in KINDS},
        "seconds": round(time.perf_counter() - start, 1),
        "machine": facts,
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("model", nargs="?", default="tiny", help="A text-to-image model of 32 pixels.")
    options.add_argument("-n", "--num", type=int, default=32, help="Pictures of each kind and way.")
    options.add_argument("--color", default="#b4a0b4")
    options.add_argument("--scales", type=float, nargs="+", default=[40.0, 60.0])
    options.add_argument("--through", choices=("x0", "network"), default="x0", help="As --guide-through.")
    options.add_argument("--guidance", type=float, default=5.0)
    options.add_argument("--steps", type=int, default=30)
    options.add_argument("--batch-size", type=int, default=32)
    options.add_argument("--device", default="cpu")
    args = options.parse_args()
    result = measure(args)
    print(describe(result["machine"]))
    rows = [
        [kind, way, r["error_mean"], r["error_worst"], r["read"], r["read_with_twins"], r["n"]]
        for kind, ways in result["kinds"].items()
        for way, r in ways.items()
    ]
    print(table(["kind", "way", "error, mean", "worst", "% read", "% with twins", "n"], rows))
    print(f"\nseeds {result['seeds'][0]} to {result['seeds'][1]}; {result['seconds']} s")
    finish(result, args.json)


if __name__ == "__main__":
    main()
