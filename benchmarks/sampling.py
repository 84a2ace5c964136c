"""How much of a sampling run is spent outside the network: random numbers, scheduler, guidance, decoding, PIL images.

The recipe `digits`' network (random weights, or those of RUN) draws pictures with DDIM by `diffkit.jobs.sample`. On
the CPU the calls of the network are timed one by one and subtracted from the whole. As a check, and on a GPU (where a
call only queues work) in place of it, the same number of bare calls with the same batch is timed alone. Medians of
several rounds; loading and a warm-up are not counted.

Run: python benchmarks/sampling.py [RUN] [--steps 50] [--batch-sizes 1,16,64] [--rounds 5]
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from common import describe, finish, machine, parser, table
from drawing import job_for, pictures

from diffkit.jobs.sample import Sample
from diffkit.models.ddpm import DDPM


def random_model(device: str) -> DDPM:
    """The recipe `digits` with untrained weights."""
    from diffkit.engine.schedules import make_noise_scheduler
    from diffkit.models.meta import RunMeta
    from diffkit.models.network import build_network
    from diffkit.recipes.reading import load_recipe

    recipe = load_recipe("digits")
    size = recipe.dataset.resolution
    network = build_network(recipe.model, shape=(1, size, size), num_classes=10)
    meta = RunMeta(
        prediction="epsilon", conditioning="embedding", class_names=[str(k) for k in range(10)], resolution=size,
        channels=1, sigma=None, recipe="digits",
    )  # fmt: skip
    return DDPM(network, make_noise_scheduler(recipe.noise), meta, device=device)


class Timed:
    """Counts and times the calls of a network's forward while it is switched on."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.network, self.forward = network, network.forward
        self.seconds, self.calls, self.rows = 0.0, 0, 0

    def __enter__(self) -> Timed:
        self.seconds, self.calls = 0.0, 0
        self.network.forward = self._call
        return self

    def __exit__(self, *error: object) -> None:
        self.network.forward = self.forward

    def _call(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        start = time.perf_counter()
        out = self.forward(x, *args, **kwargs)
        self.seconds += time.perf_counter() - start
        self.calls, self.rows = self.calls + 1, len(x)
        return out


def whole(model: DDPM, batch: int, job: Sample) -> float:
    """Seconds of one sampling run, from seeds to PIL images."""
    labels = [str(k % 10) for k in range(batch)] if job.guidance != 0 else []
    start = time.perf_counter()
    pictures(model, job, range(batch), labels, batch)
    return time.perf_counter() - start


@torch.no_grad()
def calls_alone(model: DDPM, rows: int, calls: int) -> float:
    """Seconds of as many bare calls of the network."""
    x = torch.randn(rows, *model.info.sample, device=model.device)
    labels = torch.zeros(rows, dtype=torch.long, device=model.device)
    t = torch.tensor(500, device=model.device)
    _wait(model)
    start = time.perf_counter()
    for _ in range(calls):
        model.network(x, t, labels)
    _wait(model)
    return time.perf_counter() - start


def _wait(model: DDPM) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def measure(model: DDPM, batch: int, job: Sample, rounds: int) -> dict[str, Any]:
    """Medians for one batch size and guidance."""
    timed = Timed(model.network)
    with timed:  # warm-up, and the number of calls
        whole(model, batch, job)
    calls, rows = timed.calls, timed.rows
    calls_alone(model, rows, 3)
    total, outside, alone, plain = [], [], [], []
    for _ in range(rounds):
        with timed:
            total.append(whole(model, batch, job))
            outside.append(1 - timed.seconds / total[-1])
        plain.append(whole(model, batch, job))
        alone.append(calls_alone(model, rows, calls))
    return {
        "batch": batch,
        "guidance": job.guidance,
        "calls": calls,
        "seconds": statistics.median(plain),
        "outside_percent": None if model.device.type == "cuda" else 100 * statistics.median(outside),
        "over_bare_calls_percent": 100 * (statistics.median(plain) / statistics.median(alone) - 1),
        "images_per_second": batch / statistics.median(plain),
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("run", nargs="?", help="A class-conditional run folder; random weights when left out.")
    options.add_argument("--steps", type=int, default=50)
    options.add_argument("--scheduler", default="ddim")
    options.add_argument("--batch-sizes", default="1,16,64")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--device", default="cpu")
    args = options.parse_args()
    facts = machine(args.device)
    if args.run:
        from diffkit.models import load

        model = load(args.run, device=args.device)
    else:
        model = random_model(args.device)
    results = [
        measure(
            model,
            batch,
            job_for(Sample, model, scheduler=args.scheduler, steps=args.steps, guidance=scale),
            args.rounds,
        )
        for batch in map(int, args.batch_sizes.split(","))
        for scale in (1.0, 2.0)
    ]
    print(describe(facts))
    print(
        f"{args.scheduler}, {args.steps} steps, {model.info.size[0]} px, {args.device}, median of {args.rounds} rounds"
    )
    heads = ["batch", "guidance", "calls", "seconds", "outside the net %", "over bare calls %", "images/s"]
    print(table(heads, [list(row.values()) for row in results]))
    finish({"machine": facts, "results": results}, args.json)


if __name__ == "__main__":
    main()
