"""`diffkit env`: versions, devices and caches."""

from __future__ import annotations

import typer

from diffkit.cli.runner import Output, command


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    command(app, "env")(env)


def env() -> Output:
    """Show versions, devices and caches."""
    import os
    import platform
    from importlib.metadata import PackageNotFoundError, version

    names = (
        "diffkit",
        "torch",
        "diffusers",
        "transformers",
        "accelerate",
        "datasets",
        "huggingface-hub",
        "typer",
        "pillow",
    )
    versions = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    import torch
    from huggingface_hub import constants

    devices = ["cpu"] + [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    info = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "versions": versions,
        "devices": devices,
        "hub_cache": constants.HF_HUB_CACHE,
        "offline": bool(constants.HF_HUB_OFFLINE),
    }
    lines = [f"{key:<16} {value}" for key, value in info.items() if key != "versions"]
    return Output(info, lines + [f"{name:<16} {number}" for name, number in versions.items()])
