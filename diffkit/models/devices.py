"""Names of devices and number types, as options give them, turned into torch's; and the CPU's memory allocator."""

from __future__ import annotations

import ctypes
import os
import platform

import torch

from diffkit.errors import UsageError

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # glibc's names
_LONG = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "half": "fp16"}


def several_cpu_processes() -> bool:
    """Whether a launcher started several processes on a machine without an accelerator.

    Accelerate then has to be told that it is to compute on the CPU; by itself it would let each process run alone.
    """
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available()


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """Return the device called `name`; auto: CUDA, else Apple's MPS, else the CPU.

    Raises:
        UsageError: Not a device, or not one that this machine has.
    """
    if isinstance(name, torch.device):
        return name
    if name == "auto":
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"`device` {name!r} is not one of auto, cpu, cuda, cuda:N, mps") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"`device` {name}: this machine has {torch.cuda.device_count()} CUDA devices", "Use auto.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("`device` mps: this machine has none", "Use auto.")
    return device


def pick_dtype(name: str | torch.dtype = "auto") -> torch.dtype:
    """Return the number type of the weights; auto: fp32, for a pixel model is small and its pictures should not change.

    Raises:
        UsageError: Unknown name.
    """
    if isinstance(name, torch.dtype):
        return name
    name = _LONG.get(name, name)
    if name != "auto" and name not in _DTYPES:
        raise UsageError(f"`dtype` {name!r} is not one of auto, {', '.join(_DTYPES)}")
    return _DTYPES["fp32" if name == "auto" else name]


def keep_memory() -> bool:
    """Tell glibc to keep freed memory; returns whether it did. Silent where there is no glibc, and when told off.

    Activations that are returned to the system after each layer cost page faults: kept, those of a training step fell
    from 40,000 to 2,500, which gave 15 % on two cores, and a batch of 32 through a text UNet took 25 in place of 36 ms
    a picture.

    `DIFFKIT_MALLOC=system` leaves the allocator as it is.
    """
    if platform.system() != "Linux" or os.environ.get("DIFFKIT_MALLOC") == "system":
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    wanted = {_M_MMAP_THRESHOLD: 1 << 30, _M_TRIM_THRESHOLD: (1 << 31) - 1, _M_TOP_PAD: 256 << 20}
    return all(mallopt(option, value) == 1 for option, value in wanted.items())
