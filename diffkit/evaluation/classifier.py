"""A small image classifier and its file, by which pictures of class models are judged.

Holds the architecture and the format, and no trained weights: a classifier is trained on real images by whoever needs
one (`diffkit train-classifier`, `benchmarks/judge.py`). How one is asked is in `image_classifiers.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from diffkit.errors import ModelError
from diffkit.pictures.files import write_whole

_FORMAT, _ARCHITECTURE = "diffkit-classifier", "small-cnn"


class SmallCNN(nn.Module):
    """Four convolutions, two poolings, one linear layer: (N, C, R, R) in [-1, 1] -> (N, classes) logits.

    Args:
        resolution: R, divisible by 4.
        classes: Number of classes.
        channels: C.
        width: Channels of the first two convolutions; the others have twice as many.
    """

    def __init__(self, resolution: int, classes: int = 10, *, channels: int = 1, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((channels, width), (width, 2 * width)):
            for entry in (before, after):
                layers += [nn.Conv2d(entry, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            layers += [nn.MaxPool2d(2)]
        self.shape, self.classes, self.width = (channels, resolution, resolution), classes, width
        side = resolution // 4
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(2 * width * side**2, classes))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        out: Tensor = self.layers(images)
        return out

    def features(self, images: Tensor) -> Tensor:
        """(N, C, R, R) in [-1, 1] -> (N, 6 width): the means over all places of what the four convolutions give."""
        means, out = [], images
        for layer in self.layers:
            if isinstance(layer, nn.Flatten):
                break
            out = layer(out)
            if isinstance(layer, nn.ReLU):
                means.append(out.mean((2, 3)))
        return torch.cat(means, 1)


def save_classifier(
    path: Path, network: SmallCNN, class_names: Sequence[str], extra: Mapping[str, str] | None = None
) -> None:
    """Write a classifier as one safetensors file, which is there whole or not at all; its folder is made.

    The tensors are the network's state; the header's metadata says how to build it: `format` "diffkit-classifier",
    `architecture` "small-cnn", `classes` (a JSON list of names in label order), `shape` (a JSON list: channels, height,
    width) and `width`. Pictures are read in [-1, 1].

    Args:
        path: The file.
        network: Its last layer has one output per name.
        class_names: In label order.
        extra: Further metadata.
    """
    from safetensors.torch import save

    if len(class_names) != network.classes:
        raise ValueError(f"{len(class_names)} names for {network.classes} classes")
    about = {"format": _FORMAT, "architecture": _ARCHITECTURE, "classes": json.dumps(list(class_names)),
             "shape": json.dumps(network.shape), "width": str(network.width)}  # fmt: skip
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, save(state, metadata={**(extra or {}), **about}))


def read_names(path: Path) -> list[str]:
    """Return the names of the classes that a classifier's file knows, in label order; its tensors are not read.

    Raises:
        ModelError: There is no such file, or it is not of the format.
    """
    return _header(path)[0]


def load_classifier(path: Path) -> tuple[SmallCNN, list[str]]:
    """Return a classifier, in evaluation mode on the CPU, and its classes' names.

    Raises:
        ModelError: There is no such file, it is not of the format, or its tensors do not fit what it says of itself.
    """
    from safetensors.torch import load_file

    names, (channels, resolution), width = _header(path)
    network = SmallCNN(resolution, len(names), channels=channels, width=width)
    try:
        network.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise ModelError(f"classifier {path}: its tensors do not fit its header: {_first_line(error)}") from error
    return network.eval(), names


def _header(path: Path) -> tuple[list[str], tuple[int, int], int]:
    """(names, (channels, resolution), width), all checked: they size the network."""
    from safetensors import SafetensorError, safe_open

    hint = "A classifier is a safetensors file that `diffkit train-classifier` wrote."
    if not path.is_file():
        raise ModelError(f"classifier {path}: no such file", hint)
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ModelError(f"classifier {path}: no safetensors file: {_first_line(error)}", hint) from None
    if (about.get("format"), about.get("architecture")) != (_FORMAT, _ARCHITECTURE):
        raise ModelError(f"classifier {path}: its metadata does not say {_FORMAT}, {_ARCHITECTURE}", hint)
    try:
        names = [str(name) for name in json.loads(about["classes"])]
        channels, height, width = (int(v) for v in json.loads(about["shape"]))
        filters = int(about["width"])
    except (KeyError, TypeError, ValueError, RecursionError):
        raise ModelError(f"classifier {path}: classes, shape or width are missing from its metadata", hint) from None
    if (
        not names
        or channels not in (1, 3)
        or height != width
        or height % 4
        or not 4 <= height <= 1024
        or not 1 <= filters <= 1024
    ):
        raise ModelError(f"classifier {path}: {len(names)} classes, shape {about['shape']}, width {filters}", hint)
    return names, (channels, height), filters


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
