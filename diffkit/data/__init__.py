"""Datasets: opened by name, folder or Hub id, and turned into batches whose order depends on position alone.

This room holds the reading and preparing of training images; it knows nothing of noise, networks or optimizers.
"""

from diffkit.data.datasets import DATASETS, Dataset, open_dataset
from diffkit.data.glyphs.dataset import Glyphs
from diffkit.data.loader import Batch, Loader

__all__ = ["DATASETS", "Batch", "Dataset", "Loader", "open_dataset"]

DATASETS.register("glyphs")(Glyphs)  # it reads other rows, and so cannot stand among them
