"""Training: the loop as a generator (`train`), whole runs (`fit`), and what they need.

This room holds no network definitions (see `diffkit.models`), no datasets (`diffkit.data`), and prints nothing.
"""

from diffkit.training.loop import Plan, TrainState, TrainStep, train
from diffkit.training.run import Progress, fit, run_folder

__all__ = ["Plan", "Progress", "TrainState", "TrainStep", "fit", "run_folder", "train"]
