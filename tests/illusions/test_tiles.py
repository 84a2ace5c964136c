"""Windows: they cover everything, blend to the whole, and cut a network's picture as they cut its sample."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diffkit.errors import UsageError
from diffkit.illusions.tiles import Windowed, by_tiles, starts, tiled
from diffkit.types import Cond, Prediction
from tests.illusions.conftest import noise
from tests.support.illusions import Gaussian


def double(images: Tensor) -> Tensor:
    return F.interpolate(images, scale_factor=2, mode="nearest")


@pytest.mark.parametrize(("length", "tile"), [(16, 16), (24, 16), (40, 16), (100, 24), (1024, 256)])
def test_windows_cover_everything_and_overlap(length, tile):
    begin = starts(length, tile)
    assert begin[0] == 0
    assert begin[-1] + tile == length
    assert all(0 < b - a <= tile - tile // 4 for a, b in pairwise(begin))


def test_windows_blend_to_what_the_whole_gives():
    x = noise(2, 3, 40, 56)
    torch.testing.assert_close(by_tiles(lambda part: 2 * part, x, 16), 2 * x, rtol=0, atol=1e-5)
    torch.testing.assert_close(by_tiles(double, x, 16, made=2), double(x), rtol=0, atol=1e-5)
    halved = by_tiles(lambda part: F.avg_pool2d(part, 2), x, 8, cell=2)
    torch.testing.assert_close(halved, F.avg_pool2d(x, 2), rtol=0, atol=1e-5)
    slope = torch.arange(24.0).expand(1, 1, 8, 24)
    ramp = by_tiles(lambda part: torch.full_like(part, float(part[0, 0, 0, 0])), slope, 8)
    assert float(ramp[0, 0, 0].diff().abs().max()) < 6.0  # a seam without blending would be a jump of 5 or more
    assert bool((ramp[0, 0, 0].diff() >= 0).all())


def test_a_network_in_windows_gets_its_picture_in_the_same_windows():
    def net(x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        assert x.shape[-2:] == cond.tensors["channels"].shape[-2:]
        return Prediction(x + cond.tensors["channels"] * cond.tensors["class_labels"].reshape(-1, 1, 1, 1), -x)

    x, cond = noise(2, 3, 24, 40), Cond({"channels": noise(2, 3, 24, 40), "class_labels": torch.tensor([1, 2])})
    whole, parts = net(x, torch.tensor(5), cond), tiled(net, 16)(x, torch.tensor(5), cond)
    torch.testing.assert_close(parts.out, whole.out, rtol=0, atol=1e-5)
    torch.testing.assert_close(parts.var, whole.var, rtol=0, atol=1e-5)
    with pytest.raises(UsageError, match="multiple of 8"):
        Windowed(Gaussian({"a": torch.zeros(3, 8, 8)}), 20)
