"""What pyproject.toml declares: the lowest versions are those that `make test-floors` installs."""

from __future__ import annotations

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)


def floors(*extras: str) -> dict[str, Version]:
    """The lower bounds of the dependencies and of these extras; what has none is left out."""
    project = PROJECT["project"]
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


@pytest.mark.parametrize("extra", ["", "dev", "docs"])
def test_every_requirement_is_pinned_within_its_range(extra: str) -> None:
    project = PROJECT["project"]
    pins = {canonicalize_name(name): Version(version) for name, version in PINS.items()}
    for requirement in map(Requirement, project["optional-dependencies"][extra] if extra else project["dependencies"]):
        name = canonicalize_name(requirement.name)
        assert pins[name] in requirement.specifier, name


def test_the_package_says_that_it_is_typed() -> None:
    assert (ROOT / "diffkit" / "py.typed").is_file()
    assert PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["diffkit"]
    ignored = [line for line in (ROOT / ".gitignore").read_text().splitlines() if line]
    assert not any(fnmatch("py.typed", line.strip("/")) for line in ignored)  # hatch leaves out what git ignores


def test_the_address_stands_in_one_place() -> None:
    urls = PROJECT["project"]["urls"]
    assert set(urls) == {"Homepage", "Repository", "Issues", "Changelog"}
    assert all(url.startswith(urls["Homepage"]) for url in urls.values())
    texts = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "mkdocs.yml", *(ROOT / "docs").glob("*.md")]
    assert not [path.name for path in texts if urls["Homepage"] in path.read_text()]


def test_a_source_distribution_holds_what_the_tests_read() -> None:
    held = PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    assert set(held) >= {
        "diffkit", "recipes", "tests", "benchmarks", "docs", "mkdocs.yml", "Makefile", "constraints.txt",
        "constraints-floors.txt", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE",
    }  # fmt: skip
    assert [name for name in held if not (ROOT / name).exists()] == []


def test_the_gate_is_one_command_everywhere() -> None:
    """The public workflow runs `make check` on the lowest Python and a new one; the hooks run the same tools."""
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "check.yml").read_text())
    job = workflow["jobs"]["check"]
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.13"]
    assert [step["run"] for step in job["steps"] if "run" in step] == ["make check"]
    gate = re.search(r"^check: setup\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)
    assert gate is not None
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"]
    for hook in hooks[0]["hooks"]:
        assert hook["language"] == "system"
        assert f"$(BIN)/{hook['entry'].removesuffix(' --force-exclude')}" in gate[1]


def test_make_help_names_every_target() -> None:
    text = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.*)$", text, re.M)
    assert targets is not None
    told = set(re.findall(r'@echo "make ([\w-]+) ', text))
    assert set(targets[1].split()) - {"help"} == told
