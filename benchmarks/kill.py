"""How many runs that were killed with SIGKILL and started again end bit-equal to one that was never stopped.

A small run (8-pixel digits; with dropout, flips, class dropout, an average, gradient accumulation, reduce-on-plateau)
is trained once without a stop. Then, n times, the same command is started in a fresh folder, killed at a random moment,
and run again until it ends. Moments are uniform over the time that the uninterrupted run trained; every fourth kill
waits for a checkpoint to be in the middle of its saving. Compared without tolerance: the weights, the average, the
optimizer's state and the counters of the last checkpoint, the pipeline's weights, and the losses that were logged. Two
controls must differ: a run of another seed, and a run that was killed and lost one tensor of its optimizer's state
before it went on.

Run: python benchmarks/kill.py [-n 20] [--jobs 2] [--seed 0]
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from common import describe, finish, machine, parser, table
from safetensors.torch import load_file, save_file

from diffkit.training import checkpoint

FIELDS = [
    "dataset.resolution=8", "dataset.limit=100", "dataset.flip=true", "dataset.validation=0.1", "model.preset=tiny",
    "model.class_conditioning=embedding", "model.overrides.dropout=0.1", "training.batch_size=8",
    "training.gradient_accumulation=2", "training.warmup_steps=10", "training.lr_schedule=plateau",
    "training.plateau_patience=0", "training.validate_every=20", "training.log_every=5", "training.checkpoint_every=10",
    "training.preview_every=100", "training.preview_images=2", "training.preview_steps=2", "training.ema_decay=0.99",
]  # fmt: skip
# One thread each: the runs share the cores, and a sum must not depend on how many are free.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg"}


def command(folder: Path, steps: int, *more: str) -> list[str]:
    """The command that is run, killed, and run again."""
    sets = [*FIELDS, f"training.steps={steps}", f"output.dir={folder}", *more]
    return [sys.executable, "-m", "diffkit", "train", "digits", "--quiet", *(w for s in sets for w in ("--set", s))]


def start(folder: Path, steps: int, *more: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command(folder, steps, *more), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def to_the_end(folder: Path, steps: int, *more: str) -> float:
    """Run until the end; return the seconds from the first sign of training on."""
    with start(folder, steps, *more) as process:
        began = _wait_for(lambda: (folder / "metrics.jsonl").is_file(), process)
        error = process.communicate()[1].decode()
        if process.returncode:
            raise SystemExit(f"the run in {folder} ended with code {process.returncode}:\n{error[-2000:]}")
        return time.monotonic() - began


def _wait_for(condition: Any, process: subprocess.Popen[bytes]) -> float:
    while process.poll() is None and not condition():
        time.sleep(0.0005)
    return time.monotonic()


def killed(folder: Path, steps: int, delay: float, into_saving: float | None = None) -> dict[str, Any]:
    """Start a run and kill it.

    Args:
        folder: The run's folder.
        steps: Updates of the whole run.
        delay: Seconds from the first sign of training to the kill.
        into_saving: Kill this many seconds into the first saving after `delay` instead.
    """
    root = folder / "checkpoints"
    with start(folder, steps) as process:
        _wait_for(lambda: (folder / "metrics.jsonl").is_file(), process)
        until = time.monotonic() + delay
        _wait_for(lambda: time.monotonic() >= until, process)
        if into_saving is not None:
            until = _wait_for(lambda: any(root.glob(".tmp-*")), process) + into_saving
            _wait_for(lambda: time.monotonic() >= until, process)
        process.kill()
        process.wait()
    found = checkpoint.find(root)
    rows = _losses(folder)
    return {
        "delay": round(delay, 3),
        "ended_before": process.returncode == 0,
        "logged_step": max(rows, default=0),
        "checkpoint_step": int(found[0].name.removeprefix("step-")) if found else 0,
        "in_saving": any(root.glob(".tmp-*")),
    }


def _losses(folder: Path) -> dict[int, Any]:
    """Losses by step, as they were logged; a line that the kill cut in two is left out."""
    rows: dict[int, Any] = {}
    path = folder / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if "loss" in row:
            rows[row["step"]] = row["loss"]
    return rows


def final(folder: Path) -> dict[str, Any]:
    """All that two equal runs must share: tensors by name, and counters."""
    newest = checkpoint.newest(folder / "checkpoints")
    if newest is None:
        raise SystemExit(f"{folder} holds no checkpoint")
    values: dict[str, Any] = {}
    for part in ("network", "ema", "optimizer"):
        values |= {f"{part}/{name}": tensor for name, tensor in newest.tensors(part).items()}
    for path in sorted(folder.glob("unet*/*.safetensors")):
        values |= {f"{path.parent.name}/{name}": tensor for name, tensor in load_file(path).items()}
    values |= {f"state/{k}": v for k, v in newest.state.items() if k != "recipe"}
    return values | {f"loss/{step}": loss for step, loss in _losses(folder).items()}


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of what is not equal, bit for bit."""
    return sorted(name for name in one.keys() | other.keys() if not _equal(one.get(name), other.get(name)))


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape
        return same and a.contiguous().numpy().tobytes() == b.contiguous().numpy().tobytes()
    return type(a) is type(b) and a == b


def trial(number: int, place: Path, args: Any, seconds: float, whole: dict[str, Any]) -> dict[str, Any]:
    """One kill and its resume; a run that had ended before its kill is not counted, and another moment is drawn."""
    draw = random.Random(f"{args.seed}/{number}")
    for attempt in range(10):
        folder = place / f"trial-{number}-{attempt}"
        into_saving = draw.uniform(0, 0.03) if number % 4 == 3 else None
        facts = killed(folder, args.steps, draw.uniform(0, seconds), into_saving)
        if not facts["ended_before"]:
            break
    to_the_end(folder, args.steps)
    different = differing(whole, final(folder))
    print(f"trial {number}: {'equal' if not different else 'DIFFERENT'}", file=sys.stderr)
    return {"trial": number, **facts, "equal": not different, "different": different[:5]}


def damaged(place: Path, args: Any) -> dict[str, Any]:
    """The control that a comparator must notice: a resume without one tensor of the optimizer's state."""
    folder = place / "damaged"
    with start(folder, args.steps) as process:
        _wait_for(lambda: checkpoint.find(folder / "checkpoints"), process)
        process.kill()
    newest = checkpoint.newest(folder / "checkpoints")
    if newest is None or newest.step >= args.steps:
        raise SystemExit("the control was not killed between its first checkpoint and its end")
    tensors = newest.tensors("optimizer")
    name = next(name for name in tensors if name.startswith("exp_avg/"))
    path = newest.folder / "optimizer.safetensors"
    save_file({**tensors, name: torch.zeros_like(tensors[name])}, path)
    manifest = json.loads((newest.folder / checkpoint.MANIFEST).read_text())
    manifest["files"][path.name] = {
        "size": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    (newest.folder / checkpoint.MANIFEST).write_text(json.dumps(manifest))
    to_the_end(folder, args.steps)
    return final(folder)


def measure(args: Any, place: Path) -> dict[str, Any]:
    """The uninterrupted run, the controls, and the kills."""
    with ThreadPoolExecutor(args.jobs) as pool:
        one = pool.submit(to_the_end, place / "whole", args.steps)
        other = pool.submit(to_the_end, place / "other-seed", args.steps, "training.seed=1")
        seconds = one.result()
        other.result()
        whole = final(place / "whole")
        control = pool.submit(damaged, place, args)
        trials = list(pool.map(lambda k: trial(k, place, args, seconds, whole), range(args.num)))
        return {
            "trained_seconds": round(seconds, 2),
            "compared": len(whole),
            "trials": trials,
            "bit_equal": sum(t["equal"] for t in trials),
            "killed_in_saving": sum(t["in_saving"] for t in trials),
            "control_other_seed": len(differing(whole, final(place / "other-seed"))),
            "control_damaged": len(differing(whole, control.result())),
        }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("-n", "--num", type=int, default=20, help="Kills.")
    options.add_argument("--steps", type=int, default=200, help="Updates of the run.")
    options.add_argument("--jobs", type=int, default=2, help="Runs at the same time, one core each.")
    options.add_argument("--seed", type=int, default=0, help="Of the moments.")
    args = options.parse_args()
    facts = machine()
    with tempfile.TemporaryDirectory(prefix="kill-") as folder:
        result = measure(args, Path(folder))
    print(describe(facts))
    keys = ["trial", "delay", "logged_step", "checkpoint_step", "in_saving", "equal"]
    heads = ["trial", "killed after s", "logged step", "checkpoint", "in saving", "bit-equal"]
    print(table(heads, [[t[key] for key in keys] for t in result["trials"]]))
    print(f"\n{result['bit_equal']} of {args.num} resumed runs are bit-equal to the uninterrupted one")
    print(f"{result['compared']} tensors and numbers compared; {result['killed_in_saving']} kills fell into a saving")
    for name in ("control_other_seed", "control_damaged"):
        print(f"{name}: {result[name]} of {result['compared']} differ" + ("" if result[name] else "   CONTROL FAILED"))
    finish({"machine": facts, "n": args.num, "steps": args.steps, **result}, args.json)
    if result["bit_equal"] < args.num or not (result["control_other_seed"] and result["control_damaged"]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
