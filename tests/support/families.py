"""One tiny model of every family, made on the spot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffkit.engine.schedules import make_noise_scheduler
from diffkit.models import load
from diffkit.models.base import WrappedModel
from diffkit.models.meta import RunMeta
from diffkit.models.network import build_network, save_network, save_pipeline
from diffkit.recipes.schema import ModelSpec, NoiseSpec
from diffkit.types import Cond, Model, Prediction
from tests.models.conftest import make_if, make_sd

FAMILIES = ("plain", "classes", "flow", "sd", "sd9", "if")


def make_run(
    folder: Path, prediction: str = "epsilon", kind: str = "embedding", size: int = 9, null: bool = True
) -> Path:
    """Write a run of diffkit: grey pictures, three classes unless `kind` is none, other raw weights than averaged."""
    torch.manual_seed(0)
    names = ["zero", "one", "two, three"] if kind != "none" else []
    spec = ModelSpec(preset="tiny", class_conditioning=kind)
    network = build_network(spec, shape=(1, size, size), num_classes=3 if null else 2)
    noise = NoiseSpec(prediction=prediction, timesteps=20)
    meta = RunMeta(
        prediction=prediction, conditioning=kind, class_names=names, resolution=size, channels=1, null_class=null
    )
    save_pipeline(folder, network, make_noise_scheduler(noise), meta)
    with torch.no_grad():
        network.unet.conv_out.bias.add_(0.5)
    save_network(folder / "unet_raw", network)
    return folder


def make(folder: Path, family: str) -> Path:
    """Write the tiny model of a family."""
    if family == "plain":
        return make_run(folder, kind="none")
    if family in ("classes", "flow"):
        return make_run(folder, "flow" if family == "flow" else "epsilon")
    if family == "if":
        make_if(folder)
    else:
        make_sd(folder, **({"in_channels": 9} if family == "sd9" else {}))
    return folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: make(tmp_path_factory.mktemp(family) / "m", family) for family in FAMILIES}


@pytest.fixture
def models(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Model]:
    monkeypatch.setenv("DIFFKIT_CACHE", str(tmp_path / "kit"))
    return lambda family: load(str(folders[family]), device="cpu")


def label_of(family: str) -> str | None:
    return {"plain": None, "classes": "one", "flow": "one"}.get(family, "a cat")


class Counting(WrappedModel):
    """A model that counts its network's calls and the rows of each."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.rows: list[int] = []

    def __call__(self, x: Tensor, t: Tensor, cond: Cond) -> Prediction:
        self.rows.append(len(x))
        return self.inner(x, t, cond)
