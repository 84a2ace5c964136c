"""A run small enough to be done many times: 8-pixel digits, a few thousand parameters, a few updates."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from diffkit.training import checkpoint

TINY = [
    "dataset.resolution=8",
    "dataset.limit=60",
    "dataset.flip=true",
    "model.preset=tiny",
    "model.class_conditioning=embedding",
    "training.steps=12",
    "training.batch_size=8",
    "training.warmup_steps=2",
    "training.log_every=3",
    "training.checkpoint_every=4",
    "training.preview_every=0",
    "training.preview_images=4",
    "training.preview_steps=2",
    "training.ema_decay=0.9",
]


def final_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Everything that the newest checkpoint holds: weights, averages and optimizer state."""
    newest = checkpoint.newest(Path(folder) / "checkpoints")
    return {
        f"{part}.{name}": value.clone()  # not the mapped file, which a test may damage
        for part in ("network", "ema", "optimizer")
        if (newest.folder / f"{part}.safetensors").is_file()
        for name, value in load_file(newest.folder / f"{part}.safetensors").items()
    }


def assert_same_run(one: Path, other: Path) -> None:
    """The comparator of the resume tests: no tolerance."""
    a, b = final_tensors(one), final_tensors(other)
    assert a.keys() == b.keys()
    assert len(a) > 50
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], atol=0, rtol=0, msg=lambda m, name=name: f"{name}: {m}")
