"""YAML without its traps: plain mappings, lists and scalars, each with the line that it came from.

Refused, each with its line: duplicate keys, anchors and aliases, tags, NaN and infinity, more than one document, deep
nesting and very large files. Scalars follow YAML 1.2: only `true` and `false` are booleans (`on`, `yes` and `no` stay
strings) and `1e-4` is a number. Nothing here knows what a recipe is.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from diffkit.errors import UsageError

MAX_BYTES = 1 << 20
MAX_DEPTH = 20

_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|nan)", re.IGNORECASE)
_WORDS = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
_WORDS |= {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}  # type: ignore[dict-item]


@dataclass
class Document:
    """A parsed file: its values, and the 1-based line of every key by its path from the root."""

    source: str
    data: dict[str, Any] = field(default_factory=dict)
    lines: dict[tuple[str, ...], int] = field(default_factory=dict)


def plain(text: str) -> Any:
    """Return what an unquoted scalar means: null, true or false, an integer, a finite float, else the text itself.

    Raises:
        ValueError: NaN, infinity, or a number that is too large.
    """
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        if len(text) > 40:
            raise ValueError("the number is too large")
        return int(text)
    if _NOT_FINITE.fullmatch(text):
        raise ValueError(f"{text} is not a finite number")
    if _FLOAT.fullmatch(text):
        number = float(text)
        if not math.isfinite(number):
            raise ValueError(f"{text} is not a finite number")
        return number
    return text


class _Loader(yaml.SafeLoader):
    """Composes nodes only; values are made by `_value`, so that no constructor is ever called."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _Refused(event, f"alias *{event.anchor} is not allowed; write the value out")
        if event.anchor is not None:
            raise _Refused(event, f"anchor &{event.anchor} is not allowed; write the value out")
        if event.tag is not None:  # of a scalar, a list or a mapping: there are no other nodes
            shown = event.tag.replace("tag:yaml.org,2002:", "!!")
            raise _Refused(event, f"tag {shown} is not allowed; write a plain value")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _Refused(event, f"nested more than {MAX_DEPTH} levels deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Refused(Exception):
    def __init__(self, where: Any, message: str) -> None:
        super().__init__(message)
        self.line = where.start_mark.line + 1


def _value(node: yaml.Node, path: tuple[str, ...], lines: dict[tuple[str, ...], int]) -> Any:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.ScalarNode):
        if node.style is not None:  # quoted or a block: always a string
            return node.value
        try:
            return plain(node.value)
        except ValueError as error:
            raise _Refused(node, f"{'.'.join(path)}: {error}") from None
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, (*path, str(i)), lines) for i, item in enumerate(node.value)]
    result: dict[str, Any] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _Refused(key, "a key must be a plain word")
        if key.value in result:
            first = lines[(*path, key.value)]
            raise _Refused(key, f"key {'.'.join((*path, key.value))!r} is given twice (first on line {first})")
        lines[(*path, key.value)] = key.start_mark.line + 1
        result[key.value] = _value(value, (*path, key.value), lines)
    return result


def parse(text: str, source: str) -> Document:
    """Parse one YAML document whose root is a mapping.

    Args:
        text: The document.
        source: What it is called in errors, usually its path.

    Raises:
        UsageError: `source:line: what is wrong`.
    """
    lines: dict[tuple[str, ...], int] = {}
    try:
        # A loader rather than yaml.load, which would call constructors.
        node = _Loader(text).get_single_node()
        data = {} if node is None else _value(node, (), lines)
    except _Refused as error:
        raise UsageError(f"{source}:{error.line}: {error}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}" if mark else source
        raise UsageError(f"{where}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{source}: not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(data, dict):
        raise UsageError(f"{source}:{lines.get((), 1)}: must hold keys and values, not a {type(data).__name__}")
    return Document(source, data, lines)


def read(path: Path) -> Document:
    """Read and parse a file.

    Raises:
        UsageError: It is missing, no text, too large, or `parse` refuses it.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise UsageError(
            f"recipe file {str(path)!r} does not exist", "`diffkit recipe list` shows the names."
        ) from None
    except OSError as error:
        raise UsageError(f"recipe file {str(path)!r} cannot be read: {error.strerror}") from None
    if len(raw) > MAX_BYTES:
        raise UsageError(f"{path}: larger than {MAX_BYTES} bytes; that is no recipe")
    try:
        return parse(raw.decode("utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UsageError(f"{path}:{line}: not UTF-8 text") from None


def value(text: str, source: str) -> Any:
    """Parse one value as it stands on a command line: a quoted string, a flow list or mapping, or a plain scalar.

    A plain scalar is taken as it is: `#ff0000` is no comment and `a: b` no mapping.

    Raises:
        UsageError: `source` and what is wrong.
    """
    text = text.strip()
    if text[:1] in ("[", "{", '"', "'"):
        return parse(f"value: {text}\n", source).data["value"]
    try:
        return plain(text)
    except ValueError as error:
        raise UsageError(f"{source}: {error}") from None


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


# A string that `plain` would read as a number is quoted, where YAML 1.1 (and so PyYAML) would not.
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"^(?:{_FLOAT.pattern})$"), list("-+.0123456789"))


def dump(data: dict[str, Any]) -> str:
    """Return `data` as YAML that `parse` reads back equal, the keys in their order."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110, default_flow_style=False)
