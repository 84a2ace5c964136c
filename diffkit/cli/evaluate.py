"""`diffkit evaluate`: how near pictures are to real ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffkit.cli import options
from diffkit.cli.runner import LOG, Output, command

if TYPE_CHECKING:
    from diffkit.evaluation.report import Evaluation

Source = Annotated[
    str, typer.Argument(metavar="MODEL_OR_FOLDER", help="A model (folder or Hub id), or a folder of pictures.")
]
Dataset = Annotated[str, typer.Option("--dataset", "-d", help="The real pictures: a registered name, folder, Hub id.")]
Split = Annotated[str, typer.Option("--split", help="The split to read.")]
Features = Annotated[
    str, typer.Option("--features", "-f", help="classifier, classifier:FILE, clip:ID, dinov2:ID or inception:FILE.")
]
Metrics = Annotated[list[str] | None, typer.Option("--metric", help="One of them alone; may be repeated.")]
Count = Annotated[
    int | None, typer.Option("--num", "-n", min=2, help="Pictures to draw (1000), or to read of a folder (all).")
]
Reals = Annotated[int | None, typer.Option("--num-real", min=2, help="Real pictures; at most 10,000 when left out.")]
Resolution = Annotated[
    int | None, typer.Option("--resolution", min=4, help="Side at which pictures are compared; the model's own.")
]
Channels = Annotated[int | None, typer.Option("--channels", min=1, max=3, help="1 grey, 3 RGB; colour where any is.")]
Compare = Annotated[
    Path | None, typer.Option("--compare", metavar="FILE", help="What an earlier run printed with --json.")
]
Place = Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE.json", help="Also write the numbers there.")]
# How pictures are drawn: fields of the job `sample`.
SAMPLING = ("prompt", "classes", "guidance", "steps", "scheduler", "eta", "seed", "batch_size", "raw", "revision")


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    from diffkit.cli.pictures import field_options
    from diffkit.jobs import job_class

    command(app, "evaluate", field_options(job_class("sample"), SAMPLING))(evaluate)


def evaluate(
    source: Source,
    dataset: Dataset,
    split: Split = "train",
    features: Features = "classifier",
    metric: Metrics = None,
    num: Count = None,
    num_real: Reals = None,
    resolution: Resolution = None,
    channels: Channels = None,
    device: options.Device = "auto",
    compare: Compare = None,
    out: Place = None,
    **sampling: Any,
) -> Output:
    """Measure how near a model's pictures, or those of a folder, are to real ones: FID, KID and others.

    Under `accelerate launch` the processes share the drawing. Numbers compare only where features, size and real
    pictures are the same: `--compare` refuses the rest.
    """
    from diffkit.cli.progress import Bar
    from diffkit.evaluation.report import changes, read_earlier
    from diffkit.jobs.evaluate import evaluate as run

    earlier = None if compare is None else read_earlier(compare)
    if out is not None:
        from diffkit.pictures.files import output_folder

        output_folder(out.parent)
    found = run(
        source, dataset, split=split, features=features, metrics=tuple(metric or ()), num=num, num_real=num_real,
        resolution=resolution, channels=channels, device=device, watch=Bar(),
        **{key: value for key, value in sampling.items() if value not in (None, [])},
    )  # fmt: skip
    for line in found.warnings:
        LOG.warning("%s", line)
    payload = found.as_dict()
    changed: dict[str, float] = {}
    if earlier is not None:
        changed, said = changes(earlier, found)
        for line in said:
            LOG.warning("%s", line)
        payload["change"] = changed
    if out is not None:
        _write(out, payload)
    return Output(payload, _lines(found, changed))


def _write(path: Path, payload: dict[str, Any]) -> None:
    import json
    import os

    from diffkit.pictures.files import write_whole

    if os.environ.get("RANK", "0") in ("", "0"):
        write_whole(path, (json.dumps(payload, indent=1) + "\n").encode())


def _lines(found: Evaluation, changed: dict[str, float]) -> list[str]:
    lines = []
    for key, value in found.scores.items():
        if key.endswith("_std"):
            continue
        spread = found.scores.get(f"{key}_std")
        about = "" if spread is None else f" +- {spread:.6f}"
        about += f"   ({changed[key]:+.6f})" if key in changed else ""
        lines.append(f"{key:<12}{value:>12.6f}{about}")
    sizes = found.resize
    return [
        *lines,
        f"pictures    {found.num_images}, against {found.num_real} of {found.dataset['name']}"
        f" ({found.dataset['split']})",
        f"features    {found.features['name']}, {found.features['dimensions']} dimensions, {found.features['hash']}",
        f"resize      {sizes['pictures']} to {sizes['features']} pixels, {sizes['filter']}",
    ]
