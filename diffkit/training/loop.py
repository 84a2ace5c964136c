"""The training loop: a generator of updates, and nothing else.

Logging, checkpoints, previews and progress live with the caller (`run.py`). The loop never reads a number back from the
device: losses and the count of skipped updates stay there as tensors until the caller looks. All randomness is a
function of position (`rng.py`), so a loop that starts at step k goes on as if it had never been stopped.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diffkit.errors import ResourceError
from diffkit.models.ddpm import PixelCodec
from diffkit.models.network import whole
from diffkit.models.text_network import TrainedNetwork
from diffkit.recipes.schema import Recipe, TrainingSpec
from diffkit.training import rng
from diffkit.training.ema import EMA
from diffkit.training.objectives import Objective, drop_labels
from diffkit.training.optim import Plateau, gradient_norm, learning_rate, step_unless
from diffkit.training.statistics import RunningStatistics

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer

    from diffkit.data.loader import Batch, Loader

LOG = logging.getLogger(__name__)


@dataclass
class TrainState:
    """All that changes while a run trains, and so all that a checkpoint must hold.

    Attributes:
        network: The network itself.
        wrapped: The network as Accelerate prepared it (the same object, or DDP/FSDP around it).
        optimizer: AdamW, as Accelerate prepared it.
        ema: The averaged weights, or None.
        codec: Pads the images to the network's size where that is larger.
        step: Optimizer updates done.
        splits: Into how many parts a micro-batch is cut; doubled when memory runs out.
        plateau: Reduce-on-plateau's state, or None.
        loss_sum: Sum of the losses since they were last read, a device scalar.
        loss_count: How many updates it sums.
        skipped: Updates skipped for a gradient that was not finite, a device scalar.
        streak: How many of them in a row, a device scalar.
        data: The loader's own state (streaming sets only).
        statistics: The running statistics of batch normalizations.
    """

    network: TrainedNetwork
    wrapped: nn.Module
    optimizer: AcceleratedOptimizer | torch.optim.Optimizer
    ema: EMA | None
    codec: PixelCodec
    device: torch.device
    step: int = 0
    splits: int = 1
    plateau: Plateau | None = None
    loss_sum: Tensor = field(init=False)
    loss_count: int = 0
    skipped: Tensor = field(init=False)
    streak: Tensor = field(init=False)
    data: dict[str, Any] = field(default_factory=dict)
    statistics: RunningStatistics = field(init=False)

    def __post_init__(self) -> None:
        self.loss_sum = torch.zeros((), device=self.device)
        self.skipped = torch.zeros((), device=self.device)
        self.streak = torch.zeros((), device=self.device)
        self.statistics = RunningStatistics(self.network)

    @property
    def bare_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer itself, whose step Accelerate would take in its own way."""
        from accelerate.optimizer import AcceleratedOptimizer

        inner = self.optimizer
        return inner.optimizer if isinstance(inner, AcceleratedOptimizer) else inner


@dataclass(frozen=True)
class TrainStep:
    """One optimizer update, just done.

    Attributes:
        step: Updates done, this one included.
        total: Updates of the whole run.
        epoch: Passes over the data, as a fraction; 0 where the length is not known.
        lr: The learning rate that it used.
        images: Images seen by all processes since the start of the run.
    """

    step: int
    total: int
    epoch: float
    lr: float
    images: int


@dataclass(frozen=True)
class Plan:
    """The arithmetic of a run: how many images an update sees, how many updates there are."""

    images_per_update: int
    steps_per_epoch: float
    total: int

    @staticmethod
    def of(recipe: Recipe, length: int | None, world: int) -> Plan:
        """Count updates for a training part of `length` images (None: unknown) and `world` processes."""
        spec = recipe.training
        images = spec.batch_size * spec.gradient_accumulation * world
        per_epoch = (length or images) / images
        if spec.steps is not None:
            return Plan(images, per_epoch, spec.steps)
        return Plan(images, per_epoch, math.ceil(per_epoch * (spec.epochs or 1)))


def train(
    state: TrainState, loader: Loader, objective: Objective, recipe: Recipe, accelerator: Accelerator, plan: Plan
) -> Iterator[TrainStep]:
    """Train from `state.step` to the plan's end, yielding after every optimizer update.

    Args:
        state: Mutated in place; save it between two steps and it resumes exactly.
        loader: Its `stream(start, state)` gives this process's micro-batches from a position on.
        objective: Corruption and loss.
        recipe: The recipe; only its training section is read.
        accelerator: Accelerate's, for backward, gradient exchange and autocast.
        plan: How many updates.

    Raises:
        ResourceError: Memory runs out even for single images, or in a run of several processes.
    """
    spec = recipe.training
    stream = loader.stream(state.step * spec.gradient_accumulation, state.data or None)
    params = [p for p in state.wrapped.parameters() if p.requires_grad]
    seeded = any(isinstance(m, nn.Dropout) and m.p > 0 for m in state.network.modules())
    state.wrapped.train()
    while state.step < plan.total:
        factor = state.plateau.factor if state.plateau else 1.0
        lr = learning_rate(spec, state.step, plan.total, plan.steps_per_epoch, factor)
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        batches = [next(stream) for _ in range(spec.gradient_accumulation)]
        state.statistics.keep()
        loss = _backward_or_split(state, batches, objective, spec, accelerator, seeded)
        _apply(state, params, loss, spec.clip, accelerator)
        state.data = loader.state()
        state.step += 1
        images = state.step * plan.images_per_update
        yield TrainStep(state.step, plan.total, state.step / plan.steps_per_epoch, lr, images)


def _backward_or_split(
    state: TrainState, batches: Sequence[Batch], objective: Objective, spec: TrainingSpec, accelerator: Accelerator,
    seeded: bool,
) -> Tensor:  # fmt: skip
    """Accumulate the gradients of one update; where memory runs out, halve the micro-batch and replay the update."""
    while True:
        try:
            return _backward(state, batches, objective, spec, accelerator, seeded)
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
            if state.splits >= spec.batch_size or accelerator.num_processes > 1:
                raise ResourceError(
                    f"out of memory at step {state.step} with micro-batches of "
                    f"{max(1, spec.batch_size // state.splits)}",
                    "Lower training.batch_size (raise training.gradient_accumulation), or set "
                    "training.gradient_checkpointing=true.",
                ) from error
        state.splits *= 2
        state.optimizer.zero_grad(set_to_none=True)
        state.statistics.restore()
        if state.device.type == "cuda":
            torch.cuda.empty_cache()
        LOG.warning(
            "out of memory at step %d: micro-batches are cut into %d parts from here on", state.step, state.splits
        )


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _backward(
    state: TrainState, batches: Sequence[Batch], objective: Objective, spec: TrainingSpec, accelerator: Accelerator,
    seeded: bool,
) -> Tensor:  # fmt: skip
    """Accumulate the gradients of one update, and return its mean loss."""
    total = torch.zeros((), device=state.device)
    for micro, batch in enumerate(batches):
        place = (spec.seed, "noise", state.step, micro, accelerator.process_index)
        generator = rng.generator(state.device, *place)
        images = state.codec.encode(batch.images)
        draw = objective.draw(images, generator)
        labels = drop_labels(state.network.labels_of(batch), state.network.null_class, spec.class_dropout, generator)
        if seeded:  # dropout layers draw from the global generator, so that is placed as well
            torch.manual_seed(rng.derive_seed(*place, "dropout"))
        size = -(-len(images) // state.splits)
        for start in range(0, len(images), size):
            stop = start + size
            # Processes exchange their gradients once per update, when the last part has added its own.
            last = micro == len(batches) - 1 and stop >= len(images)
            with contextlib.nullcontext() if last else accelerator.no_sync(state.wrapped):
                some = None if labels is None else labels[start:stop]
                losses = objective.loss(state.wrapped, images[start:stop], some, draw.rows(start, stop))
                loss = losses.sum() / (len(images) * len(batches))
                accelerator.backward(loss)
                total += loss.detach()
    return total


def _apply(state: TrainState, params: list[nn.Parameter], loss: Tensor, clip: float, accelerator: Accelerator) -> None:
    """Take the optimizer step unless a gradient is not finite, average the weights, and count, all on the device."""
    scaler = accelerator.scaler
    if scaler is not None:
        accelerator.unscale_gradients(state.optimizer)
    norm = whole(gradient_norm(params, clip))  # under FSDP every process holds a shard of it
    bad = (~torch.isfinite(norm)).float()
    inner = state.bare_optimizer
    if scaler is not None:  # the scaler skips by itself and lowers its scale
        scaler.step(inner)
        scaler.update()
    else:
        step_unless(inner, bad)
    inner.zero_grad(set_to_none=True)
    state.statistics.settle(bad, accelerator)
    if state.ema is not None:
        state.ema.update(state.step)
    state.loss_sum += torch.where(bad > 0, torch.zeros_like(loss), loss)
    state.loss_count += 1
    state.skipped += bad
    state.streak = (state.streak + 1) * bad
