"""`diffkit train`: from a recipe to a model that draws."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffkit.cli import options
from diffkit.cli.progress import shown_bar
from diffkit.cli.runner import LOG, SESSION, Output, command, settle

if TYPE_CHECKING:
    from diffkit.recipes.schema import Recipe

# The flags that `train` and `finetune` share: the recipe's field that each is a shorthand of, and the option.
FLAGS: dict[str, tuple[str, Any]] = {
    "dataset": (
        "dataset.name",
        Annotated[str | None, typer.Option(help="A registered name, a Hub id, an image folder, a parquet folder.")],
    ),
    "resolution": ("dataset.resolution", Annotated[int | None, typer.Option(min=1, help="Height and width, pixels.")]),
    "channels": (
        "dataset.channels",
        Annotated[int | None, typer.Option(min=1, max=3, help="1 grey, 3 RGB; inferred when left out.")],
    ),
    "steps": ("training.steps", Annotated[int | None, typer.Option(min=1, help="Optimizer updates.")]),
    "epochs": ("training.epochs", Annotated[int | None, typer.Option(min=1, help="Passes over the data.")]),
    "batch_size": (
        "training.batch_size",
        Annotated[int | None, typer.Option(min=1, help="Images per process and micro-batch.")],
    ),
    "gradient_accumulation": (
        "training.gradient_accumulation",
        Annotated[int | None, typer.Option(min=1, help="Micro-batches per optimizer update.")],
    ),
    "lr": ("training.lr", Annotated[float | None, typer.Option(help="Peak learning rate.")]),
    "mixed_precision": (
        "training.mixed_precision", Annotated[str | None, typer.Option(help="auto, no, fp16 or bf16.")]
    ),
    "seed": ("training.seed", Annotated[int | None, typer.Option(min=0, help="Fixes weights, data order and noise.")]),
    "out": (
        "output.dir",
        Annotated[Path | None, typer.Option("--out", "-o", help="The run's folder; runs/RECIPE when left out.")],
    ),
    "report_to": (
        "output.report_to",
        Annotated[list[str] | None, typer.Option(help="tensorboard, wandb or trackio; may be repeated.")],
    ),
    "push_to_hub": (
        "output.push_to_hub",
        Annotated[
            bool | None, typer.Option("--push-to-hub", help="Upload the result; private unless the recipe says no.")
        ],
    ),
}  # fmt: skip
Force = Annotated[
    bool, typer.Option("--force-resume", help="Go on from a checkpoint of another recipe or of other data.")
]


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    command(app, "train", options_of(FLAGS))(train)


def options_of(flags: Mapping[str, tuple[str, Any]]) -> dict[str, tuple[Any, Any]]:
    """Return flags as `runner.command` takes shared options; None stands for one that was not given."""
    return {name: (option, None) for name, (_, option) in flags.items()}


def recipe_fields(flags: Mapping[str, tuple[str, Any]], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe's fields that flags set; None for one that was not given."""
    return {field: None if given[name] == [] else given[name] for name, (field, _) in flags.items()}


def train(
    recipe: options.RecipeName = None,
    set_: options.Set = None,
    force_resume: Force = False,
    dry_run: options.DryRun = False,
    **flags: Any,
) -> Output:
    """Train from scratch; without arguments: the embedded digits, on a CPU, in a few minutes.

    The same command run again goes on where it stopped.
    """
    from diffkit.recipes.reading import load_recipe

    loaded = load_recipe(recipe, sets=set_ or (), flags=recipe_fields(FLAGS, flags))
    return run(loaded, force_resume=force_resume, dry_run=dry_run)


def run(recipe: Recipe, *, force_resume: bool, dry_run: bool) -> Output:
    """Train a recipe with a progress bar, or say what it would take."""
    if dry_run:
        from diffkit.training.estimate import describe, estimate_recipe

        facts = estimate_recipe(recipe)
        return Output(facts, describe(facts))
    from diffkit.training import fit

    settle()
    with _Bar() as bar:
        summary = fit(recipe, force_resume=force_resume, on_progress=bar.update)
    if not summary:
        return Output()
    folder = summary["output_dir"]
    best = summary.get("best")
    kept = [f"best      {best['path']}   (KID {best['kid']:.5f} after {best['step']} updates)"] if best else []
    loss = f", loss {summary['loss']:.4f}" if summary["loss"] is not None else ""
    return Output(
        summary,
        [
            f"{summary['step']} updates{loss}, {summary['images_per_second']} images/s",
            f"model     {folder}   (card: {folder}/README.md, loss: {folder}/loss.png)",
            f"previews  {folder}/samples",
            *kept,
            f"next      diffkit sample {folder}" + (" --prompt ..." if recipe.model.text != "none" else ""),
        ],
    )


class _Bar:
    """Progress on stderr: a rich bar on a terminal, a line every so often elsewhere; nothing with --quiet or --json."""

    seconds_between_lines = 15.0

    def __init__(self) -> None:
        self._progress: Any = None
        self._task: Any = None
        self._spoke = 0.0

    def __enter__(self) -> _Bar:
        self._spoke = time.monotonic()
        self._progress = shown_bar("loss {task.fields[loss]}", "{task.fields[speed]} images/s")
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
            self._task = self._progress.add_task("training", total=step.total, loss=loss, speed=speed)
        self._progress.update(self._task, completed=step.step, loss=loss, speed=speed)

    def _speak(self, step: Any, loss: str, speed: str, eta: float | None) -> None:
        if SESSION.as_json or time.monotonic() - self._spoke < self.seconds_between_lines:
            return
        self._spoke = time.monotonic()
        left = "" if eta is None else f", {max(1, round(eta))} s left"
        LOG.info("step %d of %d: loss %s, %s images/s%s", step.step, step.total, loss, speed, left)
