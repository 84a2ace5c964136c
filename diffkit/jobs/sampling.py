"""What the jobs that sample share: a scheduler with its grid set, and taking all steps of a loop."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor

from diffkit.engine.grids import scheduler_for
from diffkit.engine.sampler_names import canonical
from diffkit.engine.samplers import default_sampler
from diffkit.engine.settings import Settings
from diffkit.errors import UsageError
from diffkit.types import Step

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_utils import SchedulerMixin


def make_scheduler(base: SchedulerMixin, settings: Settings, **options: Any) -> SchedulerMixin:
    """As `scheduler_for`, and refuse fresh noise where the sampler has no place for it.

    Raises:
        UsageError: The sampler, its grid or `eta` does not fit the model.
    """
    name = canonical(settings.scheduler or default_sampler(base))
    if settings.eta and name != "ddim":
        raise UsageError(f"`eta` belongs to ddim; the scheduler is {name}", "Leave `eta` out.")
    return scheduler_for(base, settings, **options)


def numbers_of(timesteps: Tensor) -> list[float]:
    """Return timesteps for people and JSON: whole numbers as such."""
    return [int(t) if float(t).is_integer() else float(t) for t in timesteps]


def take(steps: Iterator[Step]) -> Generator[Step, None, Tensor]:
    """Pass all steps of a loop on; return its last sample."""
    x: Tensor | None = None
    for step in steps:
        x = step.x
        yield step
    assert x is not None, "a loop takes at least one step"
    return x


def counted(steps: Generator[Step, None, Tensor]) -> Generator[Step, None, tuple[Tensor, int]]:
    """Pass steps on; return what they end in, and how many there were."""
    count = 0
    while True:
        try:
            step = next(steps)
        except StopIteration as done:
            return done.value, count
        count += 1
        yield step
