"""The same laws on real images; DIFFKIT_TEST_DATA names a folder with mnist, fashion_mnist_900 and cifar10_4000."""

import os
from pathlib import Path

import numpy as np
import pytest
from data_support import loader, same, take

from diffkit.data.check import check
from diffkit.recipes.schema import DatasetSpec

ROOT = Path(os.environ.get("DIFFKIT_TEST_DATA", "/nonexistent"))
pytestmark = pytest.mark.skipif(not ROOT.is_dir(), reason="DIFFKIT_TEST_DATA is not set to a folder")


@pytest.mark.parametrize(
    ("name", "split", "length", "channels", "classes"),
    [("mnist", "test", 3000, 1, 10), ("fashion_mnist_900", "train", 900, 1, 0), ("cifar10_4000", "train", 4000, 3, 0)],
)
def test_real_sets(name, split, length, channels, classes):
    fields = {"name": str(ROOT / name), "split": split, "resolution": 28, "crop": "random", "flip": True}
    memory = loader(DatasetSpec(cache="memory", **fields), batch_size=64)
    assert (memory.length, memory.shape) == (length, (channels, 28, 28))
    assert len(memory.dataset.class_names or []) == classes
    disk = loader(DatasetSpec(cache="disk", workers=2, **fields), batch_size=64)
    same(take(memory.stream(7), 5), take(disk.stream(7), 5))


def test_real_labels_fit_their_images():
    """The mean one is thinner than the mean zero."""
    batch = next(loader(DatasetSpec(name=str(ROOT / "mnist"), split="test", resolution=28), batch_size=2000).stream())
    ink = [(batch.images[batch.labels == k] > 0).float().mean().item() for k in (0, 1)]
    assert ink[0] > 1.5 * ink[1]


def test_real_stream():
    spec = DatasetSpec(name=str(ROOT / "cifar10_4000"), streaming=True, resolution=32)
    ids = np.concatenate([batch.ids for batch in take(loader(spec, batch_size=100).stream(), 40)])
    assert np.array_equal(np.sort(ids), np.arange(4000))


def test_real_check():
    report = check(DatasetSpec(name=str(ROOT / "fashion_mnist_900"), resolution=28))
    assert (report.images, report.broken) == (900, [])
    assert report.sizes == {"28x28": 900}
