"""The clean estimate of the last step, for schedulers that do not say what it was."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from diffkit.engine.levels import x0_of
from diffkit.types import Cond, Denoiser, Prediction

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_utils import SchedulerMixin


class Remembered:
    """A denoiser that remembers its last answer.

    Args:
        net: What answers.
    """

    def __init__(self, net: Denoiser) -> None:
        self.net = net
        self.last: tuple[Tensor, Tensor, Tensor] | None = None

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        prediction = self.net(x, t, cond)
        self.last = prediction.out, x, t
        return prediction

    def clean(self, scheduler: SchedulerMixin) -> Tensor:
        """Return the estimate of x0, (B, C, H, W), that the last answer stands for."""
        assert self.last is not None, "it was asked"
        return x0_of(*self.last, scheduler)
