"""What --memory comes to on machines of every kind."""

from __future__ import annotations

import pytest
import torch

from diffkit.errors import UsageError
from diffkit.models import memory
from diffkit.models.memory import MemoryPlan, count_parameters, default_dtype, make_plan, place
from diffkit.types import Network
from tests.models.conftest import text_unet

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
GIB = 2**30


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU with 8 GiB free and bitsandbytes beside it."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (8 * GIB, 12 * GIB))
    monkeypatch.setattr(memory, "find_spec", lambda name: object())


@pytest.mark.parametrize(
    ("weights", "level"),
    [(1 * GIB, "none"), (4 * GIB, "none"), (6 * GIB, "low"), (7 * GIB, "low"), (9 * GIB, "lowest")],
)
def test_auto_goes_by_what_is_free(card: None, weights: int, level: str) -> None:
    assert make_plan("auto", CUDA, weights).level == level


def test_levels_on_a_card(card: None) -> None:
    assert make_plan("low", CUDA) == MemoryPlan("low", "model", True, True, True)
    assert make_plan("lowest", CUDA) == MemoryPlan("lowest", "sequential", True, True, True, 1)


def test_offloading_is_gated_without_an_accelerator() -> None:
    assert make_plan("auto", CPU, 2**60) == MemoryPlan()
    for level in ("low", "lowest"):
        plan = make_plan(level, CPU)
        assert (plan.offload, plan.text_8bit, plan.vae_tiling) == ("none", False, True)
    unet = text_unet()
    assert place(unet, CPU, MemoryPlan("lowest", "sequential")) is unet


def test_said_in_one_line(card: None) -> None:
    said = make_plan("lowest", CUDA).describe()
    assert said.startswith("memory lowest: layers wait on the CPU, ")
    assert "8 bits" in said
    assert "\n" not in said


def test_unknown_level() -> None:
    with pytest.raises(UsageError, match="'tiny'"):
        make_plan("tiny", CPU)


def test_parameters_are_counted_without_making_them() -> None:
    unet = text_unet()
    network = Network("unet", "UNet2DConditionModel", unet.config)
    assert count_parameters(network) == sum(p.numel() for p in unet.parameters())


def test_default_types() -> None:
    assert default_dtype(CUDA) == torch.float16
    assert default_dtype(CPU) == torch.float32
