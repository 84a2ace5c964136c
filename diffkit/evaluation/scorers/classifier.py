"""Log-probabilities of classes, by an image classifier: one in a file of diffkit's, or one of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from diffkit.errors import UsageError
from diffkit.evaluation.image_classifiers import Logits, class_names, class_number, classifier_file, load_logits
from diffkit.evaluation.scorers.base import CHUNK, SCORERS


@SCORERS.register("classifier")
@dataclass(frozen=True)
class ClassifierScorer:
    """Log-probability of a class, by an image classifier.

    Attributes:
        source: A file that `diffkit train-classifier` wrote, a folder that holds it as `classifier.safetensors`, or an
            image classifier of transformers, by id or folder.
        device: Where it computes.
    """

    name: ClassVar[str]
    tau: ClassVar[float] = 1.0  # a softmax of log-probabilities is the probability among the prompts
    source: str = ""
    device: str = "cpu"

    def check(self, prompts: Sequence[str] = ()) -> None:
        """Read the names of the classes.

        Raises:
            UsageError: No file was named, or a prompt is none of its classes.
            ModelError: There is no such file, or it is not of the format.
        """
        if not self.source:
            raise UsageError("scorer classifier: no file named", "Give classifier:FILE.safetensors.")
        self.labels(prompts)

    @cached_property
    def class_names(self) -> list[str]:
        """Names in label order."""
        return class_names(self.source)

    @cached_property
    def _logits(self) -> Logits:
        return load_logits(self.source, self.device)

    def labels(self, prompts: Sequence[str]) -> list[int]:
        """Return the classes that prompts name: a class's name, or its number where no name is that.

        Raises:
            UsageError: Not a class of this classifier.
        """
        names, whose = self.class_names, classifier_file(self.source) or Path(self.source)
        return [class_number(names, prompt, "prompt", whose.name) for prompt in prompts]

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Pictures (N, C, H, W) in [-1, 1], any size -> (N, classes), fp32 on the CPU."""
        return torch.cat([self._logits(part.float().clamp(-1, 1)).float().cpu() for part in images.split(CHUNK)])

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Log-probabilities (N, P), of all classes of the classifier."""
        columns = self.labels(prompts)
        return self.logits(images).log_softmax(1)[:, columns]
