"""Jobs as Python functions: they return pictures with their metadata, print nothing and write nothing."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from PIL import Image

import diffkit
from diffkit.errors import UsageError
from diffkit.jobs import FUNCTIONS, job_class, summaries


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def test_an_anagram_of_a_list_of_prompts(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    made = diffkit.anagram(["the letter M", "the letter W"], views=["identity", "rotate_180"], n=2, steps=2)
    assert [picture.size for picture in made] == [(32, 32)] * 2
    assert made[1].info["diffkit"]["seed"] == 1
    assert made[0].info["diffkit"]["arguments"]["prompts"] == ["the letter M", "the letter W"]
    assert capfd.readouterr().out == ""
    assert not list(tmp_path.glob("*.png"))
    assert not (tmp_path / "outputs").exists()


def test_an_image_by_path_or_from_memory_is_the_same(tmp_path: Path) -> None:
    image = Image.linear_gradient("L").resize((40, 40)).convert("RGB")
    image.save(tmp_path / "photo.png")
    by_path, by_image = (
        diffkit.sdedit(given, prompt="a red heart", strength=0.5, steps=3)[0]
        for given in (str(tmp_path / "photo.png"), image)
    )
    assert by_path.tobytes() == by_image.tobytes()
    assert by_image.info["diffkit"]["arguments"]["image"].startswith("memory:")


def test_a_folder_gets_the_same_pictures(tmp_path: Path) -> None:
    (picture,) = diffkit.sample("tiny", prompt="a red heart", steps=2, out=tmp_path / "here")
    with Image.open(tmp_path / "here" / "sample-0.png") as written:
        assert written.tobytes() == picture.tobytes()


@pytest.mark.parametrize("name", summaries())
def test_every_command_is_a_function_of_its_fields(name: str) -> None:
    function = getattr(diffkit, FUNCTIONS.get(name, name))
    assert set(job_class(name).model_fields) <= set(inspect.signature(function).parameters)
    assert function.__doc__


def test_a_wrong_argument_is_named_as_python_has_it() -> None:
    with pytest.raises(UsageError, match="`strength` is 3"):
        diffkit.sdedit(strength=3.0)
    with pytest.raises(UsageError, match="no option `strenth`"):
        diffkit.sdedit(strenth=0.5)
