"""What anagrams and hybrids share as jobs: the style that is put before their prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import diffkit
from diffkit.errors import UsageError


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("style", "prompts", "whole"),
    [
        ("a red", ["heart", "star"], ["a red heart", "a red star"]),
        ("a red", ["heart"], ["a red heart"]),
        ("  the letter ", [" M ", "W"], ["the letter   M", "the letter  W"]),  # spaces are no words of a prompt
        ("a red heart", ["", "on white"], ["a red heart", "a red heart on white"]),
        ("", ["a red heart", "a star"], ["a red heart", "a star"]),
    ],
)
@pytest.mark.parametrize("command", ["anagram", "hybrid"])
def test_a_style_is_put_before_every_prompt(command: str, style: str, prompts: list[str], whole: list[str]) -> None:
    draw: Any = getattr(diffkit, command)
    if command == "hybrid" and len(prompts) < 2:
        return
    styled, plain = (draw(p, steps=2, model="tiny", style=s)[0] for p, s in ((prompts, style), (whole, None)))
    assert styled.tobytes() == plain.tobytes()
    remembered = styled.info["diffkit"]
    assert [text.split() for text in remembered["illusion"]["prompts"]][: len(whole)] == [w.split() for w in whole]
    assert remembered["arguments"]["prompts"] == prompts
    assert remembered["illusion"].get("style", "") == style


def test_words_of_a_style_count_where_the_model_is_chosen(caplog: pytest.LogCaptureFixture) -> None:
    """The model inside the package draws only what it knows every word of, those of the style included."""
    diffkit.anagram(["the letter M", "the letter W"], model="tiny", style="an etching of", steps=1)
    assert "'etching'" in caplog.text


def test_a_style_is_no_class(tmp_path: Path) -> None:
    from tests.support.families import make_run

    model = str(make_run(tmp_path / "classes"))
    with pytest.raises(UsageError, match="`style` 'oil'"):
        diffkit.anagram(classes=["one", "zero"], model=model, style="oil")
