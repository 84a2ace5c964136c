"""Shared fixtures: no network, few threads, and the command line in-process."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Callable, Iterator
from typing import NamedTuple

# Before any library reads them at import. The processes that tests start inherit them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("COLUMNS", "120")
for _name in [name for name in os.environ if name.startswith("DIFFKIT_") and "__" in name]:
    del os.environ[_name]

import pytest  # noqa: E402  (the environment comes first)

from tests.support.families import folders, models  # noqa: E402, F401  (fixtures)


class Ran(NamedTuple):
    """What a command left: its exit code and both streams."""

    code: int
    stdout: str
    stderr: str


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _nothing_of_the_command_line_stays() -> Iterator[None]:
    """The environment, the logger and the collector are put back: no test sees another's `--quiet` or `--offline`."""
    environment, log, collecting = dict(os.environ), logging.getLogger("diffkit"), gc.get_threshold()
    handlers, level, propagate = list(log.handlers), log.level, log.propagate
    yield
    os.environ.clear()
    os.environ.update(environment)
    log.handlers[:], log.propagate = handlers, propagate
    log.setLevel(level)
    gc.set_threshold(*collecting)


@pytest.fixture
def run_cli(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Ran]]:
    """`run_cli("sample", "runs/x", "--json")` runs diffkit in this process and returns its code and streams."""
    from diffkit.cli import main, runner

    def run(*args: object) -> Ran:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        code = left.value.code
        return Ran(code if isinstance(code, int) else 0 if code is None else 1, out, err)

    yield run
    runner.SESSION.as_json = runner.SESSION.quiet = runner.SESSION.debug = False
