"""Anagrams per second: a batch through one network call a step, against one sample after another.

Stage I of a DeepFloyd IF with random weights (64 px, `--channels`) draws SAMPLES pictures of two views, with guidance.
"batched" is `diffkit.illusions.drawing.draw_steps` of all seeds at once: views x guidance x samples are one call of the
network.
"one by one" is the same function, one seed after another. With `--reference`, a checkout of the papers' own code
(github.com/dangeng/visual_anagrams), its `sample_stage_1` is run as its `generate.py` runs it, on the same weights, in
the same process; what it needs beyond diffkit's environment (torchvision, einops) may lie in the folder `--packages`.
On the CPU its hard-coded device is replaced. The largest difference of the pictures shows that all do the same work.

Rounds take turns; medians are given. Loading and encoding the prompts are not counted, and one run of each comes first.

Run: python benchmarks/illusions.py [--reference DIR [--packages DIR]] [--samples 8] [--steps 10] [--rounds 3]
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import ROOT, describe, finish, machine, parser, table
from torch import Tensor

PROMPTS = ("an oil painting of a dog", "a photo of a village")
GUIDANCE = 10.0
HYBRID = "low_high"


class Counted:
    """Counts the calls of a network, and their rows."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.calls = self.rows = 0
        network.register_forward_pre_hook(self._count)

    def _count(self, _: torch.nn.Module, args: tuple[Any, ...]) -> None:
        self.calls, self.rows = self.calls + 1, self.rows + len(args[0])

    def taken(self) -> tuple[int, int]:
        """Return the counts since the last time."""
        counts, self.calls, self.rows = (self.calls, self.rows), 0, 0
        return counts


def ours(folder: Path, args: Any) -> tuple[Callable[[], Tensor], Callable[[], Tensor], Counted]:
    """Return our two ways to draw, and the counter of their network."""
    from drawing import illusions, job_for

    from diffkit.jobs.anagram import Anagram
    from diffkit.jobs.hybrid import Hybrid
    from diffkit.models import load

    model = load(str(folder), device=args.device)
    kind, way = (Hybrid, {"split": HYBRID}) if args.view == HYBRID else (Anagram, {"views": (args.view,)})
    job = job_for(
        kind, model, prompts=PROMPTS, scheduler="ddpm", steps=args.steps, guidance=GUIDANCE, max_batch=args.max_batch,
        **way,
    )  # fmt: skip
    seeds = list(range(args.samples))
    return (
        lambda: illusions(model, job, seeds),
        lambda: torch.cat([illusions(model, job, [seed]) for seed in seeds]),
        Counted(model.unet),
    )


def theirs(folder: Path, args: Any) -> tuple[Callable[[], Tensor], Counted]:
    """Return the reference's way to draw, and the counter of its network."""
    sys.path[:0] = [str(args.reference), *([str(args.packages)] if args.packages else [])]
    _declare_operators()
    source = (args.reference / "visual_anagrams" / "samplers.py").read_text(encoding="utf-8")
    samplers = types.ModuleType("samplers")
    source = source.replace("torch.device('cuda')", f"torch.device({args.device!r})")
    source = source.replace("tqdm(timesteps)", "timesteps")  # no time for its progress bars
    exec(compile(source, "samplers.py", "exec"), samplers.__dict__)
    from diffusers import DiffusionPipeline
    from visual_anagrams.views import get_views

    pipeline = DiffusionPipeline.from_pretrained(folder, watermarker=None, requires_safety_checker=False)
    pipeline = pipeline.to(args.device)
    embeddings = [pipeline.encode_prompt(prompt) for prompt in PROMPTS]
    prompts, negative = (torch.cat(part) for part in zip(*embeddings, strict=True))
    hybrid = args.view == HYBRID
    views = get_views(["low_pass", "high_pass"] if hybrid else ["identity", args.view])

    def one(seed: int) -> Tensor:
        picture: Tensor = samplers.sample_stage_1(
            pipeline, prompts, negative, views, num_inference_steps=args.steps, guidance_scale=GUIDANCE,
            reduction="sum" if hybrid else "mean", generator=torch.manual_seed(seed),
        )  # fmt: skip
        return picture.float().cpu()

    return lambda: torch.cat([one(seed) for seed in range(args.samples)]), Counted(pipeline.unet)


def _declare_operators() -> None:
    """Declare torchvision's compiled operators where the CPU build of torch lacks them, or its import fails."""
    if hasattr(torch.ops.torchvision, "nms"):
        return
    library = torch.library.Library("torchvision", "DEF")
    names = ["nms", "qnms", "deform_conv2d", "_deform_conv2d_backward", "_interpolate_bilinear2d_aa"]
    names += [
        name
        for kind in ("roi_align", "ps_roi_align", "roi_pool", "ps_roi_pool")
        for name in (kind, f"_{kind}_backward")
    ]
    for name in names:
        library.define(f"{name}(Tensor x) -> Tensor")
    globals()["_LIBRARY"] = library  # its operators are gone when it is


def measure(ways: dict[str, tuple[Callable[[], Tensor], Counted]], args: Any) -> list[dict[str, Any]]:
    """Time all ways, in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    counts: dict[str, tuple[int, int]] = {}
    pictures: dict[str, Tensor] = {}
    for turn in range(args.rounds + 1):
        for name, (way, counted) in ways.items():
            counted.taken()
            start = time.perf_counter()
            pictures[name] = way()
            if turn:
                seconds[name].append(time.perf_counter() - start)
            counts[name] = counted.taken()
    first = pictures["batched"]
    return [
        {
            "way": name,
            "network_calls": counts[name][0],
            "rows_per_call": counts[name][1] // counts[name][0],
            "seconds": statistics.median(seconds[name]),
            "images_per_second": args.samples / statistics.median(seconds[name]),
            "times_as_fast": statistics.median(
                other / ours for other, ours in zip(seconds[name], seconds["batched"], strict=True)
            ),
            "largest_difference": float((pictures[name] - first).abs().max()),
        }
        for name in ways
    ]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--reference", type=Path, metavar="DIR", help="A checkout of visual_anagrams.")
    options.add_argument("--packages", type=Path, metavar="DIR", help="Where torchvision and einops lie.")
    options.add_argument("--samples", type=int, default=8)
    options.add_argument("--steps", type=int, default=10)
    options.add_argument("--view", default="rotate_180", help="The second view; or low_high, a hybrid.")
    options.add_argument("--channels", default="32,64", help="Of the network's two levels, multiples of 8.")
    options.add_argument("--max-batch", type=int, help="Most rows in one of our network calls; no limit when left out.")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--device", default="cpu")
    args = options.parse_args()
    facts = machine(args.device)
    sys.path.insert(0, str(ROOT))
    from diffkit.models.devices import keep_memory
    from tests.support.tiny_if import make_tiny_if

    if args.device == "cpu":
        keep_memory()  # as the command line does; the reference, in the same process, gains by it as well
    channels = tuple(int(n) for n in args.channels.split(","))
    with tempfile.TemporaryDirectory() as root:
        os.environ["DIFFKIT_CACHE"] = f"{root}/kit"
        network = {"block_out_channels": channels, "norm_num_groups": 8, "attention_head_dim": 8}
        folder = make_tiny_if(Path(root, "stage-1"), 1, **network)
        batched, alone, counted = ours(folder, args)
        ways = {"batched": (batched, counted), "one by one": (alone, counted)}
        if args.reference:
            ways["reference"] = theirs(folder, args)
        results = measure(ways, args)
    print(describe(facts))
    print(
        f"{args.samples} samples, {args.view}, {args.steps} DDPM steps with guidance, 64 px, fp32, "
        f"{args.device}, median of {args.rounds} rounds"
    )
    heads = ["way", "network calls", "rows each", "seconds", "images/s", "batched is times as fast", "difference"]
    rows = [[*list(row.values())[:-1], f"{row['largest_difference']:.0e}"] for row in results]
    print(table(heads, rows))
    finish({"machine": facts, "results": results}, args.json)


if __name__ == "__main__":
    main()
