"""From images to tensors and back."""

import numpy as np
import pytest
import torch
from PIL import Image

from diffkit.pictures import tensors
from diffkit.pictures.quality import psnr

RAMP = np.linspace(0, 255, 24 * 32).reshape(24, 32).astype(np.uint8)


def test_float_conversion_is_exact_symmetric_and_undone():
    pixels = torch.arange(256, dtype=torch.uint8)
    x = tensors.to_float(pixels)
    assert x.dtype == torch.float32
    assert (x[0].item(), x[255].item()) == (-1.0, 1.0)
    assert torch.equal(x, -x.flip(0))
    torch.testing.assert_close(x.double(), torch.arange(256).double() / 127.5 - 1, atol=1e-7, rtol=0)
    assert torch.equal(tensors.to_uint8(x), pixels)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_tensor_round_trip(mode):
    image = Image.fromarray(RAMP).convert(mode)
    x = tensors.to_tensor([image, image])
    assert x.shape == (2, 1 if mode == "L" else 3, 24, 32)
    back = tensors.from_tensor(x)
    assert [b.mode for b in back] == [mode, mode]
    assert back[1].tobytes() == image.tobytes()


def test_from_tensor_clips_and_refuses_other_channels():
    assert tensors.from_tensor(torch.full((1, 4, 4), 7.0))[0].getpixel((0, 0)) == 255
    with pytest.raises(ValueError, match="1 or 3 channels"):
        tensors.from_tensor(torch.zeros(1, 2, 4, 4))


def test_colours_become_grey_as_pillow_weighs_them_and_grey_is_repeated():
    colors = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    x = tensors.to_tensor(colors)
    grey = tensors.in_channels(x, 1)
    assert grey.shape == (1, 1, 16, 16)
    torch.testing.assert_close(grey, tensors.to_tensor(colors.convert("L")), rtol=0, atol=1 / 127)
    assert tensors.in_channels(x, 3) is x
    assert tensors.in_channels(grey, 1) is grey
    assert torch.equal(tensors.in_channels(grey, 3), grey.repeat(1, 3, 1, 1))


def test_psnr_is_in_decibels_of_the_whole_range():
    x = torch.zeros(1, 3, 4, 4)
    assert psnr(x, x) == float("inf")
    assert psnr(x, x + 0.2) == pytest.approx(20.0)
    assert psnr(x + 1, x + 7) == float("inf")  # both are white
