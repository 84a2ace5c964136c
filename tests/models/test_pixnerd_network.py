"""PixNerd's networks against what their authors' code gave on the same weights, recorded by `record_pixnerd.py`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_pixnerd import CLASS_SIZES, CLASSES, EVERY, SIDE, SIZES, TEXT, fill, inputs, numbers
from torch import Tensor

from diffkit.models.pixnerd_network import PixNerdClassTransformer2DModel, PixNerdTransformer2DModel

RECORDED = load_file(Path(__file__).parents[1] / "fixtures" / "pixnerd.safetensors")


@pytest.fixture(scope="module")
def text() -> PixNerdTransformer2DModel:
    network = PixNerdTransformer2DModel(**TEXT, sample_size=SIDE).eval().requires_grad_(False)
    fill(network)
    return network


@pytest.fixture(scope="module")
def classes() -> PixNerdClassTransformer2DModel:
    network = PixNerdClassTransformer2DModel(**CLASSES, sample_size=SIDE).eval().requires_grad_(False)
    fill(network)
    return network


def same_as_recorded(out: Tensor, name: str, tolerance: float = 2e-6) -> None:
    """The largest difference within a part of the largest number."""
    theirs = RECORDED[name]
    difference = float((out.flatten()[::EVERY] - theirs).abs().max() / theirs.abs().max())
    print(f"{name}: largest difference {difference:.1e} of the largest number")
    assert difference < tolerance


@pytest.mark.parametrize("size", SIZES)
def test_velocity_by_text(text, size):
    x, t, y, _ = inputs(*size)
    same_as_recorded(text(x, t, y), f"text.{size[0]}x{size[1]}")


@pytest.mark.parametrize("size", CLASS_SIZES)
def test_velocity_by_class(classes, size):
    x, t, _, labels = inputs(*size)
    same_as_recorded(classes(x, t, labels), f"classes.{size[0]}x{size[1]}")


def test_ten_guided_steps(text):
    """Euler's, scale 3, from noise, with no guidance at time 0, as the recorded sampler takes them."""
    x, _, y, _ = inputs(64, 32)
    empty = numbers("empty", 2, 6, 12)
    for k in range(10):
        told, plain = text(x.repeat(2, 1, 1, 1), torch.tensor(k / 10), torch.cat([y, empty])).chunk(2)
        x = x + 0.1 * (plain + (3.0 if k else 1.0) * (told - plain))
    same_as_recorded(x, "euler", 1e-5)


@pytest.mark.parametrize("kind", ["text", "classes"])
def test_rows_and_times_stand_for_themselves(text, classes, kind):
    x, t, y, labels = inputs(32, 32)
    network, told = (text, y) if kind == "text" else (classes, labels)
    both = network(x, t, told)
    for row in range(2):
        alone = network(x[row : row + 1], t[row], told[row : row + 1])
        torch.testing.assert_close(alone, both[row : row + 1], rtol=0, atol=1e-5)
    assert (network(x, t, told.flip(0)) - both).abs().max() > 0.01


def test_every_pixel_is_told_where_it_is(text):
    """Each output depends on its own pixel, and pixels of a patch that look alike differ by their places."""
    flat = text(torch.zeros(1, 3, 64, 64), torch.tensor(0.5), numbers("y", 1, 6, 12))
    patch = flat[0, 0, :8, :8]
    assert len(patch.flatten().unique()) == 64


def test_half_precision_and_a_way_to_disk_and_back(text, tmp_path):
    x, t, y, _ = inputs(32, 32)
    text.save_pretrained(tmp_path)
    again = PixNerdTransformer2DModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16).requires_grad_(False)
    assert again.config.sample_size == SIDE
    out, exact = again(x.bfloat16(), t, y.bfloat16()), text(x, t, y)
    assert out.dtype == torch.bfloat16
    assert (out.float() - exact).std() < 0.03 * exact.std()


def test_no_size_is_cut_to_fit(text, classes):
    _, t, y, labels = inputs(32, 32)
    with pytest.raises(ValueError, match="multiples of 8"):
        text(torch.zeros(2, 3, 36, 32), t, y)
    with pytest.raises(ValueError, match="multiples of 4"):
        classes(torch.zeros(2, 3, 34, 32), t, labels)
    with pytest.raises(ValueError, match="num_groups"):
        PixNerdTransformer2DModel(**TEXT | {"num_groups": 8})
    with pytest.raises(ValueError, match="sample_size"):
        PixNerdTransformer2DModel(**TEXT, sample_size=30)


def test_the_published_networks_have_the_size_they_are_said_to_have():
    """1.2 billion and 0.7 billion parameters (arXiv:2507.23268)."""
    with torch.device("meta"):
        text, classes = PixNerdTransformer2DModel(), PixNerdClassTransformer2DModel()
    counts = [sum(p.numel() for p in network.parameters()) for network in (text, classes)]
    print("parameters", counts)
    assert 1.15e9 < counts[0] < 1.25e9
    assert 0.65e9 < counts[1] < 0.75e9
