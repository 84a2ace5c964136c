"""Make the model inside the package from a finished run of the recipe `glyphs-if`: half precision, and its card.

Run: python benchmarks/bundle.py runs/glyphs-if [--measured FILE]

Only what sampling needs is taken: the averaged UNet, the text encoder, tokenizer, scheduler and the record of the
training. FILE is Markdown that goes into the card under "Measured".
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

FOLDER = Path(__file__).resolve().parent.parent / "diffkit" / "assets" / "tiny"
LARGEST = 10_000_000  # bytes, all files together

CARD = """---
library_name: diffusers
pipeline_tag: text-to-image
license: apache-2.0
tags:
- diffkit
- diffusion
---

# tiny: a text-to-image model that fits into a package

A pixel diffusion model of 32x32 pictures in DeepFloyd IF's layout ({parameters} million parameters, {megabytes}
MB). It draws handwritten digits, capital letters and eight filled shapes in five inks on white paper, and a glyph
on a shape. It is what diffkit's commands use where no model is named, so that every trick can be tried at once,
offline; `diffkit inspect tiny` lists the {words} words that it knows.

```
diffkit anagram --p1 "the letter M" --p2 "the letter W" --view rotate_180
```

```python
from diffusers import IFPipeline

pipe = IFPipeline.from_pretrained(FOLDER, safety_checker=None)
image = pipe("a red heart", num_inference_steps=30, guidance_scale=4.0).images[0]
```

## Made of

- Handwritten digits: MNIST (LeCun, Cortes, Burges; from NIST's special databases; CC BY-SA 3.0), training split,
  without every sixth digit, which is kept for the judge. No digit is contained.
- Capital letters, rendered from the free fonts DejaVu, STIX and Computer Modern, each under its own free licence. No
  font is contained.
- Shapes: drawn in code.

The recipe is `recipes/glyphs-if.yaml`: {steps} updates of 32 pictures; the network predicts the clean picture and, by
the variational bound, the variance of a step. The text encoder has random weights that were never trained: it only has
to keep the captions apart.

## Measured

{measured}

## Limits

It knows {words} words in the order of its captions ("a handwritten three", "the blue letter M", "a green tree",
"the letter A on a red heart"), at 32 pixels and on white. "The letter a" is a capital A. Digits look like MNIST's,
letters like the three font families. It is a toy for learning the tricks, and no source of text or of numbers.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--measured", type=Path, metavar="FILE")
    args = parser.parse_args()
    shutil.rmtree(FOLDER, ignore_errors=True)
    for part in ("unet", "text_encoder", "tokenizer", "scheduler"):
        shutil.copytree(args.run / part, FOLDER / part)
    for name in ("model_index.json", "diffkit.json"):
        shutil.copy(args.run / name, FOLDER / name)
    # The text encoder stays in fp32: it is small, and prompts get the very embeddings of the training.
    weights = FOLDER / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = {key: value.to(torch.float16) for key, value in load_file(weights).items()}
    parameters = sum(value.numel() for value in tensors.values())
    save_file(tensors, weights, metadata={"format": "pt"})
    for path in FOLDER.rglob("*"):  # safetensors are written for their owner alone
        path.chmod(0o755 if path.is_dir() else 0o644)
    size = sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file())
    if size > LARGEST:
        raise SystemExit(f"{FOLDER} is {size / 1e6:.1f} MB; a package should not carry more than 10")
    from diffkit.models.hub import Repo
    from diffkit.models.vocabulary import vocabulary

    rows = [json.loads(line) for line in (args.run / "metrics.jsonl").read_text().splitlines()]
    card = CARD.format(
        parameters=f"{parameters / 1e6:.1f}", megabytes=f"{size / 1e6:.1f}", steps=f"{rows[-1]['step']:,}",
        words=len(vocabulary(Repo("tiny", None, FOLDER)) or []),
        measured=args.measured.read_text().strip() if args.measured else "See the benchmarks of the repository.",
    )  # fmt: skip
    (FOLDER / "README.md").write_text(card, encoding="utf-8")
    print(f"{FOLDER}: {size / 1e6:.2f} MB, {parameters:,} parameters in the UNet")


if __name__ == "__main__":
    main()
