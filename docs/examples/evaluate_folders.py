"""Two folders of pictures compared by FID and KID, as `diffkit evaluate` does it: digits, more and more blurred."""

from __future__ import annotations

from pathlib import Path

from PIL import ImageFilter

import diffkit
from diffkit.data import open_dataset
from diffkit.recipes.schema import DatasetSpec

COUNT, BLURS = 300, (0.0, 1.0, 2.0)
REAL = Path("digits/real")

# The real pictures lie in a folder per class, from which the features are learned: a small classifier, offline.
digits = open_dataset(DatasetSpec(name="digits"))
for k in range(2 * COUNT):
    picture = digits.source.read(k).convert("L")
    label = digits.class_names[digits.source.labels[k]]
    if k < COUNT:
        files = {REAL / label: picture}
    else:  # other digits than the real ones: a set is no measure of itself
        files = {Path(f"digits/blur-{blur:g}"): picture.filter(ImageFilter.GaussianBlur(blur)) for blur in BLURS}
    for folder, image in files.items():
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{k}.png")

found = {}
for blur in BLURS:
    found[blur] = diffkit.evaluate(f"digits/blur-{blur:g}", str(REAL), metrics=["fid", "kid"])
    scores = ", ".join(f"{name} {value:.4g}" for name, value in found[blur].scores.items())
    print(f"blur {blur:g}: {scores} ({found[blur].num_images} against {found[blur].num_real} pictures)")
print(*found[0.0].warnings, sep="\n")  # such as: too few pictures for FID
