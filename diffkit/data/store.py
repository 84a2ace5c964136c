"""A dataset decoded once into one uint8 buffer, on the device where it fits, and the choice between this and the disk.

Images that keep a longer side for random cropping lie one after another in a flat buffer, and a batch is one gather.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffkit.data.decode import Decoder, Pixels, chunks, crop_offset, read_ahead, to_device
from diffkit.data.order import Floats, Ints
from diffkit.data.sources import broken
from diffkit.errors import DataError
from diffkit.recipes.schema import DatasetSpec

LARGEST = 4 * 2**30  # bytes; beyond, decoding before the first step would take too long to be worth it
SERIAL = 2048  # images that one process decodes sooner than workers have started


def fits(count: int, channels: int, spec: DatasetSpec, device: torch.device) -> tuple[bool, str]:
    """Decide whether a set is held in memory, and say why in half a sentence."""
    need = count * channels * spec.resolution**2 * (1.5 if spec.crop == "random" else 1.0)
    room = min(LARGEST, _free_memory() / 4) / int(os.environ.get("LOCAL_WORLD_SIZE", "1") or 1)
    disk = f"read from disk by {spec.workers} workers"
    if spec.cache != "auto":
        return spec.cache == "memory", f"{'held in memory' if spec.cache == 'memory' else disk} (dataset.cache)"
    if need <= room:
        return True, f"held in memory ({_size(need)} as uint8)"
    return False, f"{disk} ({_size(need)} as uint8 is more than the {_size(room)} that may be used)"


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _free_memory() -> float:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) / 2
    except (AttributeError, OSError, ValueError):  # not a POSIX system
        return 4.0 * LARGEST


class MemoryStore:
    """All readable images of a set, prepared, in one buffer.

    Args:
        decoder: Reads and prepares them.
        ids: Ascending positions in the source.
        spec: The recipe's dataset section; its `on_error` decides about unreadable images.
        device: Where the batches are wanted; the buffer lies there if it takes at most a quarter of the free memory.

    Attributes:
        ids: The positions that could be read, ascending.

    Raises:
        DataError: An image cannot be read under `on_error: error`.
    """

    def __init__(self, decoder: Decoder, ids: Ints, spec: DatasetSpec, device: torch.device) -> None:
        self._size, self._device = spec.resolution, device
        good: list[int] = []
        pixels: list[Pixels] = []
        workers = spec.workers if len(ids) > SERIAL else 0
        items = (item for part in read_ahead(decoder, chunks(ids), workers) for item in part)
        for index, item in zip(ids.tolist(), items, strict=True):
            if isinstance(item, DataError):
                if spec.on_error == "error":
                    raise broken(item, decoder.name)
                continue
            good.append(index)
            pixels.append(item)
        self.ids: Ints = np.asarray(good, dtype=np.int64)
        self._square = all(p.shape[1] == p.shape[2] for p in pixels)
        self._channels = pixels[0].shape[0] if pixels else 1
        self._heights = np.asarray([p.shape[1] for p in pixels], dtype=np.int64)
        self._widths = np.asarray([p.shape[2] for p in pixels], dtype=np.int64)
        lengths = self._channels * self._heights * self._widths
        self._starts = np.cumsum(lengths) - lengths
        if not pixels:
            buffer = torch.zeros(0, dtype=torch.uint8)
        elif self._square:
            buffer = torch.from_numpy(np.stack(pixels))
        else:
            buffer = torch.from_numpy(np.concatenate([p.reshape(-1) for p in pixels]))
        self._buffer = buffer.to(device) if _has_room(buffer, device) else buffer

    def gather(self, ids: Ints, crops: Floats) -> Tensor:
        """Images `ids` (B,), cropped at the places (B,) in [0, 1) -> uint8 (B, C, R, R) on the device."""
        slots = np.searchsorted(self.ids, ids)
        if self._square:
            index = to_device(torch.from_numpy(slots), self._buffer.device)
            return to_device(self._buffer.index_select(0, index), self._device)
        heights, widths = self._heights[slots], self._widths[slots]
        tops = crop_offset(heights, self._size, crops)
        lefts = crop_offset(widths, self._size, crops)
        table = np.stack([self._starts[slots] + tops * widths + lefts, heights * widths, widths])
        first, plane, row = to_device(torch.from_numpy(table), self._buffer.device)[:, :, None, None, None]
        where = self._buffer.device
        channel = torch.arange(self._channels, device=where)[:, None, None]
        y = torch.arange(self._size, device=where)[:, None]
        x = torch.arange(self._size, device=where)
        return to_device(self._buffer[first + channel * plane + y * row + x], self._device)


def _has_room(buffer: Tensor, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    return buffer.nbytes <= torch.cuda.mem_get_info(device)[0] // 4
