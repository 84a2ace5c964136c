"""Fault 22 of the promises: a wrong recipe file is refused with its line."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from diffkit.errors import UsageError
from diffkit.recipes import strict_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1.0e-05", 1e-5),
        (".5", 0.5),
        ("-3", -3),
        ("+7", 7),
        ("007", 7),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("on", "on"),
        ("yes", "yes"),
        ("no", "no"),
        ("1_000", "1_000"),
        ("12:30:00", "12:30:00"),
        ("0x1F", "0x1F"),
        ("2024-01-01", "2024-01-01"),
        ("offset_cosine:0.95,0.02", "offset_cosine:0.95,0.02"),
        ("'1e-4'", "1e-4"),
        ('"true"', "true"),
        ("[1, 2.5, a]", [1, 2.5, "a"]),
        ("{a: 1}", {"a": 1}),
    ],
)
def test_scalars_mean_what_they_look_like(text: str, value: Any) -> None:
    in_file = strict_yaml.parse(f"key: {text}\n", "f").data["key"]
    for got in (in_file, strict_yaml.value(text, "--set key")):
        assert got == value
        assert type(got) is type(value)


@pytest.mark.parametrize("text", ["#ff0000", "a: b", "*star", "&and", "@x", "%y", "!bang", "- dash"])
def test_a_value_on_the_command_line_is_taken_as_it_is(text: str) -> None:
    assert strict_yaml.value(text, "--set key") == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "f:3: key 'a' is given twice (first on line 1)"),
        ("x:\n  a: 1\n  a: 1\n", "f:3: key 'x.a' is given twice (first on line 2)"),
        ("a: &x 1\nb: *x\n", "f:1: anchor &x is not allowed; write the value out"),
        ("b: *x\n", "f:1: alias *x is not allowed; write the value out"),
        ("a: !!python/object/apply:os.system [echo]\n", "f:1: tag !!python/object/apply:os.system is not allowed"),
        ("a: !!str 1\n", "f:1: tag !!str is not allowed"),
        ("a: !mine {b: 1}\n", "f:1: tag !mine is not allowed"),
        ("a: 1\nb: .nan\n", "f:2: b: .nan is not a finite number"),
        ("b: -.INF\n", "f:1: b: -.INF is not a finite number"),
        ("b: 1e999\n", "f:1: b: 1e999 is not a finite number"),
        ("b: " + "9" * 5000, "f:1: b: the number is too large"),
        ("a: 1\n--- \nb: 2\n", "f:2: not valid YAML"),
        ("- a\n- b\n", "f:1: must hold keys and values, not a list"),
        ("just words\n", "f:1: must hold keys and values, not a str"),
        ("a: [1, 2\nb: 3\n", "f:2: not valid YAML"),
        ("a: 1\n\tb: 2\n", "f:2: not valid YAML"),
        ("? [a, b]\n: 1\n", "f:1: a key must be a plain word"),
        ("a: " + "[" * 50 + "]" * 50, "f:1: nested more than 20 levels deep"),
        ("a: \x01\n", "f: not valid YAML"),
    ],
)
def test_traps_are_refused_with_their_line(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        strict_yaml.parse(text, "f")
    assert caught.value.message.startswith(message)
    assert "\n" not in caught.value.message


def test_an_alias_bomb_is_refused_at_once() -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
    start = time.perf_counter()
    with pytest.raises(UsageError, match="anchor"):
        strict_yaml.parse(bomb, "f")
    assert time.perf_counter() - start < 1


def test_lines_are_kept_for_every_key() -> None:
    document = strict_yaml.parse("# head\na:\n  b: 1\n\n  c: [1,\n    2]\n", "f")
    assert document.lines[("a", "b")] == 3
    assert document.lines[("a", "c")] == 5
    assert document.lines[("a", "c", "1")] == 6


@pytest.mark.parametrize(
    "data",
    [
        {
            "a": "1e5",
            "b": "no",
            "c": "1_000",
            "d": "null",
            "e": "~",
            "f": "true",
            "g": ".5",
            "h": "",
            "i": "#x",
            "j": "a: b",
        },
        {"a": 1e-5, "b": 1e22, "c": -0.0, "d": 123456789, "e": None, "f": True, "g": [], "h": {}},
        {"a": [["x"], ["x"]], "b": {"c": {"d": ["1", 1]}}, "ü": "é 木\n two lines\n"},
    ],
)
def test_what_is_dumped_reads_back_equal(data: dict[str, Any]) -> None:
    shared = ["same", "object"]
    data = {**data, "s": shared, "t": shared}
    assert strict_yaml.parse(strict_yaml.dump(data), "f").data == data


def test_unreadable_files_are_usage_errors(tmp_path: Path) -> None:
    binary = tmp_path / "b.yaml"
    binary.write_bytes(b"a: 1\nb: \xff\xfe\n")
    large = tmp_path / "l.yaml"
    large.write_bytes(b"#" * (strict_yaml.MAX_BYTES + 1))
    for path, message in [
        (tmp_path / "none.yaml", "does not exist"),
        (tmp_path, "cannot be read"),
        (binary, "b.yaml:2: not UTF-8 text"),
        (large, "larger than"),
    ]:
        with pytest.raises(UsageError) as caught:
            strict_yaml.read(path)
        assert message in caught.value.message
