"""Two processes of a launcher write what one writes, byte for byte."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from golden import FIXTURES

ROOT = FIXTURES.parent.parent
COMMANDS = {
    "classes": ("sample", "models/digits", "--class", "all", "-n", "7", "--batch-size", "2", "--steps", "3"),
    "prompts": ("sample", "models/if", "-p", "a cat", "-p", "a dog", "-n", "5", "--batch-size", "2", "--steps", "2"),
}


@pytest.mark.slow  # four processes that import everything: about a minute on two cores
@pytest.mark.parametrize("name", COMMANDS)
def test_two_processes_equal_one(tmp_path: Path, name: str) -> None:
    told = {}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    # Without a configuration `--num_processes 2` starts a single process where there is no GPU.
    cpu = str(ROOT / "recipes" / "accelerate" / "cpu.yaml")
    launch = ("accelerate.commands.launch", "--config_file", cpu, "--main_process_port", port, "-m")
    for world, launcher in ((1, ()), (2, launch)):
        out = tmp_path / str(world)
        done = subprocess.run(
            [sys.executable, "-m", *launcher, "diffkit", *COMMANDS[name], "--out", str(out), "--json"],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            cwd=FIXTURES, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        told[world] = json.loads(done.stdout)  # the first process alone speaks
    one, two = tmp_path / "1", tmp_path / "2"
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in two.iterdir())
    assert "sample-grid.png" in names
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)
    for key in ("seeds", "steps", "timesteps", "unet_calls"):
        assert told[1][key] == told[2][key]
