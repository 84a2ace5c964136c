"""The examples and notebooks of `docs/`: each is small and runs as it stands, without a network."""

from __future__ import annotations

import ast
import json
import re
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = {path.stem: path for path in sorted((ROOT / "docs" / "examples").glob("*.py"))}
NOTEBOOKS = {path.stem: path for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))}
BOOKS = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in NOTEBOOKS.items()}
URLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
LONGEST = 40
# Constants at the top of a text that make it short, as a reader may set them to make it long.
SHORTER: dict[str, dict[str, float]] = {
    "part-a": {"STEPS": 2},
    "train-finetune-evaluate": {"UPDATES": 3, "FURTHER": 2, "STEPS": 2, "COUNT": 12},
}


def codes(name: str) -> list[str]:
    """The code cells of a notebook."""
    return ["".join(cell["source"]) for cell in BOOKS[name]["cells"] if cell["cell_type"] == "code"]


def shorter(name: str, text: str) -> str:
    """A text with its constants lowered."""
    tree = ast.parse(text)
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name | ast.Tuple):
            target, value = node.targets[0], node.value
            pairs = [(target, value)]
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                pairs = list(zip(target.elts, value.elts, strict=True))
            for one, constant in pairs:
                if isinstance(one, ast.Name) and one.id in SHORTER.get(name, {}):
                    assert isinstance(constant, ast.Constant)
                    constant.value = SHORTER[name][one.id]
    return ast.unparse(tree)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def alone(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """An empty module in an empty folder: nothing can be fetched or started, and new rows go when it goes."""
    from diffkit.engine.losses import LOSSES
    from diffkit.illusions.views import VIEWS

    def refuse(*given: object, **more: object) -> None:
        raise AssertionError(f"a text opens a connection or starts a program: {given}")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFKIT_CACHE", str(cache))
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(subprocess, "run", refuse)
    registries: list[Any] = [VIEWS, LOSSES]
    rows = [dict(registry._rows) for registry in registries]
    module = sys.modules["text_of_docs"] = ModuleType("text_of_docs")  # dataclasses look their module up
    yield module
    del sys.modules["text_of_docs"]
    for registry, before in zip(registries, rows, strict=True):
        registry._rows.clear()
        registry._rows.update(before)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_short(name: str) -> None:
    text = EXAMPLES[name].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST
    assert ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name: str, alone: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = EXAMPLES[name].read_text(encoding="utf-8")
    exec(compile(text, str(EXAMPLES[name]), "exec"), vars(alone))
    said, space = capsys.readouterr().out, vars(alone)
    if name == "view":
        assert "works: True" in said
        assert space["picture"].info["diffkit"]["arguments"]["views"] == ["identity", "mirror"]
    elif name == "loss":
        assert space["guided"] < space["free"] / 2
    elif name == "training_loop":
        assert space["losses"][-1] < space["losses"][0]
        assert len(space["pictures"]) == 10
    elif name == "anagram":
        assert "'scorer': 'model'" in said
        assert {"anagram.png", "anagrams"} == {path.name for path in tmp_path.iterdir()}
    elif name == "evaluate_folders":
        fids = [found.scores["fid"] for found in space["found"].values()]
        assert fids == sorted(fids)
        assert fids[-1] > 10 * fids[0]
    else:
        assert name == "watch_steps"
        assert space["watch"].labels[0] == "t = 999"
        assert len(space["watch"].pictures) == 6


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_one(name: str) -> None:
    """By the format's own rules (nbformat 4.5), without outputs, so that nothing in it is older than the code."""
    book = BOOKS[name]
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert set(book) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert book["metadata"]["kernelspec"]["language"] == "python"
    names = [cell["id"] for cell in book["cells"]]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", one) for one in names)
    for cell in book["cells"]:
        more = {"outputs", "execution_count"} if cell["cell_type"] == "code" else set()
        assert set(cell) == {"cell_type", "id", "metadata", "source"} | more
        assert cell["cell_type"] in ("code", "markdown")
        assert all(line.endswith("\n") for line in cell["source"][:-1])
        assert all(len(line) <= 260 for line in cell["source"])
        if more:
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
    places = {one.id for text in codes(name) for one in ast.walk(ast.parse(text)) if isinstance(one, ast.Name)}
    assert set(SHORTER[name]) <= places


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_opens_on_colab_and_installs_what_is_missing(name: str, alone: ModuleType) -> None:
    """By the project's own address; where diffkit is there, nothing is started (the fixture would say so)."""
    opening = "".join(BOOKS[name]["cells"][0]["source"])
    repository = URLS["Repository"].removeprefix("https://github.com/")
    wanted = f"https://colab.research.google.com/github/{repository}/blob/main/docs/notebooks/{name}.ipynb"
    assert re.findall(r"\[!\[Open in Colab\]\([^)]+\)\]\(([^)]+)\)", opening) == [wanted]
    install, *rest = codes(name)
    assert re.findall(r"git\+([^\"']+)", install) == [URLS["Repository"]]
    assert not [text for text in rest if re.search(r"https?:|subprocess|urllib|requests|^\s*[!%]", text, re.M)]
    exec(install, vars(alone))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs(name: str, alone: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """Cell by cell; a cell that ends in an expression shows a picture or a value."""
    shown = []
    for place, text in enumerate(codes(name)):
        tree = ast.parse(shorter(name, text))
        last = tree.body[-1]
        where = f"{name}, code cell {place}"
        if not isinstance(last, ast.Expr) or ast.unparse(last).startswith("print("):
            exec(compile(tree, where, "exec"), vars(alone))
            continue
        exec(compile(ast.Module(tree.body[:-1], []), where, "exec"), vars(alone))
        shown.append(eval(compile(ast.Expression(last.value), where, "eval"), vars(alone)))
    assert all(value is not None for value in shown)
    pictures = [value for value in shown if isinstance(value, Image.Image)]
    assert len(pictures) >= 2
    assert all(max(picture.size) >= 128 for picture in pictures)
