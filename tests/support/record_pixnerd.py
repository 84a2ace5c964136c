"""Recorded tests/fixtures/pixnerd.safetensors: `python tests/support/record_pixnerd.py CHECKOUT`, of MCG-NJU/PixNerd.

The checkout's own code is run, on the CPU in fp32: its networks on the weights and inputs of `tiny_pixnerd.py`, and its
samplers. The tests compare with what it gave, and need no checkout.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path[:0] = [sys.argv[1], str(HERE)]

from src.diffusion.base.guidance import simple_guidance_fn  # noqa: E402
from src.diffusion.flow_matching.adam_sampling import AdamLMSampler  # noqa: E402
from src.diffusion.flow_matching.sampling import EulerSampler  # noqa: E402
from src.diffusion.flow_matching.scheduling import LinearScheduler  # noqa: E402
from src.models.transformer import pixnerd_c2i, pixnerd_t2i_heavydecoder  # noqa: E402
from tiny_pixnerd import CLASS_SIZES, CLASSES, EVERY, SIDE, SIZES, TEXT, fill, inputs, numbers, toy  # noqa: E402


def kept(out: Tensor) -> Tensor:
    return out.flatten()[::EVERY].clone()


@torch.no_grad()
def main() -> None:
    found: dict[str, Tensor] = {}
    text, classes = pixnerd_t2i_heavydecoder.PixNerDiT(**TEXT), pixnerd_c2i.PixNerDiT(**CLASSES)
    fill(text)
    fill(classes)
    for height, width in SIZES:
        x, t, y, _ = inputs(height, width)
        text.decoder_patch_scaling_h, text.decoder_patch_scaling_w = height / SIDE, width / SIDE
        found[f"text.{height}x{width}"] = kept(text(x, t, y))
    for height, width in CLASS_SIZES:
        x, t, _, labels = inputs(height, width)
        found[f"classes.{height}x{width}"] = kept(classes(x, t, labels))
    common = {"scheduler": LinearScheduler(), "guidance_fn": simple_guidance_fn}
    # Ten Euler steps of the network, guided, from noise.
    x, _, y, _ = inputs(64, 32)
    text.decoder_patch_scaling_h, text.decoder_patch_scaling_w = 64 / SIDE, 32 / SIDE
    euler = EulerSampler(num_steps=10, guidance=3.0, **common)
    found["euler"] = kept(euler(text, x, y, numbers("empty", 2, 6, 12)))
    # The authors' sampler, on a velocity that needs no network.
    adams = AdamLMSampler(num_steps=25, guidance=4.0, timeshift=3.0, order=2, **common)
    told, empty = torch.tensor([0.7, -0.4]), torch.zeros(2)
    found["adams"] = adams(toy, numbers("toy", 2, 3, 4, 4), told, empty)
    rows = [torch.tensor([float(c) for c in row]) for row in adams.solver_coeffs]
    found["adams.weights"] = torch.stack([row if len(row) == 2 else torch.tensor([0.0, 1.0]) for row in rows])
    found["adams.times"] = adams.timesteps.clone()
    for name, value in found.items():
        print(name, tuple(value.shape), f"mean {value.mean():.4f} std {value.std():.4f}")
    save_file(found, HERE.parent / "fixtures" / "pixnerd.safetensors")


if __name__ == "__main__":
    main()
