"""Images per second of training: `diffkit train`, a bare PyTorch loop, and diffusers' train_unconditional.py.

Every contestant trains the same UNet2DModel (by default the course's (32, 64, 64) at 32x32 RGB) with the same batch
size and precision on the same images, in a process of its own, on all cores. They take turns, in another order each
round, and the median over the rounds is shown. The clock runs from the end of one optimizer update to that of another,
after a warm-up, and nothing is saved or drawn in between on any side (see throughput_worker.py). diffkit and the script
keep an average of the weights, clip, and log as they do by default; the bare loop does nothing of the kind and has its
images in memory.

Run (all contestants but the script):
    python benchmarks/throughput.py
Beside the script, which needs torchvision (its build need not fit torch; missing operators are declared):
    pip install --no-deps --target ../torchvision torchvision
    python benchmarks/throughput.py --diffusers CHECKOUT --torchvision ../torchvision
What each measure gives:
    python benchmarks/throughput.py --contestants bare,diffkit,diffkit-malloc,diffkit-sdpa,diffkit-channels-last,...
On a GPU:
    python benchmarks/throughput.py --device cuda --diffusers ... --steps 300 --warmup 50
    python benchmarks/throughput.py --device cuda --diffusers ... --resolution 256 --preset celebahq256 --batch-size 16

`diffkit-NAME` is diffkit with one thing changed: malloc (the system's allocator), sdpa, plain (attention),
channels-last, channels-first, no-ema, disk (images read by workers), compile, bf16, fp16, auto (the precision diffkit
takes by itself). `bare-tuned` is the bare loop with diffkit's allocator and attention.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common import describe, finish, machine, parser, table

WORKER = Path(__file__).with_name("throughput_worker.py")
SCRIPT = Path("examples/unconditional_image_generation/train_unconditional.py")
VARIANTS: dict[str, list[str]] = {
    "malloc": [],
    "sdpa": ["model.attention=sdpa"],
    "plain": ["model.attention=plain"],
    "channels-last": ["training.channels_last=true"],
    "channels-first": ["training.channels_last=false"],
    "no-ema": ["training.ema=false"],
    "disk": ["dataset.cache=disk"],
    "compile": ["training.compile=true"],
    "bf16": ["training.mixed_precision=bf16"],
    "fp16": ["training.mixed_precision=fp16"],
    "auto": ["training.mixed_precision=auto"],
}


def make_images(folder: Path, count: int, resolution: int) -> None:
    """Write a parquet file of smooth random RGB images: PNG, or JPEG from 128 pixels on."""
    import numpy as np
    from datasets import Dataset, Features, Image, disable_progress_bars
    from PIL import Image as Pictures

    disable_progress_bars()
    random = np.random.default_rng(0)
    pictures = []
    for _ in range(count):
        coarse = Pictures.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        pictures.append(coarse.resize((resolution, resolution), Pictures.Resampling.BICUBIC))
    cells = [{"bytes": _encoded(picture, "JPEG" if resolution >= 128 else "PNG"), "path": None} for picture in pictures]
    folder.mkdir()
    Dataset.from_dict({"image": cells}, features=Features({"image": Image()})).to_parquet(folder / "train.parquet")


def _encoded(picture: Any, kind: str) -> bytes:
    from io import BytesIO

    buffer = BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def make_model(folder: Path, preset: str, resolution: int) -> None:
    """Write the configuration that every contestant builds its network from."""
    from diffkit.models.network import build_network
    from diffkit.recipes.schema import ModelSpec

    build_network(ModelSpec(preset=preset), shape=(3, resolution, resolution)).unet.save_config(folder)


def job_of(name: str, args: argparse.Namespace, place: Path, data: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what the worker is told, and the environment it gets, for one contestant."""
    kind, _, variant = name.partition("-")
    job: dict[str, Any] = {
        "kind": kind, "device": args.device, "warmup": args.warmup, "steps": args.steps,
        "batch_size": args.batch_size, "resolution": args.resolution, "precision": args.precision,
        "model": str(place / "model"), "tuned": variant == "tuned", "result": str(place / "result.json"),
    }  # fmt: skip
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(place / "cache")}
    if args.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    if kind == "diffkit":
        job["argv"] = _diffkit_arguments(args, place, data, VARIANTS[variant] if variant else [])
        if variant == "malloc":
            environment["DIFFKIT_MALLOC"] = "system"
    elif kind == "script":
        job.update(script=str(args.script), torchvision=args.torchvision, argv=_script_arguments(args, place, data))
    return job, environment


def _diffkit_arguments(args: argparse.Namespace, place: Path, data: Path, more: list[str]) -> list[str]:
    sets = [
        f"dataset.name={data}", f"dataset.resolution={args.resolution}", "dataset.channels=3",
        f"model.preset={args.preset}", "model.class_conditioning=none", "noise.schedule=linear",
        "training.steps=1000000", f"training.batch_size={args.batch_size}", "training.lr=1e-4",
        "training.betas=[0.95,0.999]", "training.weight_decay=1e-6", f"training.mixed_precision={args.precision}",
        "training.checkpoint_every=1000000", "training.preview_every=0", "training.ema_decay=0.9999",
        f"output.dir={place / 'run'}", *more, *args.set,
    ]  # fmt: skip
    return [word for item in sets for word in ("--set", item)]


def _script_arguments(args: argparse.Namespace, place: Path, data: Path) -> list[str]:
    parquet = any(data.rglob("*.parquet"))
    return [
        "--dataset_name" if parquet else "--train_data_dir", str(data), "--model_config_name_or_path",
        str(place / "model"), "--resolution", str(args.resolution), "--center_crop", "--train_batch_size",
        str(args.batch_size), "--num_epochs", "1000", "--use_ema", "--mixed_precision", args.precision,
        "--checkpointing_steps", "1000000", "--output_dir", str(place / "script"), *shlex.split(args.script_args),
    ]  # fmt: skip


def run_once(name: str, args: argparse.Namespace, data: Path) -> dict[str, Any]:
    """Run one contestant and return its numbers."""
    with tempfile.TemporaryDirectory(prefix="throughput-") as folder:
        place = Path(folder)
        make_model(place / "model", args.preset, args.resolution)
        job, environment = job_of(name, args, place, data)
        (place / "job.json").write_text(json.dumps(job), encoding="utf-8")
        with (place / "log").open("w+") as log:
            process = subprocess.Popen(
                [sys.executable, str(WORKER), str(place / "job.json")],
                cwd=place, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            try:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(args.timeout)
            finally:
                _end(process)
            if not (place / "result.json").is_file():
                log.seek(0)
                raise SystemExit(f"{name} gave no result (code {process.returncode}):\n{log.read()[-3000:]}")
        return json.loads((place / "result.json").read_text())


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the contestant and the data workers it may have left; the group is its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def measure(args: argparse.Namespace, data: Path) -> dict[str, list[dict[str, Any]]]:
    """Let the contestants take turns."""
    names = args.contestants
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for turn in range(args.rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            rounds[name].append(run_once(name, args, data))
            print(f"round {turn + 1}: {name} {rounds[name][-1]['images_per_second']:.1f} images/s", file=sys.stderr)
    return rounds


def summarize(rounds: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Medians, extremes, and ratios to the bare loop and to the script."""
    speed = {name: [r["images_per_second"] for r in runs] for name, runs in rounds.items()}
    median = {name: statistics.median(values) for name, values in speed.items()}
    return {
        name: {
            "images_per_second": round(median[name], 2),
            "lowest": round(min(speed[name]), 2),
            "highest": round(max(speed[name]), 2),
            "over_bare": round(median[name] / median["bare"], 3) if "bare" in median else None,
            "over_script": round(median[name] / median["script"], 3) if "script" in median else None,
            "page_faults_per_step": round(statistics.median(r["page_faults_per_step"] for r in runs)),
            "peak_mb": round(max(r["peak_mb"] for r in runs)),
            "parameters": runs[0]["parameters"],
            "dtypes": runs[0]["dtypes"],
            "threads": runs[0]["threads"],
        }
        for name, runs in rounds.items()
    }


def arguments() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--contestants", help="Comma-separated; bare,bare-tuned,diffkit (and script) when left out.")
    options.add_argument("--diffusers", type=Path, help="A git checkout of diffusers, or its train_unconditional.py.")
    options.add_argument("--torchvision", help="Folder of `pip install --no-deps --target`; none: the installed one.")
    options.add_argument("--script-args", default="", help="More arguments for train_unconditional.py.")
    options.add_argument("--set", action="append", default=[], help="A recipe's field for diffkit; may be repeated.")
    options.add_argument("--data", type=Path, help="A parquet folder or image folder; random images when left out.")
    options.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options.add_argument("--precision", choices=["no", "bf16", "fp16"], default="no")
    options.add_argument("--preset", default="course28", help="A row of diffkit.models.presets.")
    options.add_argument("--resolution", type=int, default=32)
    options.add_argument("--batch-size", type=int, default=64)
    options.add_argument("--warmup", type=int, default=5, help="Updates before the clock starts.")
    options.add_argument("--steps", type=int, default=30, help="Updates timed.")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--timeout", type=float, default=1800, help="Seconds for one contestant's turn.")
    args = options.parse_args()
    usual = "bare,bare-tuned,diffkit" + (",script" if args.diffusers else "")
    args.contestants = (args.contestants or usual).split(",")
    known = ["bare", "bare-tuned", "diffkit", "script", *(f"diffkit-{name}" for name in VARIANTS)]
    for name in args.contestants:
        if name not in known:
            options.error(f"unknown contestant {name!r}; there are: {', '.join(known)}")
    if "script" in args.contestants:
        if args.diffusers is None:
            options.error("the contestant `script` needs --diffusers")
        args.script = (args.diffusers if args.diffusers.is_file() else args.diffusers / SCRIPT).resolve()
        if not args.script.is_file():
            options.error(f"no {args.script}")
        if args.torchvision:
            args.torchvision = str(Path(args.torchvision).resolve())
        found = (Path(args.torchvision) / "torchvision").is_dir() if args.torchvision else find_spec("torchvision")
        if not found:
            options.error(
                "the script needs torchvision: pip install --no-deps --target DIR torchvision, --torchvision DIR"
            )
    return args


def main() -> None:
    args = arguments()
    facts = machine(args.device)
    needed = (args.warmup + args.steps + 2) * args.batch_size  # the script draws pictures after its first epoch
    with tempfile.TemporaryDirectory(prefix="throughput-data-") as folder:
        data = args.data.resolve() if args.data else Path(folder) / "images"
        if args.data is None:
            make_images(data, needed, args.resolution)
        else:
            print(f"with --data, {needed} images are needed for {args.warmup} + {args.steps} updates", file=sys.stderr)
        summary = summarize(measure(args, data))
    print(describe(facts))
    first = next(iter(summary.values()))
    print(
        f"{args.preset} ({first['parameters']:,} parameters), {args.resolution} px RGB, batch {args.batch_size}, "
        f"precision {args.precision}, {args.device}, {args.steps} updates timed, median of {args.rounds} rounds"
    )
    if len({row["parameters"] for row in summary.values()}) > 1:
        raise SystemExit(f"the contestants' networks differ: { {n: r['parameters'] for n, r in summary.items()} }")
    keys = ["images_per_second", "lowest", "highest", "over_bare", "over_script", "page_faults_per_step", "peak_mb"]
    heads = ["contestant", "images/s", "lowest", "highest", "/ bare", "/ script", "faults/step", "peak MiB"]
    print(table(heads, [[name, *(row[key] for key in keys)] for name, row in summary.items()]))
    setup = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k not in ("json", "script")}
    finish({"machine": facts, "setup": setup, "results": summary}, args.json)


if __name__ == "__main__":
    main()
