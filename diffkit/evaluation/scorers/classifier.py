"""Log-probabilities of classes, by a small classifier in a file of its own (`diffkit/classifier.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from diffkit.errors import UsageError, did_you_mean
from diffkit.evaluation.classifier import SmallCNN, load_classifier, read_names
from diffkit.evaluation.scorers.base import CHUNK, SCORERS
from diffkit.pictures.tensors import in_channels

CLASSIFIER_FILE = "classifier.safetensors"


@SCORERS.register("classifier")
@dataclass(frozen=True)
class ClassifierScorer:
    """Log-probability of a class, by a small classifier in a file that `classifier.save_classifier` wrote.

    Attributes:
        source: The file, or a folder that holds it as `classifier.safetensors`.
        device: Where it computes.
    """

    name: ClassVar[str]
    tau: ClassVar[float] = 1.0  # a softmax of log-probabilities is the probability among the prompts
    source: str = ""
    device: str = "cpu"

    def check(self, prompts: Sequence[str] = ()) -> None:
        """Read the file's header.

        Raises:
            UsageError: No file was named, or a prompt is none of its classes.
            ModelError: There is no such file, or it is not of the format.
        """
        if not self.source:
            raise UsageError("scorer classifier: no file named", "Give classifier:FILE.safetensors.")
        self.labels(prompts)

    @property
    def _path(self) -> Path:
        path = Path(self.source).expanduser()
        return path / CLASSIFIER_FILE if path.is_dir() else path

    @cached_property
    def class_names(self) -> list[str]:
        """Names in label order."""
        return read_names(self._path)

    @cached_property
    def network(self) -> SmallCNN:
        """The network, loaded on first use."""
        return load_classifier(self._path)[0].to(self.device)

    def labels(self, prompts: Sequence[str]) -> list[int]:
        """Return the classes that prompts name: a class's name, or its number where no name is that.

        Raises:
            UsageError: Not a class of this classifier.
        """
        names = self.class_names
        found = []
        for prompt in prompts:
            if prompt in names:
                found.append(names.index(prompt))
            elif prompt.isdecimal() and int(prompt) < len(names):
                found.append(int(prompt))
            else:
                raise UsageError(
                    f"prompt {prompt!r} is not one of the {len(names)} classes that {self._path.name} knows",
                    did_you_mean(prompt, names),
                )
        return found

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Pictures (N, C, H, W) in [-1, 1], any size -> (N, classes), fp32 on the CPU."""
        network = self.network
        channels, height, width = network.shape
        rows = []
        for part in images.split(CHUNK):
            pixels = in_channels(part.to(self.device).float().clamp(-1, 1), channels)
            if tuple(pixels.shape[-2:]) != (height, width):
                pixels = F.interpolate(pixels, (height, width), mode="bilinear", antialias=True)
            rows.append(network(pixels).float().cpu())
        return torch.cat(rows)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Log-probabilities (N, P), of all classes of the classifier."""
        columns = self.labels(prompts)
        return self.logits(images).log_softmax(1)[:, columns]
