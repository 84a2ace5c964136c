"""What pictures are compared by: features by name, each a network with its size, its hash and its way of resizing.

`clip:ID_OR_FOLDER`, `dinov2:ID_OR_FOLDER`, `inception:FILE`, `classifier` or `classifier:FILE`. A row is a frozen
dataclass with a registered name; adding one touches this file alone. Every row takes pictures in [-1, 1] of any size
and resizes them alike, by an antialiased bicubic filter: what an unstated filter does to FID is larger than what most
models differ by. Source: Parmar et al., arXiv:2104.11222.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor, nn

from diffkit.errors import ModelError, UsageError
from diffkit.evaluation.clip import CLIP_ID, Scale, open_clip, pixel_scale, projected, read_clip
from diffkit.evaluation.pictures import RESIZE, Pictures, resized
from diffkit.pictures.tensors import in_channels
from diffkit.registry import Registry

if TYPE_CHECKING:
    from diffkit.models.repo import Repo

CHUNK = 64
_VERSION = 1  # of what is done to pictures before the network sees them
DINOV2_ID = "facebook/dinov2-large"
_DINOV2 = ("dinov2", "dinov2_with_registers")
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_PLAIN = ((0.5,), (0.5,))  # pictures stay in [-1, 1]


@dataclass(frozen=True)
class Network:
    """A loaded network.

    Attributes:
        module: Its weights, for the hash.
        call: Pictures (N, C, size, size) -> features (N, D).
        size: Height and width that it takes.
        channels: C.
        scale: Mean and deviation of pixels in [0, 1].
    """

    module: nn.Module
    call: Callable[[Tensor], Tensor]
    size: int
    channels: int = 3
    scale: Scale = _PLAIN


@dataclass(frozen=True)
class Features:
    """Base of the rows: resizing, batches and the hash.

    Attributes:
        source: What follows the colon: an id, a folder or a file.
        device: Where it computes.
    """

    name: ClassVar[str]
    source: str = ""
    device: str = "cpu"

    def check(self) -> None:
        """Do nothing if it is there, before any weights are read.

        Raises:
            UsageError: Something has to be named.
            ModelError: It is not there, or something else.
        """

    def suits(self, pictures: Pictures) -> None:
        """Do nothing if it can compare with these pictures; raises a UsageError else."""

    def fitted(self, pictures: Pictures) -> Self:
        """Return the row that suits a dataset: one that learns from it has then learned."""
        return self

    def load(self) -> Network:
        """Read the weights."""
        raise NotImplementedError

    @cached_property
    def network(self) -> Network:
        """The network, loaded on first use."""
        loaded = self.load()
        loaded.module.to(self.device).eval().requires_grad_(False)
        return loaded

    @property
    def size(self) -> int:
        """Height and width to which pictures are resized."""
        return self.network.size

    @cached_property
    def dimensions(self) -> int:
        """D."""
        return self.embed(torch.zeros(1, self.network.channels, self.size, self.size)).shape[1]

    @cached_property
    def hash(self) -> str:
        """A text that is another one where the network, its weights, or what is done before it are others."""
        net = self.network
        about = (_VERSION, type(self).name, net.size, net.channels, net.scale, RESIZE)
        digest = hashlib.sha256(repr(about).encode())
        for key, value in sorted(net.module.state_dict().items()):
            digest.update(f"{key} {tuple(value.shape)}".encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:32]

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """Pictures (N, 1 or 3, H, W) in [-1, 1] -> features (N, D), fp32 on the CPU."""
        net = self.network
        mean, std = (torch.tensor(v, device=self.device).reshape(1, -1, 1, 1) for v in net.scale)
        rows = []
        for part in images.split(CHUNK):
            pixels = resized(in_channels(part.to(self.device).float().clamp(-1, 1), net.channels), net.size)
            rows.append(net.call((pixels / 2 + 0.5 - mean) / std).float().cpu())
        return torch.cat(rows)


FEATURES: Registry[Features] = Registry("features")


def parse_features(spec: str, device: str | torch.device = "cpu") -> Features:
    """Make a row from `NAME` or `NAME:SOURCE`; no weights are read.

    Raises:
        UsageError: An unknown name, or a source that has to be named.
        ModelError: There is no such network.
    """
    name, _, source = spec.partition(":")
    row = FEATURES[name.strip()](source.strip(), str(device))
    row.check()
    return row


@FEATURES.register("clip")
@dataclass(frozen=True)
class Clip(Features):
    """CLIP's image embeddings, after its projection. Source: Radford et al., arXiv:2103.00020."""

    def check(self) -> None:
        """See `Features`."""
        _ = self._repo

    @cached_property
    def _repo(self) -> Repo:
        return open_clip(self.source or CLIP_ID, "features clip")

    def load(self) -> Network:
        """See `Features`."""
        whole = read_clip(self._repo)
        parts = nn.ModuleList([whole.vision_model, whole.visual_projection])
        whole.text_model = nn.Identity()  # what reads text is not kept
        size = int(whole.config.vision_config.image_size)
        return Network(parts, partial(projected, whole), size, scale=pixel_scale(self._repo))


@FEATURES.register("dinov2")
@dataclass(frozen=True)
class Dinov2(Features):
    """DINOv2's class token, after its last normalization. Sources: Oquab et al., arXiv:2304.07193; arXiv:2306.04675."""

    def check(self) -> None:
        """See `Features`."""
        found = (self._repo.json("config.json") or {}).get("model_type")
        if found not in _DINOV2:
            raise ModelError(
                f"features dinov2: {self._repo.id} is a {found or 'model of no named type'}, not"
                f" {' or '.join(_DINOV2)}",
                f"Give dinov2:{DINOV2_ID}, say.",
            )

    @cached_property
    def _repo(self) -> Repo:
        from diffkit.models.hub import open_repo

        return open_repo(self.source or DINOV2_ID)

    def load(self) -> Network:
        """See `Features`."""
        import transformers

        from diffkit.models.weights import load_component

        config = self._repo.json("config.json") or {}
        registers = config.get("model_type") == "dinov2_with_registers"
        kind = transformers.Dinov2WithRegistersModel if registers else transformers.Dinov2Model
        module = load_component(self._repo, kind, dtype=torch.float32)
        crop = (self._repo.json("preprocessor_config.json") or {}).get("crop_size")
        size = int(crop["height"] if isinstance(crop, dict) else min(224, module.config.image_size))
        patch = int(module.config.patch_size)
        return Network(
            module, lambda x: module(pixel_values=x).last_hidden_state[:, 0], size // patch * patch,
            scale=pixel_scale(self._repo, _IMAGENET),
        )  # fmt: skip


@FEATURES.register("inception")
@dataclass(frozen=True)
class Inception(Features):
    """The 2048 pooled features of Inception v3 that FID was defined with, from a local file."""

    def check(self) -> None:
        """See `Features`."""
        if not self.source:
            raise UsageError("features inception: no file named", "Give inception:FILE.safetensors.")
        if not Path(self.source).expanduser().is_file():
            self.load()  # raises, and says how a file is made

    def load(self) -> Network:
        """See `Features`."""
        from diffkit.evaluation.inception import SIZE, load_inception

        module = load_inception(Path(self.source).expanduser())
        return Network(module, module, SIZE)


@FEATURES.register("classifier")
@dataclass(frozen=True)
class Classifier(Features):
    """A small classifier's means over its maps: from a file, or trained on the dataset itself where none is named."""

    def check(self) -> None:
        """See `Features`."""
        if self.source:
            from diffkit.evaluation.classifier import read_names

            read_names(Path(self.source).expanduser())

    def suits(self, pictures: Pictures) -> None:
        """See `Features`."""
        if not self.source:
            _classes(pictures)

    def fitted(self, pictures: Pictures) -> Self:
        """See `Features`."""
        if self.source:
            return self
        from diffkit.evaluation.fitting import classifier_for

        _classes(pictures)
        return replace(self, source=str(classifier_for(pictures)))

    def load(self) -> Network:
        """See `Features`."""
        from diffkit.evaluation.classifier import load_classifier

        if not self.source:
            raise UsageError("features classifier: no file named", "Give classifier:FILE, or a dataset with classes.")
        module, _ = load_classifier(Path(self.source).expanduser())
        channels, size, _ = module.shape
        return Network(module, module.features, size, channels)


def _classes(pictures: Pictures) -> list[str]:
    return pictures.classes(
        "Name a classifier's file, classifier:FILE, or other features: clip:ID, dinov2:ID, inception:FILE."
    )
