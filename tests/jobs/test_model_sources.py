"""A command draws with the models that start from what it has: noise, a masked picture or a small one."""

from __future__ import annotations

from pathlib import Path

import pytest

import diffkit
from diffkit.errors import UsageError
from diffkit.jobs import FUNCTIONS, job_class, summaries
from diffkit.jobs.base import PictureJob
from tests.models.conftest import make_if, make_sd

SOURCES = ("noise", "mask", "small")
COMMANDS = [name for name in summaries() if issubclass(job_class(name), PictureJob)]
NEEDED = {"anagram": {"p1": "a cat", "p2": "a dog"}, "hybrid": {"p1": "a cat", "p2": "a dog"}}


@pytest.fixture(scope="session")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny models of each source, without weights: what does not fit is said from the configuration."""
    folder = tmp_path_factory.mktemp("sources")
    make_sd(folder / "noise")
    make_sd(folder / "mask", in_channels=9)
    make_if(folder / "small", stage=2)
    for path in folder.glob("*/unet/*.safetensors"):
        path.unlink()
    return {source: folder / source for source in SOURCES}


@pytest.mark.parametrize(
    ("name", "source"),
    [(name, source) for name in COMMANDS for source in SOURCES if source not in job_class(name).sources],
)
def test_a_model_that_starts_from_something_else_is_refused(
    name: str, source: str, repositories: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIFFKIT_CACHE", str(tmp_path / "kit"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"needs a picture to start from|is no upscaler"):
        getattr(diffkit, FUNCTIONS.get(name, name))(model=str(repositories[source]), **NEEDED.get(name, {}))


def test_the_size_of_an_enlarged_picture_is_not_to_be_chosen(
    repositories: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIFFKIT_CACHE", str(tmp_path / "kit"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="enlarges a picture"):
        diffkit.upscale(model=str(repositories["small"]), prompt="x", resolution=1 << 10)
