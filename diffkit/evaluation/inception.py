"""Inception v3 as FID uses it: the network of TensorFlow's 2015-12-05 graph, up to its pooled 2048 features.

It differs from the network that image classification uses in its poolings: averages leave the border out, and the last
block takes a maximum. Names of parts are those of the usual weights, `pt_inception-2015-12-05`, so that they load
without a table of names. Holds no weights. Sources: Szegedy et al., arXiv:1512.00567; Heusel et al., arXiv:1706.08500.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffkit.errors import ModelError
from diffkit.models.pickles import read_pickle

SIZE, DIMENSIONS = 299, 2048
_FORMAT = "diffkit-inception"
_USUAL = "pt_inception-2015-12-05"


class _Unit(nn.Module):
    """A convolution without bias, normalized, rectified; oblong kernels are padded along their long side."""

    def __init__(self, before: int, after: int, kernel: int | tuple[int, int], stride: int = 1, pad: int = 0) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if isinstance(kernel, tuple) else (pad, pad)
        self.conv = nn.Conv2d(before, after, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(after, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = F.relu(self.bn(self.conv(x)), inplace=True)
        return out


def _averaged(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class _A(nn.Module):
    def __init__(self, before: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = _Unit(before, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = _Unit(before, 48, 1), _Unit(48, 64, 5, pad=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = _Unit(before, 64, 1), _Unit(64, 96, 3, pad=1)
        self.branch3x3dbl_3 = _Unit(96, 96, 3, pad=1)
        self.branch_pool = _Unit(before, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        parts = [self.branch1x1(x), self.branch5x5_2(self.branch5x5_1(x)), double, self.branch_pool(_averaged(x))]
        return torch.cat(parts, 1)


class _B(nn.Module):
    def __init__(self, before: int) -> None:
        super().__init__()
        self.branch3x3 = _Unit(before, 384, 3, 2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = _Unit(before, 64, 1), _Unit(64, 96, 3, pad=1)
        self.branch3x3dbl_3 = _Unit(96, 96, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, 2)], 1)


class _C(nn.Module):
    def __init__(self, inner: int) -> None:
        super().__init__()
        self.branch1x1 = _Unit(768, 192, 1)
        self.branch7x7_1, self.branch7x7_2 = _Unit(768, inner, 1), _Unit(inner, inner, (1, 7))
        self.branch7x7_3 = _Unit(inner, 192, (7, 1))
        self.branch7x7dbl_1, self.branch7x7dbl_2 = _Unit(768, inner, 1), _Unit(inner, inner, (7, 1))
        self.branch7x7dbl_3, self.branch7x7dbl_4 = _Unit(inner, inner, (1, 7)), _Unit(inner, inner, (7, 1))
        self.branch7x7dbl_5 = _Unit(inner, 192, (1, 7))
        self.branch_pool = _Unit(768, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(_averaged(x))], 1)


class _D(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = _Unit(768, 192, 1), _Unit(192, 320, 3, 2)
        self.branch7x7x3_1, self.branch7x7x3_2 = _Unit(768, 192, 1), _Unit(192, 192, (1, 7))
        self.branch7x7x3_3, self.branch7x7x3_4 = _Unit(192, 192, (7, 1)), _Unit(192, 192, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        long = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), long, F.max_pool2d(x, 3, 2)], 1)


class _E(nn.Module):
    def __init__(self, before: int, *, largest: bool) -> None:
        super().__init__()
        self.largest = largest
        self.branch1x1 = _Unit(before, 320, 1)
        self.branch3x3_1 = _Unit(before, 384, 1)
        self.branch3x3_2a, self.branch3x3_2b = _Unit(384, 384, (1, 3)), _Unit(384, 384, (3, 1))
        self.branch3x3dbl_1, self.branch3x3dbl_2 = _Unit(before, 448, 1), _Unit(448, 384, 3, pad=1)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = _Unit(384, 384, (1, 3)), _Unit(384, 384, (3, 1))
        self.branch_pool = _Unit(before, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single, double = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.largest else _averaged(x)
        parts = [
            self.branch1x1(x), self.branch3x3_2a(single), self.branch3x3_2b(single),
            self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), self.branch_pool(pooled),
        ]  # fmt: skip
        return torch.cat(parts, 1)


class FIDInception(nn.Module):
    """(N, 3, 299, 299) in [-1, 1] -> (N, 2048), the averages over the last maps."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3, self.Conv2d_2a_3x3 = _Unit(3, 32, 3, 2), _Unit(32, 32, 3)
        self.Conv2d_2b_3x3 = _Unit(32, 64, 3, pad=1)
        self.Conv2d_3b_1x1, self.Conv2d_4a_3x3 = _Unit(64, 80, 1), _Unit(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _A(192, 32), _A(256, 64), _A(288, 64)
        self.Mixed_6a = _B(288)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = _C(128), _C(160), _C(160), _C(192)
        self.Mixed_7a, self.Mixed_7b, self.Mixed_7c = _D(), _E(1280, largest=False), _E(2048, largest=True)

    def forward(self, images: Tensor) -> Tensor:
        """Return features."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(images)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = F.max_pool2d(x, 3, 2)
        for block in (self.Mixed_5b, self.Mixed_5c, self.Mixed_5d, self.Mixed_6a, self.Mixed_6b, self.Mixed_6c,
                      self.Mixed_6d, self.Mixed_6e, self.Mixed_7a, self.Mixed_7b, self.Mixed_7c):  # fmt: skip
            x = block(x)
        out: Tensor = x.mean((2, 3))
        return out


def load_inception(path: Path) -> FIDInception:
    """Return the network with the weights of a file, in evaluation mode on the CPU.

    Args:
        path: A safetensors file with the names of the usual weights; what classifies (`fc`) may be in it.

    Raises:
        ModelError: There is no such file, or it holds other tensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    hint = f"Convert the weights {_USUAL}: python benchmarks/convert_inception.py WEIGHTS.pth OUT.safetensors."
    if not path.is_file():
        raise ModelError(f"inception {path}: no such file", hint)
    try:
        weights = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"inception {path}: no safetensors file: {str(error).splitlines()[0]}", hint) from None
    return _with(weights, f"inception {path}", hint)


def _with(weights: Mapping[str, Tensor], what: str, hint: str = "") -> FIDInception:
    network = FIDInception()
    own = network.state_dict()
    wanted = {name for name in own if not name.endswith("num_batches_tracked")}
    problems = [f"{name} is missing" for name in sorted(wanted - set(weights))]
    problems += [
        f"{name} has shape {tuple(weights[name].shape)}, not {tuple(own[name].shape)}"
        for name in sorted(wanted & set(weights)) if weights[name].shape != own[name].shape
    ]  # fmt: skip
    if problems:
        raise ModelError(f"{what}: {problems[0]} ({len(problems)} of {len(wanted)} tensors)", hint)
    network.load_state_dict({name: weights[name].float() for name in wanted}, strict=False)
    return network.eval().requires_grad_(False)


def convert(source: Path, target: Path) -> Path:
    """Write the usual weights as the file that `load_inception` reads.

    Args:
        source: A file of torch (`.pth`), read by torch's restricted unpickler.
        target: The safetensors file.

    Raises:
        ModelError: It cannot be read, or holds other tensors.
    """
    from safetensors.torch import save_file

    hint = f"Give the weights {_USUAL}."
    if not source.is_file():
        raise ModelError(f"{source}: no such file", hint)
    weights = read_pickle(source, str(source), hint)
    state = _with(weights, str(source), hint).state_dict()
    kept = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    save_file(kept, target, metadata={"format": _FORMAT, "source": source.name})
    return target
