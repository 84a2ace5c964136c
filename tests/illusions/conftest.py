"""Every registered view, by name with arguments, one of them from a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from diffkit.illusions.views import VIEWS, Look, parse_view

# Every row as it is, and some with other arguments.
SPECS = [name for name in VIEWS if name != "permutation"] + [
    "skew:-2.3", "inner_circle:0.3", "patch_permute:4", "patch_permute:2,5", "pixel_permute:4,2", "jigsaw:2,3",
    "permutation:FILE",
]  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("views") / "with, comma.npy"
    np.save(path, np.random.default_rng(0).permutation(16).reshape(4, 4))
    return path


@pytest.fixture(params=SPECS)
def view(request: pytest.FixtureRequest, file: Path) -> Look:
    return parse_view(request.param.replace("FILE", str(file)))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def larger(x: Tensor, factor: int) -> Tensor:
    return x.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
