"""How many class-conditional samples of a run are recognised as the class that they were asked for.

n pictures are drawn (n / classes of each, seeds 0..n-1) from a folder that `diffkit train` wrote, and a classifier
trained on real images alone (judge.py) reads them. Beside the percentage stand the judge's own accuracy on held-out
real images, the control (the same pictures against shuffled labels: chance is 100 / classes), and the pictures' mean
pixelwise spread within a class against the real images', which falls where a network draws the same picture again and
again. A grid of the first pictures of each class, wrong ones marked, goes to outputs/.

Run: python benchmarks/quality.py runs/digits --judge digits [-n 200] [--guidance 2] [--steps 50] [--scheduler ddim]
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from common import OUTPUTS, describe, finish, machine, parser, table
from drawing import job_for, pictures
from judge import KINDS, load_judge, read
from torch import Tensor

from diffkit.jobs.sample import Sample
from diffkit.models import load
from diffkit.pictures.grids import grid
from diffkit.pictures.metadata import write_png
from diffkit.pictures.tensors import from_tensor

PER_ROW = 10


def spread(images: Tensor, labels: Tensor) -> float:
    """Mean over classes and pixels of the standard deviation within a class."""
    return float(torch.stack([images[labels == k].std(0).mean() for k in labels.unique()]).mean())


def sheet(images: Tensor, labels: Tensor, said: Tensor, path: Path) -> None:
    """Write a grid, one class per row; a picture that the judge reads otherwise is labelled with what it read."""
    classes = labels.unique().tolist()
    columns = min(PER_ROW, min(int((labels == k).sum()) for k in classes))
    rows = [row for k in classes for row in torch.nonzero(labels == k).flatten()[:columns].tolist()]
    marks = ["" if said[row] == labels[row] else f"read as {int(said[row])}" for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, grid(from_tensor(images[rows]), columns, labels=marks))


def measure(args: Any) -> dict[str, Any]:
    """Draw, judge and count."""
    facts = machine(args.device)
    classify, accuracy, judged_on = load_judge(args.judge)
    model = load(args.run, device=args.device)
    names = model.info.classes
    count = len(names)
    if count != 10:
        raise SystemExit(f"{args.run} has {count} classes; the judges know the ten digits")
    labels = torch.arange(args.num) % count
    job = job_for(Sample, model, scheduler=args.scheduler, steps=args.steps, guidance=args.guidance)
    start = time.perf_counter()
    images = pictures(model, job, range(args.num), [names[k] for k in labels.tolist()], args.batch_size)
    seconds = time.perf_counter() - start
    said = classify(images)
    right = said == labels
    shuffled = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    (real, truth), _ = read(KINDS[args.judge])
    path = OUTPUTS / f"quality-{Path(args.run).resolve().name}-{args.judge}.png"
    sheet(images, labels, said, path)
    return {
        "run": str(args.run),
        "n": args.num,
        "steps": args.steps,
        "guidance": args.guidance,
        "scheduler": args.scheduler or "ddim",
        "recognised": 100 * float(right.float().mean()),
        "per_class": {name: [int(right[labels == k].sum()), int((labels == k).sum())] for k, name in enumerate(names)},
        "control_shuffled": 100 * float((said == shuffled).float().mean()),
        "judge": {"kind": args.judge, "accuracy": 100 * accuracy, "n": judged_on},
        "spread": spread(images, labels),
        "spread_real": spread(real, truth),
        "seconds": round(seconds, 1),
        "grid": str(path),
        "machine": facts,
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("run", help="A folder that `diffkit train` wrote, class-conditional.")
    options.add_argument("--judge", required=True, choices=list(KINDS))
    options.add_argument("-n", "--num", type=int, default=200)
    options.add_argument("--guidance", type=float, default=2.0)
    options.add_argument("--steps", type=int, default=50)
    options.add_argument("--scheduler", default=None, help="ddim when left out.")
    options.add_argument("--batch-size", type=int, default=100)
    options.add_argument("--device", default="cpu")
    args = options.parse_args()
    result = measure(args)
    print(describe(result["machine"]))
    rows = [[name, right, of, 100.0 * right / of] for name, (right, of) in result["per_class"].items() if of]
    print(table(["class", "recognised", "of", "%"], rows))
    judge = result["judge"]
    print(f"\nrecognised as their class   {result['recognised']:.2f} % of {result['n']}")
    print(f"control, shuffled labels    {result['control_shuffled']:.2f} % (chance: 10 %)")
    print(f"the judge on real images    {judge['accuracy']:.2f} % of {judge['n']} held out")
    print(f"spread within a class       {result['spread']:.3f} (real images: {result['spread_real']:.3f})")
    print(f"drawn in {result['seconds']} s; grid: {result['grid']}")
    finish(result, args.json)


if __name__ == "__main__":
    main()
