from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.models.conftest import make_if, make_pipeline, make_sd


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIFFKIT_CACHE", str(tmp_path / "kit"))
    return tmp_path / "kit" / "embeddings"


def test_fills_the_cache_once(run_cli, tmp_path: Path, cache: Path) -> None:
    make_if(tmp_path / "m")
    (tmp_path / "prompts.txt").write_text("a dog\n\na pond\n")
    words = ("embed", "a cat", "--negative-prompt", "blur", "--file", tmp_path / "prompts.txt", "-m", tmp_path / "m")
    told = json.loads(run_cli(*words, "--dry-run", "--json").stdout)
    assert told["encoded"] == ["a cat", "a dog", "a pond", "blur", ""]
    assert not cache.exists()
    told = json.loads(run_cli(*words, "--json").stdout)
    assert (told["encoded"], told["cached"]) == (["a cat", "a dog", "a pond", "blur", ""], [])
    assert len(list(cache.rglob("*.safetensors"))) == 5
    for path in (tmp_path / "m" / "unet").iterdir():  # nothing else of the model is needed
        path.unlink()
    again = json.loads(run_cli(*words, "--json").stdout)
    assert (again["encoded"], len(again["cached"])) == ([], 5)


def test_what_it_fills_is_what_sampling_reads(run_cli, tmp_path: Path, cache: Path) -> None:
    from diffkit.models import load

    make_sd(tmp_path / "m")
    assert run_cli("embed", "a cat", "-m", tmp_path / "m", "--dtype", "bf16").code == 0
    model = load(str(tmp_path / "m"), device="cpu", dtype="bf16")
    model.encode(["a cat", ""])
    assert model.prompts.loads == 0


def test_errors(run_cli, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_cli("embed").code == 2
    make_pipeline(tmp_path / "ddpm")
    ran = run_cli("embed", "a cat", "-m", tmp_path / "ddpm")
    assert (ran.code, "knows no prompts" in ran.stderr) == (2, True)
    assert run_cli("embed", "--file", tmp_path / "none.txt", "-m", tmp_path / "ddpm").code == 3
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xff")
    assert run_cli("embed", "--file", tmp_path / "bytes.txt", "-m", tmp_path / "ddpm").code == 3


def test_a_model_out_of_reach_is_said_at_once(tmp_path: Path) -> None:
    """Before torch is imported, with the repository and the command that fetches it."""
    code = """
import sys
from diffkit.cli import main
try:
    main(["embed", "a", "--offline"])
finally:
    print("torch" in sys.modules)
"""
    began = time.monotonic()
    env = os.environ | {"HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (4, "False\n")
    assert "hf download DeepFloyd/IF-I-M-v1.0" in done.stderr
    assert time.monotonic() - began < 5
