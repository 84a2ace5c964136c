"""The laws of the house, read from the code: imports point down and in no circle, files are small, types are real."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "diffkit"
FILES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}
# Rooms from the ground up; a file may import from its own floor and from those below.
FLOORS = (
    {"types", "model_info", "errors"},
    {"pictures", "recipes", "registry"},
    {"engine"},
    {"models", "data"},
    {"illusions"},
    {"evaluation", "training"},
    {"jobs"},
    {"lab"},
    {"cli", "__main__", ""},
)
LARGEST = 300


def imports(module: str) -> set[str]:
    """The modules of diffkit that a module imports anywhere, but for type checking alone."""
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    package = module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{module} imports by dots within {package}"
            found.update(
                f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in FILES else node.module
                for alias in node.names
            )
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return {name for name in found if name in FILES} - {module}


GRAPH = {module: imports(module) for module in FILES}


def floor_of(module: str) -> int:
    room = module.split(".")[1] if "." in module else ""
    return next(k for k, rooms in enumerate(FLOORS) if room in rooms)


@pytest.mark.parametrize("module", FILES)
def test_imports_point_down(module: str) -> None:
    upwards = [name for name in GRAPH[module] if name != "diffkit" and floor_of(name) > floor_of(module)]
    assert not upwards, f"{module} imports from above: {upwards}"


def test_no_file_imports_in_a_circle() -> None:
    """A package's own face (`__init__`) re-exports what lies in it, and is no circle of its own."""
    done: set[str] = set()
    circles: list[list[str]] = []

    def visit(module: str, way: list[str]) -> None:
        if module in way:
            circles.append(way[way.index(module) :])
            return
        if module in done:
            return
        for name in sorted(GRAPH[module]):
            visit(name, [*way, module])
        done.add(module)

    for module in FILES:
        visit(module, [])
    assert not circles, circles


@pytest.mark.parametrize("module", FILES)
def test_files_stay_small(module: str) -> None:
    assert len(FILES[module].read_text(encoding="utf-8").splitlines()) <= LARGEST


@pytest.mark.parametrize("module", FILES)
def test_models_and_schedulers_have_a_type(module: str) -> None:
    text = FILES[module].read_text(encoding="utf-8")
    assert not re.findall(r"\b(?:model|scheduler|info): Any\b", text)


def flags_in(module: str) -> list[str]:
    """Texts of a module, its docstrings left out, that spell an option of the command line."""
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    documented = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None
        if isinstance(node.body[0], ast.Expr)
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented
        and re.search(r"(?<![\w-])--[a-z][a-z-]+", node.value)
    ]  # fmt: skip


# Commands that are shown whole: `hf download NAME --revision R`, and in a model's card those that use the model.
COMMANDS = {"diffkit.models.repo", "diffkit.data.hub", "diffkit.training.card"}
CLEAN = [name for name in FILES if floor_of(name) < len(FLOORS) - 1 and name not in COMMANDS]


@pytest.mark.parametrize("module", CLEAN)
def test_no_flag_is_spelled_below_the_command_line(module: str) -> None:
    assert not flags_in(module)
