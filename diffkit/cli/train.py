"""`diffkit train`: from a recipe to a model that draws."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffkit.cli import options
from diffkit.cli.runner import LOG, SESSION, Output, command, settle

if TYPE_CHECKING:
    from diffkit.recipes.schema import Recipe

# The flags that `train` and `finetune` share: each is a shorthand of a recipe's field.
Dataset = Annotated[str | None, typer.Option(help="A registered name, a Hub id, an image folder, a parquet folder.")]
Resolution = Annotated[int | None, typer.Option(min=1, help="Height and width, pixels.")]
Channels = Annotated[int | None, typer.Option(min=1, max=3, help="1 grey, 3 RGB; inferred when left out.")]
Updates = Annotated[int | None, typer.Option("--steps", min=1, help="Optimizer updates.")]
Epochs = Annotated[int | None, typer.Option(min=1, help="Passes over the data.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Images per process and micro-batch.")]
Accumulate = Annotated[
    int | None, typer.Option("--gradient-accumulation", min=1, help="Micro-batches per optimizer update.")
]
Rate = Annotated[float | None, typer.Option("--lr", help="Peak learning rate.")]
Precision = Annotated[str | None, typer.Option("--mixed-precision", help="auto, no, fp16 or bf16.")]
TrainSeed = Annotated[int | None, typer.Option("--seed", min=0, help="Fixes weights, data order and noise.")]
Folder = Annotated[Path | None, typer.Option("--out", "-o", help="The run's folder; runs/RECIPE when left out.")]
Report = Annotated[
    list[str] | None, typer.Option("--report-to", help="tensorboard, wandb or trackio; may be repeated.")
]
Push = Annotated[
    bool | None, typer.Option("--push-to-hub", help="Upload the result; private unless the recipe says no.")
]
Force = Annotated[
    bool, typer.Option("--force-resume", help="Go on from a checkpoint of another recipe or of other data.")
]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    command(app, "train")(train)


def train(
    recipe: options.RecipeName = None,
    dataset: Dataset = None,
    resolution: Resolution = None,
    channels: Channels = None,
    steps: Updates = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    gradient_accumulation: Accumulate = None,
    lr: Rate = None,
    mixed_precision: Precision = None,
    seed: TrainSeed = None,
    out: Folder = None,
    report_to: Report = None,
    push_to_hub: Push = None,
    set_: options.Set = None,
    force_resume: Force = False,
    dry_run: options.DryRun = False,
) -> Output:
    """Train from scratch; without arguments: the embedded digits, on a CPU, in a few minutes.

    The same command run again goes on where it stopped.
    """
    from diffkit.recipes.reading import load_recipe

    flags = training_flags(
        dataset=dataset, resolution=resolution, channels=channels, steps=steps, epochs=epochs, batch_size=batch_size,
        gradient_accumulation=gradient_accumulation, lr=lr, mixed_precision=mixed_precision, seed=seed, out=out,
        report_to=report_to, push_to_hub=push_to_hub,
    )  # fmt: skip
    return run(load_recipe(recipe, sets=set_ or (), flags=flags), force_resume=force_resume, dry_run=dry_run)


def training_flags(
    *, out: Path | None, report_to: list[str] | None, push_to_hub: bool | None, **values: Any
) -> dict[str, Any]:
    """Return the recipe's fields that the flags set; a flag that was not given is None."""
    sections = {"dataset": "dataset.name", "resolution": "dataset.resolution", "channels": "dataset.channels"}
    flags = {sections.get(name, f"training.{name}"): value for name, value in values.items()}
    flags["output.dir"] = out
    flags["output.report_to"] = report_to or None
    flags["output.push_to_hub"] = push_to_hub
    return flags


def run(recipe: Recipe, *, force_resume: bool, dry_run: bool) -> Output:
    """Train a recipe with a progress bar, or say what it would take."""
    if dry_run:
        return _estimate(recipe)
    from diffkit.training import fit

    settle()
    with _Bar() as bar:
        summary = fit(recipe, force_resume=force_resume, on_progress=bar.update)
    if not summary:
        return Output()
    folder = summary["output_dir"]
    loss = f", loss {summary['loss']:.4f}" if summary["loss"] is not None else ""
    return Output(
        summary,
        [
            f"{summary['step']} updates{loss}, {summary['images_per_second']} images/s",
            f"model     {folder}   (card: {folder}/README.md, loss: {folder}/loss.png)",
            f"previews  {folder}/samples",
            f"next      diffkit sample {folder}" + (" --prompt ..." if recipe.model.text != "none" else ""),
        ],
    )


def _estimate(recipe: Recipe) -> Output:
    from diffkit.training.estimate import describe, estimate_recipe

    facts = estimate_recipe(recipe)
    return Output(facts, describe(facts))


class _Bar:
    """Progress on stderr: a rich bar on a terminal, a line every so often elsewhere; nothing with --quiet or --json."""

    seconds_between_lines = 15.0

    def __init__(self) -> None:
        self._progress: Any = None
        self._task: Any = None
        self._spoke = 0.0

    def __enter__(self) -> _Bar:
        import sys
        import time

        self._spoke = time.monotonic()
        if sys.stderr.isatty() and not (SESSION.quiet or SESSION.as_json):
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._progress = Progress(
                TextColumn("training"), BarColumn(), MofNCompleteColumn(),
                TextColumn("loss {task.fields[loss]}"), TextColumn("{task.fields[speed]} images/s"),
                TimeRemainingColumn(), console=Console(stderr=True),
            )  # fmt: skip
            self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def update(self, progress: Any) -> None:
        """Show the newest numbers."""
        step = progress.step
        loss = "-" if progress.loss is None else f"{progress.loss:.4f}"
        speed = "-" if progress.images_per_second is None else f"{progress.images_per_second:.0f}"
        if self._progress is None:
            self._speak(step, loss, speed, progress.eta_seconds)
            return
        if self._task is None:
            self._task = self._progress.add_task("", total=step.total, loss=loss, speed=speed)
        self._progress.update(self._task, completed=step.step, loss=loss, speed=speed)

    def _speak(self, step: Any, loss: str, speed: str, eta: float | None) -> None:
        import time

        if SESSION.as_json or time.monotonic() - self._spoke < self.seconds_between_lines:
            return
        self._spoke = time.monotonic()
        left = "" if eta is None else f", {max(1, round(eta))} s left"
        LOG.info("step %d of %d: loss %s, %s images/s%s", step.step, step.total, loss, speed, left)
