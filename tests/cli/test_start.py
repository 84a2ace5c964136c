"""How a command starts: rare searches for garbage while libraries are imported, and threads that wait politely."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from diffkit.cli import runner

# Drawing from a prompt needs none of them, and each costs from a tenth of a second to a whole one.
UNUSED = {"matplotlib", "datasets", "sklearn", "imageio"}
# The generation code of transformers before 5.21, which the text encoder brings along, imports it, and it the other.
SKLEARN_TOO = {"sklearn", "joblib"} if Version(version("transformers")) < Version("5.21") else set()

DRAWN = """
import atexit, gc, json, sys

from diffkit.cli import main
from diffkit.cli import progress

found = {"usual": gc.get_threshold()}
plain = progress.Bar.loading

def loading(self, info):
    found.update(during=gc.get_threshold())
    plain(self, info)
    found.update(known=sorted(sys.modules))
    found["after"], found["kept"] = gc.get_threshold(), gc.get_freeze_count()

progress.Bar.loading = loading
atexit.register(lambda: print(json.dumps(found | {"modules": sorted(sys.modules)})))
main(["anagram", "--p1", "the letter M", "--p2", "the letter W", "-n", "1", "--steps", "1", "--out", sys.argv[1], "-q"])
"""


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process that drew an anagram with the model inside the package said of itself."""
    folder = tmp_path_factory.mktemp("drawn")
    env = os.environ | {"DIFFKIT_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", DRAWN, str(folder)], env=env, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    assert Path(folder / "anagram-0.png").is_file()
    return json.loads(ran.stdout.splitlines()[-1]) | {"stderr": ran.stderr}


def test_libraries_are_imported_without_searching_them_for_garbage(drawn: dict[str, Any]) -> None:
    assert drawn["during"][0] > 50 * drawn["usual"][0]
    assert drawn["after"] == drawn["usual"]  # the pictures themselves are drawn as ever
    assert drawn["kept"] > 100_000


def test_they_are_there_before_weights_are_read(drawn: dict[str, Any]) -> None:
    assert {"torch", "diffusers.models.unets.unet_2d_condition", "transformers.modeling_utils"} <= set(drawn["known"])
    late = set(drawn["modules"]) - set(drawn["known"])
    late = {name for name in late if name.partition(".")[0] not in SKLEARN_TOO}
    assert "transformers.models.t5.modeling_t5" in late  # the text encoder was not
    assert len(late) < len(drawn["known"]) / 20


def test_nothing_is_imported_that_drawing_does_not_need(drawn: dict[str, Any]) -> None:
    assert not (UNUSED - SKLEARN_TOO) & {name.partition(".")[0] for name in drawn["modules"]}


def test_importing_warns_of_nothing(drawn: dict[str, Any]) -> None:
    assert "Warning" not in drawn["stderr"]


@pytest.mark.parametrize(
    "given", [{}, {"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "7"}], ids=["nothing", "policy", "count"]
)
def test_threads_wait_politely_unless_told_otherwise(given: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    runner.begin(as_json=False, quiet=True, debug=False, offline=False)
    found = {name: os.environ[name] for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT") if name in os.environ}
    assert found == (given or {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"})


BEFORE_029 = Version(version("typer")) < Version("0.29")  # typer checked by itself, not by pydantic


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("anagram --p1 a --p2 b --reduce median", "--reduce: 'median' is not one of 'mean', 'alternate'"),
        ("sdedit --dtype fp64", "--dtype: 'fp64' is not one of 'auto', 'fp32', 'fp16', 'bf16'"),
        ("data check x --on-error foo", "--on-error: 'foo' is not one of 'error', 'skip'"),
        ("train --channels 9", f"--channels: {'9 is not in the range 1<=x<=3' if BEFORE_029 else 'must be at most 3'}"),
        (
            "anagram --weight x",
            "--weight: 'x' is not a valid float"
            if BEFORE_029
            else "--weight: must be a valid number, unable to parse string as a number",
        ),
        (
            "anagram -n x",
            "--num / -n: 'x' is not a valid integer"
            if BEFORE_029
            else "--num / -n: must be a valid integer, unable to parse string as an integer",
        ),
        ("train --dry", "No such option: --dry (Possible options: --dry-run, --lr)"),
        ("sdedit --strength 2", "--strength is 2.0; it must be at most 1"),
        ("noise --timesteps a,b", "--timesteps is 'a,b'; give whole numbers with commas, 250,500,750"),
    ],
)
def test_a_wrong_word_is_told_in_one_way(run_cli: Any, line: str, said: str) -> None:
    """Whoever checks it: typer, the library that typer checks by, or the job."""
    ran = run_cli(*line.split())
    assert (ran.code, ran.stderr.splitlines()[0]) == (2, f"error: {said}")
