"""One tiny model of every family, made on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from diffkit.models import load
from tests.cli.test_sample import make_run
from tests.models.conftest import make_if, make_sd

FAMILIES = ("plain", "classes", "flow", "sd", "sd9", "if")


def make(folder: Path, family: str) -> Path:
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
def models(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("DIFFKIT_CACHE", str(tmp_path / "kit"))
    return lambda family: load(str(folders[family]), device="cpu")


def label_of(family: str) -> str | None:
    return {"plain": None, "classes": "one", "flow": "one"}.get(family, "a cat")


class Counting:
    """A model that counts its network's calls and the rows of each."""

    def __init__(self, model: Any) -> None:
        self._model, self.rows = model, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, x: Any, t: Any, cond: Any) -> Any:
        self.rows.append(len(x))
        return self._model(x, t, cond)
