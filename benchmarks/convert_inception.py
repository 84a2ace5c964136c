"""The usual Inception weights of FID as the safetensors file that `diffkit evaluate --features inception:FILE` reads.

The weights are TensorFlow's graph of 2015-12-05 in torch's format, `pt_inception-2015-12-05-6726825d.pth`, which the
projects that measure FID offer on their pages. They are read by torch's restricted unpickler; every tensor is checked.

Run: python benchmarks/convert_inception.py pt_inception-2015-12-05-6726825d.pth inception.safetensors
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from diffkit.errors import DiffkitError
from diffkit.evaluation.inception import convert


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("source", type=Path, help="The .pth file.")
    options.add_argument("target", type=Path, help="The .safetensors file to write.")
    args = options.parse_args()
    try:
        print(convert(args.source, args.target))
    except DiffkitError as error:
        sys.exit(f"error: {error.message}\n  {error.hint}".rstrip())


if __name__ == "__main__":
    main()
