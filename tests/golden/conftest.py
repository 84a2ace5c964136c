from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from golden import FIXTURES


@pytest.fixture(autouse=True)
def _beside_the_fixtures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes name models and images relative to the fixtures; the cache of prompts is empty."""
    monkeypatch.chdir(FIXTURES)
    monkeypatch.setenv("DIFFKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def drawn(run_cli: Callable[..., Any], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """`drawn("sample", "tiny", "-n", 2)` draws into a folder of the test's own and returns what `--json` prints."""

    def draw(*args: object) -> dict[str, Any]:
        where = () if {"-o", "--out", "--dry-run"} & {str(arg) for arg in args} else ("-o", tmp_path / "pictures")
        ran = run_cli(*args, *where, "--json")
        assert ran.code == 0, ran.stdout + ran.stderr
        found: dict[str, Any] = json.loads(ran.stdout)
        return found

    return draw
