"""What pyproject.toml declares: the lowest versions are those that `make test-floors` installs."""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def floors(*extras: str) -> dict[str, Version]:
    """The lower bounds of the dependencies and of these extras; what has none is left out."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + [line for extra in extras for line in project["optional-dependencies"][extra]]
    found = {}
    for requirement in map(Requirement, lines):
        lowest = [Version(part.version) for part in requirement.specifier if part.operator == ">="]
        found |= {canonicalize_name(requirement.name): version for version in lowest}
    return found


def test_the_lower_bounds_are_the_versions_that_are_tried() -> None:
    rows = [line.split("==") for line in (ROOT / "constraints-floors.txt").read_text().splitlines() if "==" in line]
    tried = {canonicalize_name(name): Version(version) for name, version in rows}
    lowest = floors("dev")
    assert {name: tried.get(name) for name in lowest} == lowest


def test_an_extra_asks_for_what_the_tests_had() -> None:
    dev = floors("dev")
    assert floors("text", "video").items() <= dev.items()
