"""The ready Accelerate configurations: known to this version of Accelerate, and taken by its launcher as meant.

That `cpu.yaml` really runs two processes is shown in tests/training/test_distributed.py.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import yaml

from diffkit.recipes.reading import recipe_folder

FOLDER = recipe_folder() / "accelerate"
WANTED = {"multi-gpu": 8, "two-nodes": 16, "fsdp2": 8, "cpu": 2}


def launcher_args(name: str, *more: str) -> Any:
    from accelerate.commands.launch import launch_command_parser

    command = ["--config_file", str(FOLDER / f"{name}.yaml"), *more, "-m", "diffkit", "train"]
    return launch_command_parser().parse_args(command)


def test_all_are_there() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(WANTED)


@pytest.mark.parametrize("name", sorted(WANTED))
def test_every_key_is_known_to_accelerate(name: str) -> None:
    from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert isinstance(config, ClusterConfig)
    assert config.num_processes == WANTED[name]
    known = {action.dest for action in launch_command_parser()._actions}
    data = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    assert set(data.get("fsdp_config", {})) <= known
    header = (FOLDER / f"{name}.yaml").read_text()
    assert f"--config_file recipes/accelerate/{name}.yaml" in header


@pytest.mark.parametrize("name", sorted(WANTED))
def test_the_launcher_takes_them_as_meant(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.commands.launch import _validate_launch_command

    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    args, _, _ = _validate_launch_command(launcher_args(name))
    assert args.num_processes == WANTED[name]
    assert args.use_fsdp == (name == "fsdp2")
    assert args.multi_gpu == (name != "fsdp2")
    assert args.mixed_precision == ("no" if name == "cpu" else "bf16")
    assert args.num_machines == (2 if name == "two-nodes" else 1)


def test_fsdp_is_version_2_and_its_plugin_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.commands.launch import _validate_launch_command
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.launch import prepare_multi_gpu_env

    for name in [name for name in os.environ if name.startswith(("FSDP_", "ACCELERATE_"))]:
        monkeypatch.delenv(name)
    args, _, _ = _validate_launch_command(launcher_args("fsdp2", "--main_process_port", "0"))
    for name, value in prepare_multi_gpu_env(args).items():
        if name.startswith("FSDP_"):
            monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.min_num_params == 1_000_000
    assert plugin.reshard_after_forward is True
    assert "FULL_STATE_DICT" in str(plugin.state_dict_type)
