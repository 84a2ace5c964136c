"""`diffkit train-classifier`: an image classifier in one file, for guides, scorers and features."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diffkit.cli.runner import Output, command, settle

Name = Annotated[
    str | None, typer.Argument(metavar="[DATASET]", help="A registered name, folder or Hub id; digits when left out.")
]
Again = Annotated[str | None, typer.Option("--dataset", "-d", help="The same, as an option.")]
Split = Annotated[str, typer.Option("--split", help="The split to read.")]
Resolution = Annotated[
    int | None, typer.Option(min=4, max=1024, help="Height and width at which it looks at pictures, a multiple of 4.")
]
Channels = Annotated[int | None, typer.Option(min=1, max=3, help="1 grey, 3 RGB; inferred when left out.")]
Noisy = Annotated[
    bool, typer.Option("--noisy", help="Also learn from noisy pictures: what a guide sees is unfinished.")
]
Updates = Annotated[int, typer.Option("--steps", min=1, help="Optimizer updates.")]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Fixes weights, order and noise.")]
Place = Annotated[
    Path | None, typer.Option("--out", "-o", metavar="FILE.safetensors", help="outputs/classifier-DATASET.safetensors.")
]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    command(app, "train-classifier")(train_classifier)


def train_classifier(
    name: Name = None,
    dataset: Again = None,
    split: Split = "train",
    resolution: Resolution = None,
    channels: Channels = None,
    noisy: Noisy = False,
    steps: Updates = 600,
    seed: Seed = 0,
    out: Place = None,
) -> Output:
    """Train a small image classifier on a dataset with classes, and write it as one file.

    Without arguments: the embedded digits, in about half a minute. The file is what --guide classifier:FILE=CLASS,
    --scorer classifier:FILE and --features classifier:FILE take.
    """
    import re
    import time
    from dataclasses import replace

    from diffkit.errors import UsageError

    if name is not None and dataset is not None:
        raise UsageError("the dataset is named twice", "Name it once.")
    source = name or dataset or "digits"
    word = re.sub(r"[^\w.-]+", "_", source).strip("_")
    file = out or Path("outputs") / f"classifier-{word}.safetensors"
    if file.suffix != ".safetensors" or file.is_dir():
        raise UsageError(f"--out {file}: the classifier is one file", "Give FILE.safetensors.")
    from diffkit.evaluation.fitting import OWN
    from diffkit.evaluation.fitting import train_classifier as train
    from diffkit.evaluation.pictures import Pictures, side_of
    from diffkit.recipes.schema import DatasetSpec

    settle()
    began = time.perf_counter()
    wanted = resolution or max(16, min(64, side_of(source, split)))
    spec = DatasetSpec(name=source, split=split, resolution=wanted // 4 * 4)
    facts = train(Pictures(spec, channels), file, replace(OWN, updates=steps, noisy=noisy, seed=seed))
    payload = {"classifier": str(file), **facts, "seconds": {"total": round(time.perf_counter() - began, 3)}}
    return Output(
        payload,
        [
            f"{facts['classes']} classes at {facts['resolution']} px, {100 * facts['accuracy']:.1f} % right of"
            f" {facts['held_out']} pictures held out",
            f"classifier {file}",
            f"next       diffkit sample MODEL --guide classifier:{file}=CLASS",
        ],
    )
