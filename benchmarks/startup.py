"""Time `diffkit --help` against `import torch` and `import typer`, or one anagram, each in a fresh process.

Run: python benchmarks/startup.py [--runs 7]. The three take turns, so that a busy machine slows all of them alike; the
medians and their ratios are printed as one JSON object. The aim is a quarter of `import torch`.

Run: python benchmarks/startup.py --anagram [--runs 7]. Four anagrams by the model inside the package, from the start of
the process to its end, the text encoder included. The aim is 8 s on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

COMMANDS = {
    "help": [sys.executable, "-m", "diffkit", "--help"],
    "torch": [sys.executable, "-c", "import torch"],
    "typer": [sys.executable, "-c", "import typer"],
    "typer_help": [
        sys.executable,
        "-c",
        "import typer; app = typer.Typer(); app.command('a')(lambda: 0); app.command('b')(lambda: 0); app(['--help'])",
    ],
    "python": [sys.executable, "-c", "pass"],
}

ANAGRAM = [sys.executable, "-m", "diffkit", "anagram", "--p1", "the letter M", "--p2", "the letter W"]
ANAGRAM += ["--view", "rotate_180", "-n", "4", "--json", "--offline", "--quiet"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=7, help="Times each command runs; the first round warms the disk.")
    parser.add_argument("--anagram", action="store_true", help="Time an anagram in place of the help.")
    args = parser.parse_args()
    print(json.dumps((time_anagram if args.anagram else time_help)(args.runs)))


def time_help(runs: int) -> dict[str, object]:
    """Return the medians of `COMMANDS` and their ratios."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for round_ in range(runs + 1):
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            if round_ > 0:
                seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "seconds": {name: round(value, 4) for name, value in median.items()},
        "help_over_torch": round(median["help"] / median["torch"], 3),
        "help_over_typer": round(median["help"] / median["typer"], 3),
        "help_over_typer_help": round(median["help"] / median["typer_help"], 3),
        "runs": runs,
    }


def time_anagram(runs: int) -> dict[str, object]:
    """Return the least and the median seconds of a whole process and of its parts.

    `cpu` is what all threads worked together, which a busy machine changes least. `start` is what comes before the
    command's own clock: the interpreter, torch and half of diffusers, and the exit; `load` holds the other half.
    """
    seconds = [_one_anagram() for _ in range(runs + 1)][1:]

    def each(of: Callable[[list[float]], float]) -> dict[str, float]:
        return {name: round(of([one[name] for one in seconds]), 3) for name in seconds[0]}

    return {"least": each(min), "median": each(statistics.median), "runs": runs}


def _one_anagram() -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"DIFFKIT_CACHE": folder}  # no prompt is known
        began, before = time.perf_counter(), os.times()
        ran = subprocess.run(
            [*ANAGRAM, "--out", folder], check=True, stdout=subprocess.PIPE, text=True, env=environment
        )
        wall, after = time.perf_counter() - began, os.times()
    told: dict[str, float] = json.loads(ran.stdout)["seconds"]
    total = told.pop("total")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"wall": wall, "cpu": cpu, "start": wall - total, **told, "files": total - sum(told.values())}


if __name__ == "__main__":
    main()
