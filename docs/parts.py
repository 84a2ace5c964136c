"""What the pages written by hand take from the code: tables of models, the diff of a family, the README's beginning.

A hook of mkdocs. A page asks by a mark, `<!-- families -->`, which is replaced when the site is built.
"""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from commands import code, linked

from diffkit.models import FAMILIES
from diffkit.types import ModelInfo

if TYPE_CHECKING:
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]


def families() -> str:
    """Return the table of model families: what each is by its own first line, and the pipelines that it loads."""
    rows = ["| family | what it is | pipelines and networks that it loads |", "|---|---|---|"]
    for name, classes in FAMILIES.items():
        text = ast.get_docstring(ast.parse((ROOT / "diffkit" / "models" / f"{name}.py").read_text(encoding="utf-8")))
        paragraphs = (text or "").split("\n\n")
        source = re.search(r"Source: (.*?)\.?$", " ".join((text or "").split()))
        told = " ".join(paragraphs[0].split()) + (f" ({source[1]})" if source else "")
        rows.append(f"| `{name}` | {linked(told)} | {', '.join(f'`{one}`' for one in classes)} |")
    return "\n".join(rows)


def model_fields() -> str:
    """Return the table of what a model says of itself."""
    text = inspect.getdoc(ModelInfo) or ""
    found = dict(re.findall(r"^    (\w+): (.*(?:\n {8,}.*)*)", text.partition("Attributes:")[2], re.M))
    rows = ["| field | meaning |", "|---|---|"]
    for field in fields(ModelInfo):
        rows.append(f"| `{field.name}` | {' '.join(found[field.name].split())} |")
    return "\n".join(rows)


def start() -> str:
    """Return the README up to its set-up and training, for the site's first page."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return text[: text.index("\n## Train")].replace("](docs/", "](").rstrip()


def family_diff() -> str:
    """Return how the family DiT was added, shortened: its row, and the main parts of its file."""
    models = ROOT / "diffkit" / "models"
    source = (models / "dit.py").read_text(encoding="utf-8")
    tree = ast.parse(source)
    network = next(node for node in tree.body if isinstance(node, ast.ClassDef))
    named = {node.name: node for node in (*tree.body, *network.body) if isinstance(node, ast.FunctionDef)}
    lines = source.splitlines()

    def cut(node: ast.stmt) -> list[str]:
        return lines[node.lineno - 1 : node.end_lineno]

    load = named["load"]
    shown = [
        *cut(tree.body[0]), "", "...", "", "", *lines[network.lineno - 1 : network.body[0].lineno - 1], "    ...", "",
        *cut(named["__call__"]), "", "", *cut(named["info"]), "", "...", "", "",
        *lines[load.lineno - 1 : load.body[0].lineno - 1], "    ...",
    ]  # fmt: skip
    row = next(line for line in (models / "__init__.py").read_text().splitlines() if line.startswith('    "dit":'))
    head = ["--- a/diffkit/models/__init__.py", "+++ b/diffkit/models/__init__.py", f"+{row}"]
    return code("diff", *head, "--- /dev/null", "+++ b/diffkit/models/dit.py", *(f"+{line}" for line in shown))


PARTS = {
    "<!-- the README's first part -->": start,
    "<!-- families -->": families,
    "<!-- fields -->": model_fields,
    "<!-- the diff of a family -->": family_diff,
}


def filled(markdown: str) -> str:
    """Put what is made of the code into a page that asks for it."""
    for mark, made in PARTS.items():
        if mark in markdown:
            markdown = markdown.replace(mark, made())
    return markdown


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Fill a page in."""
    return filled(markdown)
