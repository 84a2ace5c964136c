"""What a run would take, before it starts: parameters, memory, updates, time. What `--dry-run` prints."""

from __future__ import annotations

import logging
import os
from typing import Any

import torch

from diffkit.errors import ModelError
from diffkit.recipes.schema import ONE_STEP, DatasetSpec, Recipe
from diffkit.training import fast
from diffkit.training.loop import Plan
from diffkit.training.trial import Seconds, Sizes, measure, time_updates

LOG = logging.getLogger(__name__)


def estimate_recipe(recipe: Recipe, *, timed: bool = True) -> dict[str, Any]:
    """Estimate a recipe, opening its dataset for the length, the channels and the classes.

    Where the Hub cannot be reached, RGB, ten classes and an unknown length are assumed, and of a network to start from
    the recipe's preset; a warning says so.

    Raises:
        DataError: The dataset is there and cannot be used.
        ModelError: The network to start from is there and cannot be fine-tuned.
        UsageError: The network does not fit the data.
    """
    recipe = _like_source(recipe)
    length, shape, classes = _look_at(recipe.dataset)
    if recipe.model.class_conditioning == "none":
        classes = 0
    world = int(os.environ.get("WORLD_SIZE") or 1)
    return estimate(recipe, length, shape, classes, world=world, timed=timed)


def _like_source(recipe: Recipe) -> Recipe:
    """Return a recipe whose network has the shape of the one that it starts from."""
    if not recipe.model.pretrained:
        return recipe
    from diffkit.models import open_repo
    from diffkit.models.kinds import KINDS
    from diffkit.models.presets import preset_kind, source_overrides
    from diffkit.training.finetune import at_source_size, open_source

    try:
        open_repo(recipe.model.pretrained, revision=recipe.model.revision)
    except ModelError as error:
        LOG.warning("the source cannot be looked at (%s); its size is taken from the recipe", error.message)
        return recipe
    recipe = at_source_size(recipe)
    known = open_source(recipe)[1]
    kind = known.network.kind
    preset = KINDS[kind].preset or (recipe.model.preset if preset_kind(recipe.model.preset) == kind else "course28")
    shape = {"overrides": source_overrides(kind, known.network.config), "preset": preset}
    noise = {"prediction": known.record.get("prediction", recipe.noise.prediction)}
    return recipe.model_copy(
        update={"model": recipe.model.model_copy(update=shape), "noise": recipe.noise.model_copy(update=noise)}
    )


def _look_at(spec: DatasetSpec) -> tuple[int | None, tuple[int, int, int], int]:
    from diffkit.data import open_dataset

    try:
        dataset = open_dataset(spec)
    except ModelError as error:
        LOG.warning("the dataset cannot be looked at (%s); its length is left open", error.message)
        return None, (spec.channels or 3, spec.resolution, spec.resolution), 10
    length = dataset.length
    if length is not None and spec.validation:
        length -= max(1, round(spec.validation * length))
    return length, (dataset.channels, spec.resolution, spec.resolution), len(dataset.class_names or ())


def estimate(
    recipe: Recipe,
    length: int | None,
    shape: tuple[int, int, int],
    num_classes: int,
    *,
    world: int = 1,
    device: torch.device | str | None = None,
    timed: bool = False,
) -> dict[str, Any]:
    """Return what a run would take.

    Args:
        recipe: The run.
        length: Images of the training part; None where it is not known.
        shape: (C, H, W) of the images.
        num_classes: Classes of the dataset, 0 for none.
        world: Number of processes.
        device: Where it runs; the first GPU, else the CPU, when left out.
        timed: Take a few real updates to estimate the time.

    Returns:
        `parameters`, `trainable`, `memory` (bytes by kind, and `total`), `updates` (None where neither steps nor a
        length is known), `images`, `images_per_update`, `epochs`, `processes`, `device`, `precision`, `emulated` (a CPU
        without instructions for that precision), and, where timed, `images_per_second` and `eta_seconds` (previews
        included; None where the memory does not allow a trial).
    """
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    precision = fast.mixed_precision(recipe.training.mixed_precision) or os.environ.get(
        "ACCELERATE_MIXED_PRECISION", "no"
    )
    sizes = measure(recipe, shape, num_classes, place, precision)
    plan = Plan.of(recipe, length, world)
    total = plan.total if length is not None or recipe.training.steps is not None else None
    facts: dict[str, Any] = {
        "parameters": sizes.parameters,
        "trainable": sizes.trainable,
        "memory": _memory(recipe, sizes),
        "updates": total,
        "images_per_update": plan.images_per_update,
        "images": None if total is None else total * plan.images_per_update,
        "epochs": None if total is None or length is None else round(total / plan.steps_per_epoch, 2),
        "processes": world,
        "device": place.type,
        "precision": precision,
        "emulated": fast.emulated(precision, place),
    }
    if timed:
        seconds = time_updates(recipe, shape, num_classes, sizes, place, precision)
        facts["images_per_second"] = None if seconds is None else round(plan.images_per_update / seconds.update, 2)
        facts["eta_seconds"] = (
            None if seconds is None or total is None else round(_eta(recipe, seconds, total, num_classes), 1)
        )
    return facts


def describe(facts: dict[str, Any]) -> list[str]:
    """Return an estimate as lines for a person."""
    memory = facts["memory"]
    frozen = facts["parameters"] - facts["trainable"]
    parts = ", ".join(f"{name} {_bytes(memory[name])}" for name in memory if name != "total" and memory[name])
    updates = "not known before the dataset is there" if facts["updates"] is None else f"{facts['updates']:,}"
    seen = "" if facts["images"] is None else f" ({facts['images']:,} images"
    seen += f", {facts['epochs']:g} epochs)" if facts["epochs"] is not None else ")" if seen else ""
    slow = " (in software: training.mixed_precision no is faster)" if facts["emulated"] else ""
    lines = [
        f"parameters  {facts['parameters']:,}" + (f" ({frozen:,} frozen)" if frozen else ""),
        f"memory      at least {_bytes(memory['total'])} per process: {parts}",
        f"updates     {updates}{seen}, {facts['images_per_update']} images each",
        f"device      {facts['device']}, precision {facts['precision']}{slow}, processes: {facts['processes']}",
    ]
    if facts.get("images_per_second"):
        lines.append(f"speed       {facts['images_per_second']:g} images/s, from a few trial updates")
    if facts.get("eta_seconds") is not None:
        lines.append(f"time        about {_duration(facts['eta_seconds'])}, previews included")
    elif "eta_seconds" in facts:
        why = "memory is too small for a trial" if not facts["images_per_second"] else "number of updates is not known"
        lines.append(f"time        not known: the {why}")
    return lines


def _memory(recipe: Recipe, sizes: Sizes) -> dict[str, int]:
    """Bytes by kind: fp32 masters and gradients, AdamW's two moments, the average, what autograd keeps.

    The kernels' workspace and the allocator's gaps come on top. Peak resident memory over this sum, measured on a CPU:
    butterflies64 at batch 4: 1.10; course28 at batch 64: 1.42; digits16 at batch 64: 1.50.
    """
    parts = {
        "weights": 4 * sizes.parameters,
        "gradients": 4 * sizes.trainable,
        "optimizer": 8 * sizes.trainable,
        "ema": 4 * sizes.trainable if recipe.training.ema else 0,
        "activations": sizes.activations,
    }
    return {**parts, "total": sum(parts.values())}


def _eta(recipe: Recipe, seconds: Seconds, total: int, num_classes: int) -> float:
    """Updates, previews of the raw and the averaged weights, evaluations of the latter; a forward pass is a third."""
    spec = recipe.training
    previews = -(-total // spec.preview_every) if spec.preview_every else 1
    kinds = 2 if spec.ema else 1
    guided = 2 if (num_classes or recipe.model.text != "none") and spec.preview_guidance not in (0.0, 1.0) else 1
    forwards = previews * kinds * spec.preview_steps * min(spec.preview_images, 64) * guided
    if recipe.noise.prediction in ONE_STEP:
        forwards = previews * kinds * spec.preview_images
    if spec.evaluate_every:
        forwards += -(-total // spec.evaluate_every) * spec.evaluate_steps * spec.evaluate_images * guided
    return total * seconds.update + forwards * seconds.image / 3


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
