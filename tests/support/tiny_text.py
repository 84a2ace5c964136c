"""A folder of captioned pictures and a text-to-image recipe small enough to be run many times."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image, ImageDraw

from diffkit.recipes.reading import load_recipe

CAPTIONS = ("a Red disc", "a blue disc", "a red square, filled", "a blue square", "")


def captioned_folder(folder: Path, count: int = 24, size: int = 8) -> Path:
    """Write discs and squares on white with a metadata.jsonl; one picture in five has no caption."""
    folder.mkdir(parents=True)
    rows = []
    for k in range(count):
        caption = CAPTIONS[k % len(CAPTIONS)]
        image = Image.new("RGB", (size, size), "white")
        draw = ImageDraw.Draw(image)
        shape = draw.ellipse if "disc" in caption else draw.rectangle
        shape((1 + k % 2, 1, 5 + k % 2, 5), fill="blue" if "blue" in caption else "red")
        image.save(folder / f"{k}.png")
        rows.append({"file_name": f"{k}.png"} | ({"caption": caption} if caption else {}))
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return folder


def text_recipe(data: Path | str, out: Path, *sets: str):
    """Return the recipe of a run that takes seconds."""
    items = [
        f"dataset.name={data}", "dataset.resolution=8", "model.text=t5", "model.preset=tiny_if", "model.text_width=16",
        "model.text_layers=1", "model.class_conditioning=none", "noise.prediction=sample", "noise.schedule=cosine",
        "noise.timestep_bias=200-900", "training.epochs=null", "training.steps=9", "training.batch_size=6",
        "training.warmup_steps=2", "training.log_every=3", "training.checkpoint_every=3", "training.preview_every=0",
        "training.preview_images=4", "training.preview_steps=2", "training.ema_decay=0.9", "training.class_dropout=0.3",
        f"output.dir={out}",
    ]  # fmt: skip
    return load_recipe("digits", sets=[*items, *sets], environ={})
