"""What a picture says of itself is not trusted: `replay` refuses in one line, or takes no notice and says so."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from golden import FIXTURES, told
from PIL import Image
from PIL.PngImagePlugin import PngInfo

GOOD = {"model": "models/digits", "classes": ["3"], "steps": 2, "num": 1, "seed": 0}


def picture(path: Path, recipe: Any, size: int = 8) -> Path:
    """A PNG with a recipe; a string is put in as it is."""
    info = PngInfo()
    info.add_itxt("diffkit", recipe if isinstance(recipe, str) else json.dumps(recipe))
    Image.new("L", (size, size)).save(path, pnginfo=info)
    return path


def sample(**changes: Any) -> dict[str, Any]:
    arguments = {key: value for key, value in (GOOD | changes).items() if value is not ...}
    return {"command": "sample", "arguments": arguments, "seed": 0, "index": 0}


REFUSED: dict[str, tuple[Any, tuple[int, ...]]] = {
    "not JSON": ("{", (3,)),
    "a list": ("[1, 2]", (3,)),
    "NaN": ('{"command": "sample", "arguments": {"eta": NaN}}', (3,)),
    "too deep": ("[" * 50_000 + "]" * 50_000, (3,)),
    "no command": ({"arguments": GOOD}, (3,)),
    "a command that is no string": ({"command": 3, "arguments": GOOD}, (3,)),
    "a command that is a list": ({"command": ["sample"], "arguments": GOOD}, (3,)),
    "an unknown command": ({"command": "rm", "arguments": GOOD, "index": 0}, (3,)),
    "a command that draws nothing": ({"command": "train", "arguments": {}, "index": 0}, (3,)),
    "a command of many lines": ({"command": "x\ny\x1b[31m" * 1000, "arguments": GOOD}, (3,)),
    "a private name": ({"command": "__init__", "arguments": GOOD}, (3,)),
    "no arguments": ({"command": "sample", "index": 0}, (3,)),
    "arguments that are a list": ({"command": "sample", "arguments": ["--out", "x"], "index": 0}, (3,)),
    "text for a number": (sample(steps="many"), (2, 3)),
    "a boolean for a number": (sample(steps=True), (2, 3)),
    "a fraction for a whole number": (sample(steps=2.5), (2, 3)),
    "a number for text": (sample(scheduler=3), (2, 3)),
    "an object for text": (sample(model={"id": "models/digits"}), (2, 3)),
    "numbers for classes": (sample(classes=[3, 7]), (2, 3)),
    "null": (sample(steps=None), (2, 3)),
    "too few steps": (sample(steps=0), (2, 3)),
    "steps without end": (sample(steps=10**12), (2, 3)),
    "a negative seed": (sample(seed=-1), (2, 3)),
    "a seed too large": (sample(seed=2**63), (2, 3)),
    "a seed too large for anything": (sample(seed=10**400), (2, 3)),
    "eta out of range": (sample(eta=7.0), (2, 3)),
    "a dtype that is none": (sample(dtype="pickle"), (2, 3)),
    "an index beyond the pictures": ({**sample(), "index": 7}, (2, 3)),
    "a negative index": ({**sample(), "index": -1}, (2, 3)),
    "a model that is not there": (sample(model="no/such-model"), (4,)),
    "a sweep of a sweep": (sample(sweep=["sweep=1,2"]), (2, 3)),
    "a sweep of the output": (sample(sweep=["out=a,b"]), (2, 3)),
    "three axes": (sample(sweep=["steps=1,2", "eta=0,1", "guidance=1,2"]), (2, 3)),
    "pictures of an unlimited size": (
        {"command": "noise", "arguments": {"size": 10**9, "schedule": "linear"}, "index": 0}, (2, 3)
    ),
    "frames without end": (
        {"command": "interpolate", "arguments": {"model": "models/digits", "frames": 10**9}, "index": 0}, (2, 3)
    ),
    "a file of somebody else's": (
        {"command": "sdedit", "arguments": {"model": "models/digits", "image": "/etc/hostname"}, "index": 0}, (2, 3)
    ),
    "a file that is not there": (
        {"command": "sdedit", "arguments": {"model": "models/digits", "image": "no/such.png"}, "index": 0}, (2, 3)
    ),
    "a company that is none": (
        {"command": "anagram", "arguments": {"model": "models/digits", "c1": "1", "c2": "2", "steps": 2},
         "index": 0, "company": "many"}, (2, 3)
    ),
    "a company without the picture": (
        {"command": "anagram", "arguments": {"model": "models/digits", "c1": "1", "c2": "2", "steps": 2},
         "index": 2, "company": [4, 5]}, (2, 3)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_one_line(run_cli, tmp_path: Path, name: str) -> None:
    recipe, codes = REFUSED[name]
    path = picture(tmp_path / "hostile.png", recipe)
    ran = run_cli("replay", path, "--quiet")
    assert ran.code in codes, ran.stderr
    assert ran.stdout == ""
    errors = [line for line in ran.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert len(errors[0]) < 600
    assert "Traceback" not in ran.stderr
    assert "\x1b" not in ran.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["hostile.png"]
    ran = run_cli("replay", path, "--json")
    assert json.loads(ran.stdout)["error"]["code"] in codes


@pytest.mark.parametrize("huge", [{"num": 10**9, "batch_size": 10**9}, {"sweep": ["steps=" + "2," * 10**5 + "2"]}])
def test_pictures_without_end_are_refused(run_cli, tmp_path: Path, huge: dict[str, Any]) -> None:
    ran = run_cli("replay", picture(tmp_path / "hostile.png", sample(**huge)))
    assert ran.code in (2, 3)


def test_what_is_unknown_or_not_its_business_is_ignored(run_cli, tmp_path: Path) -> None:
    evil = tmp_path / "evil"
    more = {"out": str(evil), "allow_pickle": True, "device": "nowhere", "gif": True, "dry_run": True}
    path = picture(tmp_path / "hostile.png", sample(**more, **{"wings": 2, "x" * 500: 1}))
    ran = run_cli("replay", path, "--json", "--out", tmp_path / "again.png")
    assert ran.code == 0, ran.stderr
    for key in (*more, "wings"):
        assert key in ran.stderr
    assert not evil.exists()
    assert all(len(line) < 300 for line in ran.stderr.splitlines())
    assert sorted(file.name for file in tmp_path.iterdir() if file.suffix) == ["again.png", "hostile.png"]
    arguments = told(tmp_path / "again.png")["arguments"]
    assert not arguments.keys() & {*more, "wings"}
    assert json.loads(ran.stdout)["identical"] is False


def test_pickles_stay_closed(run_cli, tmp_path: Path) -> None:
    """A recipe cannot open what only the user may: weights in a pickle."""
    import shutil

    import torch

    model = shutil.copytree(FIXTURES / "models" / "sd", tmp_path / "model")
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    torch.save({}, weights.with_suffix(".bin"))
    recipe = {
        "command": "sample",
        "arguments": {"model": str(model), "prompt": ["a"], "allow_pickle": True},
        "index": 0,
    }
    ran = run_cli("replay", picture(tmp_path / "hostile.png", recipe))
    assert ran.code == 4
    assert "--allow-pickle" in ran.stderr


def raw(path: Path, *chunks: tuple[bytes, bytes, bool]) -> Path:
    """A PNG with further chunks: (kind, data, whether its checksum is right)."""
    plain = path.with_suffix(".plain.png")
    Image.new("L", (8, 8)).save(plain)
    data = plain.read_bytes()
    plain.unlink()
    made = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) ^ (not right))
        for kind, body, right in chunks
    )
    path.write_bytes(data[:33] + made + data[33:])  # behind the header
    return path


TEXT = b"diffkit\0\0\0\0\0"


@pytest.mark.parametrize(
    ("chunk", "said"),
    [
        ((b"iTXt", TEXT + json.dumps(sample()).encode(), False), "checksum"),
        ((b"iTXt", b"diffkit\0\1\0\0\0" + zlib.compress(json.dumps(sample()).encode()), True), "compressed"),
        ((b"iTXt", TEXT + b"\xff\xfe", True), "UTF-8"),
        ((b"iTXt", TEXT + b" " * (3 << 20), True), "bytes is ignored"),
        ((b"tEXt", b"diffkit\0" + json.dumps(sample()).encode(), True), "carries no recipe"),
    ],
)
def test_broken_chunks_are_passed_over(run_cli, tmp_path: Path, chunk: tuple[bytes, bytes, bool], said: str) -> None:
    ran = run_cli("replay", raw(tmp_path / "hostile.png", chunk))
    assert ran.code == 3
    assert said in ran.stderr
    assert "carries no recipe" in ran.stderr


def test_the_first_sound_recipe_counts(run_cli, tmp_path: Path) -> None:
    broken, good = (b"iTXt", TEXT + b"{", True), (b"iTXt", TEXT + json.dumps(sample()).encode(), True)
    ran = run_cli("replay", raw(tmp_path / "some.png", broken, good), "--json", "--out", tmp_path / "again.png")
    assert ran.code == 0, ran.stderr
    assert "not valid JSON" in ran.stderr


def test_no_picture_at_all(run_cli, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello")
    for path, said in ((tmp_path / "text.png", "not a PNG"), (tmp_path / "none.png", "cannot be read")):
        ran = run_cli("replay", path)
        assert ran.code == 3
        assert said in ran.stderr
