"""The range in which a network sees pixels, as the recipe's `dataset.normalize` asks; the codec shifts and scales."""

from __future__ import annotations

import torch

from diffkit.data import Loader

MEASURED = 4096  # images at most whose mean and variance stand for the whole set


def pixel_range(kind: str, loader: Loader) -> tuple[list[float], list[float]]:
    """Return what is subtracted from the channels of pixels in [-1, 1], and what they are then divided by.

    Args:
        kind: symmetric, unit or standard.
        loader: Of the training images; "standard" measures the first of them.

    Returns:
        Mean and standard deviation by channel; both empty where pixels stay as they are.
    """
    channels = loader.shape[0]
    if kind == "symmetric":
        return [], []
    if kind == "unit":
        return [-1.0] * channels, [2.0] * channels
    total, squares, count = torch.zeros(channels).double(), torch.zeros(channels).double(), 0
    for batch in loader.first(MEASURED):
        values = batch.images.detach().cpu().double().transpose(0, 1).flatten(1)
        total, squares, count = total + values.sum(1), squares + values.square().sum(1), count + values.shape[1]
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(1e-8).sqrt()
    return [round(float(v), 6) for v in mean], [max(round(float(v), 6), 1e-4) for v in std]
