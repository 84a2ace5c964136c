"""One contestant of throughput.py in a process of its own; not for direct use.

All are timed in the same way: torch's global post-hook of `Optimizer.step`. After `warmup` updates the clock starts,
after `steps` more it stops (on CUDA the device is waited for at both), the numbers are written and the process ends on
the spot, so that nothing that a program writes at its end is counted.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import runpy
import sys
import time
from pathlib import Path
from typing import Any, NoReturn


class Stopwatch:
    """Times updates warmup..warmup + steps, then ends the process."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job, self.count = job, 0
        self.cuda = job["device"] == "cuda"
        self.start, self.faults = 0.0, 0

    def __call__(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """Take the time after an update."""
        self.count += 1
        if self.count == self.job["warmup"]:
            self.start, self.faults = self._now(), _page_faults()
            if self.cuda:
                _torch().cuda.reset_peak_memory_stats()
        elif self.count == self.job["warmup"] + self.job["steps"]:
            self._report(self._now() - self.start, _page_faults() - self.faults, optimizer)

    def _now(self) -> float:
        if self.cuda:
            _torch().cuda.synchronize()
        return time.perf_counter()

    def _report(self, seconds: float, faults: int, optimizer: Any) -> NoReturn:
        params = [p for group in optimizer.param_groups for p in group["params"]]
        result = {
            "images_per_second": self.job["steps"] * self.job["batch_size"] / seconds,
            "seconds_per_step": seconds / self.job["steps"],
            "page_faults_per_step": faults / self.job["steps"],
            "parameters": sum(p.numel() for p in params),
            "dtypes": sorted({str(p.dtype) for p in params}),
            "threads": _torch().get_num_threads(),
            "peak_mb": _torch().cuda.max_memory_allocated() / 2**20 if self.cuda else _peak_mb(),
        }
        Path(self.job["result"]).write_text(json.dumps(result), encoding="utf-8")
        sys.stdout.flush()
        os._exit(0)


def _torch() -> Any:
    return importlib.import_module("torch")


def _page_faults() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _peak_mb() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def bare(job: dict[str, Any]) -> None:
    """The shortest loop: images ready in memory, noise, forward, backward, AdamW; no average, no clipping, no log."""
    import torch
    import torch.nn.functional as F
    from diffusers import DDPMScheduler, UNet2DModel

    if job["tuned"]:  # diffkit's allocator and attention, to see what its loop itself costs
        from diffkit.models.devices import keep_memory

        keep_memory()
    torch.manual_seed(0)
    device = torch.device(job["device"])
    unet = UNet2DModel.from_config(UNet2DModel.load_config(job["model"])).to(device).train()
    if job["tuned"]:
        from diffkit.models.attention import set_attention

        set_attention(unet, "auto", device)
    scheduler = DDPMScheduler()
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(device)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6)
    size, batch = job["resolution"], job["batch_size"]
    images = torch.randint(0, 256, (16 * batch, 3, size, size), dtype=torch.uint8, device=device)
    kind = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[job["precision"]]
    scaler = torch.amp.GradScaler(device.type, enabled=job["precision"] == "fp16" and device.type == "cuda")
    while True:
        rows = torch.randint(0, len(images), (batch,), device=device)
        clean = images[rows].float() / 127.5 - 1
        noise = torch.randn_like(clean)
        t = torch.randint(0, 1000, (batch,), device=device)
        with torch.autocast(device.type, kind or torch.bfloat16, enabled=kind is not None):
            loss = F.mse_loss(unet(scheduler.add_noise(clean, noise, t), t, return_dict=False)[0].float(), noise)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()


def diffkit(job: dict[str, Any]) -> None:
    """`diffkit train RECIPE`, by the command line's own entry point."""
    from diffkit.cli import main

    main(["train", *job["argv"]])


def script(job: dict[str, Any]) -> None:
    """The script train_unconditional.py as it is, with only its imports made possible."""
    _import_torchvision(job["torchvision"])
    import diffusers.utils

    diffusers.utils.check_min_version = lambda version: None
    sys.argv = [job["script"], *job["argv"]]
    runpy.run_path(job["script"], run_name="__main__")


def _import_torchvision(folder: str | None) -> None:
    """Import torchvision; beside a torch that it was not built for, declare the operators that it lacks, one by one.

    The script uses its transforms of PIL images, which need no operator.
    """
    if folder:
        sys.path.append(folder)
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for _ in range(32):
        try:
            importlib.import_module("torchvision.transforms")
            return
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None:
                raise
            library.define(f"{missing[1]}(Tensor x) -> Tensor")
            for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
                del sys.modules[name]


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    from torch.optim.optimizer import register_optimizer_step_post_hook

    register_optimizer_step_post_hook(Stopwatch(job))
    {"bare": bare, "diffkit": diffkit, "script": script}[job["kind"]](job)
    raise SystemExit("the contestant ended before the timed updates were done")


if __name__ == "__main__":
    main()
