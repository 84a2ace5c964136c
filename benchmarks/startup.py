"""Time `diffkit --help` against `import torch` and `import typer`, each in a fresh process.

Run: python benchmarks/startup.py [--runs 7]. The three take turns, so that a busy machine slows all of them alike; the
medians and their ratios are printed as one JSON object. The aim is a quarter of `import torch`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=7, help="Times each command runs; the first round warms the disk.")
    runs = parser.parse_args().runs
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for round_ in range(runs + 1):
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            if round_ > 0:
                seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    result = {
        "seconds": {name: round(value, 4) for name, value in median.items()},
        "help_over_torch": round(median["help"] / median["torch"], 3),
        "help_over_typer": round(median["help"] / median["typer"], 3),
        "help_over_typer_help": round(median["help"] / median["typer_help"], 3),
        "runs": runs,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
