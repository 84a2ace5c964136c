"""A run that measures its own pictures while it trains, and keeps the weights that drew the best by KID.

Nothing here touches what training computes: pictures come from generators of their own, one per picture, and the
classifier whose features are compared learns under a random state of its own. A resumed run measures what an
uninterrupted one measures. Source of the habit: the Keras example "Denoising Diffusion Implicit Models", which selects
by KID.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import shutil
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffkit.data import Loader
from diffkit.evaluation.features import Features, parse_features
from diffkit.evaluation.metrics import measure
from diffkit.evaluation.pictures import Pictures
from diffkit.evaluation.statistics import joined, real_features
from diffkit.models.ddpm import DDPM
from diffkit.models.meta import RunMeta
from diffkit.models.text_network import TrainedNetwork
from diffkit.pictures.tensors import to_float, to_uint8
from diffkit.recipes.schema import Recipe
from diffkit.training import result
from diffkit.training.checkpoint import write_json
from diffkit.training.ema import EMA
from diffkit.training.state import is_sharded

if TYPE_CHECKING:
    from accelerate import Accelerator
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

LOG = logging.getLogger(__name__)
BEST, FACTS = "best", "evaluation.json"
BATCH = 64
REAL = 2_000  # real pictures: enough beside some hundreds of drawn ones, and measured in a second


class Evaluator:
    """Measures a run's pictures against its data.

    Args:
        recipe: Its training section says how many pictures, by how many steps, and by what features.
        loader: Of the run; its dataset holds the real pictures.
        accelerator: Accelerate's; the processes share the drawing.
        folder: The run's.
        best: The lowest KID so far, as the main process knows it.

    Raises:
        UsageError: Features that do not exist, or a dataset without classes for those of a classifier.
        ModelError: Features whose network is not there.
    """

    def __init__(
        self, recipe: Recipe, loader: Loader, accelerator: Accelerator, folder: Path, best: float | None
    ) -> None:
        self.recipe, self.loader, self.accelerator, self.folder = recipe, loader, accelerator, folder
        spec = recipe.dataset.model_copy(update={"crop": "center", "flip": False})
        self.pictures = Pictures(spec, loader.shape[0], loader.dataset)
        parse_features(recipe.training.evaluate_features).suits(self.pictures)  # before the first update
        if accelerator.num_processes > 1:
            from accelerate.utils import broadcast_object_list

            [best] = broadcast_object_list([best])
        self.best = math.inf if best is None else best

    @cached_property
    def features(self) -> Features:
        """What pictures are compared by; learned by the main process first, where it has to be."""
        with self.accelerator.main_process_first():
            return parse_features(self.recipe.training.evaluate_features, self.accelerator.device).fitted(self.pictures)

    @cached_property
    def real(self) -> Tensor:
        """The features of real pictures."""
        features = self.features  # by all processes, before they wait for one another again
        with self.accelerator.main_process_first():
            return real_features(features, self.pictures, REAL)

    def measure(
        self, network: TrainedNetwork, scheduler: SchedulerMixin, meta: RunMeta, ema: EMA | None
    ) -> dict[str, Any]:
        """Draw with the averaged weights and measure; every process must call it, and all have the numbers.

        Returns:
            The scores by key, `evaluated` (how many pictures) and `features` (their hash).
        """
        real = self.real
        model = DDPM(network, scheduler, meta, device=self.accelerator.device, attention=self.recipe.model.attention)
        with torch.no_grad(), ema.applied() if ema is not None else contextlib.nullcontext():
            found = self._drawn(model)
        network.train()
        about = {"evaluated": len(found), "features": self.features.hash}
        return {**measure(real, found), **about}

    def _drawn(self, model: DDPM) -> Tensor:
        """The features of the run's pictures, in the order of their seeds."""
        spec, count = self.recipe.training, self.recipe.training.evaluate_images
        # Sharded weights are gathered by all processes in each call, so each draws everything.
        alone = self.accelerator.num_processes == 1 or is_sharded(model.network)
        rank, world = (0, 1) if alone else (self.accelerator.process_index, self.accelerator.num_processes)
        labels = result.labels_for(model, count, self.loader)
        found: list[tuple[int, Tensor]] = []
        for start in range(0, count, BATCH)[rank::world]:
            seeds = range(start, min(start + BATCH, count))
            some = [labels[k] for k in seeds]
            images = result.drawn(model, seeds, some, spec.evaluate_steps, spec.preview_guidance)
            # as a PNG keeps them, in whole levels
            found.append((start, self.features.embed(to_float(to_uint8(images.nan_to_num(0.0))))))
        return joined(found, world)

    def keep(
        self, step: int, scores: dict[str, Any], network: TrainedNetwork, scheduler: SchedulerMixin, meta: RunMeta,
        ema: EMA | None,
    ) -> None:  # fmt: skip
        """Write the weights as a pipeline into `best` if no earlier ones had as low a KID; every process calls it."""
        if scores.get("kid", math.inf) >= self.best:
            return
        self.best = float(scores["kid"])
        place, main = self.folder / f".best-{os.getpid()}", bool(self.accelerator.is_main_process)
        if main:
            for leftover in self.folder.glob(".best-*"):
                shutil.rmtree(leftover)
            place.mkdir()
        result.write_pipeline(place, network, scheduler, meta, ema, main)
        if main:
            write_json(place / FACTS, {"step": step, **scores})
            shutil.rmtree(self.folder / BEST, ignore_errors=True)
            place.rename(self.folder / BEST)
        LOG.info("step %d: KID %.5f is the lowest so far; the weights are kept in %s", step, self.best, BEST)


def read_best(folder: Path) -> dict[str, Any] | None:
    """Return path, step and KID of the best weights that a run keeps, or None where it keeps none."""
    try:
        facts = json.loads((folder / BEST / FACTS).read_text(encoding="utf-8"))
        return {"path": str(folder / BEST), "step": int(facts["step"]), "kid": float(facts["kid"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None
