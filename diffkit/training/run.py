"""A whole run: data, network, resume, the loop with its logging, checkpoints and previews, and the result on disk.

`fit` is what `diffkit train` and `diffkit finetune` call; it reports by the logger and a callback, and prints nothing.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from diffkit.errors import NumericalError, Terminated
from diffkit.models.devices import keep_memory
from diffkit.recipes import reading as recipes
from diffkit.recipes.schema import Recipe
from diffkit.training import build, checkpoint, fast, publish, result, resume
from diffkit.training import state as states
from diffkit.training.card import model_card
from diffkit.training.evaluation import Evaluator, read_best
from diffkit.training.finetune import at_source_size
from diffkit.training.lock import hold, prepare_folder, run_folder
from diffkit.training.loop import Plan, TrainStep, train
from diffkit.training.metrics import Metrics
from diffkit.training.objectives import Objective, make_objective
from diffkit.training.signals import Stop
from diffkit.training.validation import validation_loss

if TYPE_CHECKING:
    from accelerate import Accelerator

LOG = logging.getLogger(__name__)
MAX_STREAK = 20  # updates in a row without a finite gradient, after which the run is given up


@dataclass(frozen=True)
class Progress:
    """What the caller's progress display is told after each update; the numbers are those of the last reading."""

    step: TrainStep
    loss: float | None
    images_per_second: float | None
    eta_seconds: float | None


OnProgress = Callable[[Progress], None]


def fit(recipe: Recipe, *, force_resume: bool = False, on_progress: OnProgress | None = None) -> dict[str, Any]:
    """Train a recipe to its end, or go on where an earlier run of the same command stopped.

    Args:
        recipe: What to do.
        force_resume: Go on from a checkpoint that another recipe wrote, or with other data.
        on_progress: Called after every update on the main process.

    Returns:
        The keys of `--json` for training (see the README).

    Raises:
        UsageError: A wrong field, an output folder that cannot be written, or a checkpoint of another recipe
            or of other data.
        DataError, ModelError: From the dataset and the pretrained weights.
        BusyError: Another run holds the folder.
        NumericalError: The gradients stopped being finite for good.
        Terminated: SIGTERM or Ctrl-C came; a checkpoint was saved.
    """
    folder = run_folder(recipe)
    prepare_folder(folder)
    recipe = at_source_size(recipe)
    keep_memory()
    with fast.accelerated(recipe, folder) as accelerator, Stop() as stop:
        lock = hold(folder) if accelerator.is_main_process else contextlib.nullcontext()
        with lock:
            run = Run(recipe, folder, accelerator, force_resume)
            run.loop(stop, on_progress)
            return run.finish()


class Run:
    """The parts of a run, built in the order in which they can fail: checkpoint, data, network."""

    def __init__(self, recipe: Recipe, folder: Path, accelerator: Accelerator, force_resume: bool) -> None:
        from diffkit.data import Loader, open_dataset

        self.recipe, self.folder, self.accelerator = recipe, folder, accelerator
        self.main: bool = accelerator.is_main_process
        root = folder / "checkpoints"
        if self.main:
            checkpoint.clean(root)
        accelerator.wait_for_everyone()
        found = checkpoint.newest(root)
        spec, world = recipe.training, accelerator.num_processes
        if found and not force_resume:
            resume.same_recipe(found, recipe, world, folder)
        self.dataset = open_dataset(recipe.dataset, seed=spec.seed)
        build.check_data(recipe, self.dataset)
        self.marks = resume.data_marks(recipe, self.dataset) if found or self.main else {}
        if found:
            resume.same_data(found, self.marks, self.dataset.name, folder, force=force_resume)
        self.loader = Loader(
            self.dataset, recipe.dataset, batch_size=spec.batch_size, seed=spec.seed,
            rank=accelerator.process_index, world=world, device=accelerator.device,
        )  # fmt: skip
        if found:
            resume.same_length(found, self.loader.length, self.dataset.name, folder, force=force_resume)
        self.plan = Plan.of(recipe, self.loader.length, world)
        self.network, self.scheduler, meta = build.network(recipe, self.dataset, self.loader.shape)
        self.meta = build.in_range(meta, recipe, self.loader)
        self.state = build.state(recipe, self.network, self.meta, accelerator)
        source = {"prediction": self.meta.prediction, "distribution": self.meta.noise}  # of weights to start from
        self.objective: Objective = make_objective(
            recipe.noise.model_copy(update=source), self.scheduler, accelerator.device
        )
        self.resumed_from = str(found.folder) if found else None
        if found:
            states.restore(self.state, found, accelerator.scaler)
            LOG.info("going on from step %d (%s)", self.state.step, found.folder.name)
        self._open_outputs(found.step if found else 0)
        self.evaluator: Evaluator | None = None
        if spec.evaluate_every:
            best = self.metrics.lowest("kid") if self.main else None
            self.evaluator = Evaluator(recipe, self.loader, accelerator, folder, best)

    def _open_outputs(self, step: int) -> None:
        if self.main:
            (self.folder / "resolved.yaml").write_text(recipes.dump_yaml(self.recipe), encoding="utf-8")
            (self.folder / "samples").mkdir(exist_ok=True)
            self.metrics = Metrics(self.folder / "metrics.jsonl", step)
        if self.recipe.output.report_to:
            flat = {k: str(v) for part in ("dataset", "model", "noise", "training")
                    for k, v in self.recipe.model_dump()[part].items()}  # fmt: skip
            places = {"wandb": {"dir": str(self.folder), "name": self.recipe.name}}
            self.accelerator.init_trackers("diffkit", config=flat, init_kwargs=places)

    def loop(self, stop: Stop, on_progress: OnProgress | None) -> None:
        """Train to the end, with logging, validation, previews and checkpoints at their intervals."""
        spec, state, stop.training = self.recipe.training, self.state, True
        validate_every = spec.validate_every or max(1, round(self.plan.steps_per_epoch))
        loss = speed = None
        clock, read_at = time.monotonic(), state.step
        for step in train(state, self.loader, self.objective, self.recipe, self.accelerator, self.plan):
            done = step.step == self.plan.total
            at = lambda every: done or step.step % every == 0  # noqa: B023, E731
            if at(spec.log_every):
                loss = self._log(step, time.monotonic() - clock, step.step - read_at)
                speed = self.metrics.last("images_per_second") if self.main else None
                clock, read_at = time.monotonic(), step.step
            began = time.monotonic()
            if self.recipe.dataset.validation and at(validate_every):
                self._validate(step)
            if spec.evaluate_every and at(spec.evaluate_every):
                self._evaluate(step)
            if done or (spec.preview_every and at(spec.preview_every)):
                self._preview(step.step)
            ending = self._ending(stop, step)
            if at(spec.checkpoint_every) or ending:
                self.save()
            clock += time.monotonic() - began  # the speed that is told is that of training alone
            if on_progress is not None and self.main:
                left = (step.total - step.step) * self.plan.images_per_update
                on_progress(Progress(step, loss, speed, left / speed if speed else None))
            if ending and not done:
                self._stop(ending)

    def _ending(self, stop: Stop, step: TrainStep) -> int:
        """The exit code asked for; several processes agree on it at the logging intervals, where they meet anyway."""
        if self.accelerator.num_processes == 1:
            return stop.code
        if step.step % self.recipe.training.log_every:
            return 0
        return int(self.accelerator.gather(torch.tensor([stop.code], device=self.accelerator.device)).max())

    def _stop(self, code: int) -> None:
        self.write_pipeline()
        name = "SIGTERM" if code == 143 else "Ctrl-C"
        raise Terminated(
            f"stopped by {name} at step {self.state.step} of {self.plan.total}; a checkpoint is in {self.folder}",
            code,
            "Run the same command again to go on.",
        )

    def _log(self, step: TrainStep, seconds: float, updates: int) -> float | None:
        """Read the loss back (the one host sync of the interval) and give up if no gradient is finite any more."""
        state = self.state
        numbers = torch.stack([state.loss_sum, state.skipped, state.streak])
        if self.accelerator.num_processes > 1:
            numbers = self.accelerator.reduce(numbers, "mean")
        total, skipped, streak = numbers.tolist()
        counted = state.loss_count
        state.loss_sum.zero_()
        state.loss_count = 0
        if streak >= MAX_STREAK:
            raise NumericalError(
                f"no finite gradient in the last {int(streak)} updates, up to step {step.step}",
                f"The last good checkpoint is kept in {self.folder / 'checkpoints'}. Lower training.lr, or use "
                "training.mixed_precision=no.",
            )
        if not self.main:
            return None
        loss = total / counted if counted else None
        row = {
            "step": step.step, "epoch": round(step.epoch, 4), "loss": loss, "lr": step.lr, "images": step.images,
            "images_per_second": round(updates * self.plan.images_per_update / max(seconds, 1e-9), 2),
            "skipped_steps": int(skipped),
        }  # fmt: skip
        if state.splits > 1:
            row["splits"] = state.splits
        self.metrics.add(row)
        self._track({"loss": loss, "lr": step.lr, "images_per_second": row["images_per_second"]}, step.step)
        return loss

    def _track(self, values: dict[str, Any], step: int) -> None:
        if self.recipe.output.report_to:
            self.accelerator.log({k: v for k, v in values.items() if v is not None}, step=step)

    def _validate(self, step: TrainStep) -> None:
        state = self.state
        value = validation_loss(state, self.loader, self.objective, self.accelerator, self.recipe.training.seed)
        if state.plateau and state.plateau.observe(value):
            LOG.info("step %d: validation loss on a plateau, learning rate times %.3g", step.step, state.plateau.factor)
        if self.main:
            self.metrics.add({"step": step.step, "epoch": round(step.epoch, 4), "validation_loss": value})
            self._track({"validation_loss": value}, step.step)

    def _evaluate(self, step: TrainStep) -> None:
        """FID, KID and others of the run's own pictures; the weights of the lowest KID are kept in `best`."""
        model = (self.network, self.scheduler, self.meta, self.state.ema)
        assert self.evaluator is not None, "made where there are evaluations"
        scores = self.evaluator.measure(*model)
        self.evaluator.keep(step.step, scores, *model)
        if self.main:
            self.metrics.add({"step": step.step, "epoch": round(step.epoch, 4), **scores})
            self._track({key: value for key, value in scores.items() if isinstance(value, float)}, step.step)

    def _preview(self, step: int) -> None:
        if not (self.main or states.is_sharded(self.network)):
            return
        pictures = result.previews(self.network, self.scheduler, self.meta, self.recipe, self.loader, self.state.ema)
        if self.main:
            for kind, grid in pictures.items():
                grid.save(self.folder / "samples" / f"step-{step:07d}-{kind}.png")
            self._draw_curve()

    def _draw_curve(self) -> None:
        from diffkit.pictures.plots import loss_curve

        loss_curve(self.metrics.rows, self.folder / "loss.png")

    def save(self) -> None:
        """Commit a checkpoint (every process takes part, one writes)."""
        tensors = states.collect(self.state)
        if self.main:
            facts = {
                **states.summary(self.state, self.accelerator.scaler), "recipe": self.recipe.model_dump(mode="json"),
                "world": self.accelerator.num_processes, "length": self.loader.length, "dataset": self.marks,
            }  # fmt: skip
            keep = self.recipe.training.keep_checkpoints
            checkpoint.save(self.folder / "checkpoints", self.state.step, tensors, facts, keep=keep)
        self.accelerator.wait_for_everyone()

    def write_pipeline(self) -> None:
        """Write the averaged weights as a diffusers pipeline, and the raw ones beside them in `unet_raw`."""
        result.write_pipeline(self.folder, self.network, self.scheduler, self.meta, self.state.ema, self.main)
        self.accelerator.wait_for_everyone()

    def finish(self) -> dict[str, Any]:
        """Write the pipeline, the loss curve and the model card; push them if asked; return the summary."""
        self.write_pipeline()
        if self.recipe.output.report_to:
            self.accelerator.end_training()
        if not self.main:
            return {}
        newest = checkpoint.find(self.folder / "checkpoints")
        summary = {
            "output_dir": str(self.folder),
            "step": self.state.step,
            "epoch": round(self.state.step / self.plan.steps_per_epoch, 3),
            "loss": self.metrics.last("loss"),
            "validation_loss": self.metrics.last("validation_loss"),
            "images_per_second": self.metrics.last("images_per_second"),
            "checkpoint": str(newest[0]) if newest else None,
            "resumed_from": self.resumed_from,
            "skipped_steps": int(self.state.skipped),
        }
        if (best := read_best(self.folder)) is not None:
            summary["best"] = best
        self._draw_curve()
        card = model_card(self.recipe, self.meta, summary, self.folder, self.network)
        (self.folder / "README.md").write_text(card, encoding="utf-8")
        if self.recipe.output.push_to_hub:
            summary["pushed_to"] = publish.push(self.folder, self.recipe)
        return json.loads(json.dumps(summary))
