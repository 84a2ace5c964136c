"""Draw the README's pictures with the model that ships inside the package: `make gallery`.

Every picture is made by a command that is printed, in a fresh process, offline; here they are only enlarged and laid
side by side. Seeds were chosen for looks; how often the tricks work is measured by `benchmarks/glyph_tricks.py`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from diffkit.illusions.drawing import seen
from diffkit.jobs.hybrid import SMALL_SPLIT, make_hybrid
from diffkit.pictures.examples import example_image, example_mask
from diffkit.pictures.grids import grid
from diffkit.pictures.metadata import write_png
from diffkit.pictures.tensors import from_tensor, to_tensor

HERE = Path(__file__).resolve().parent / "gallery"
SIDE = 192  # pixels at which a small picture is shown

# One prompt, the other in half a turn, the seed.
ANAGRAMS = [
    ("the letter M", "the letter W", 1),
    ("a handwritten six", "a handwritten nine", 7),
    ("the letter A", "the letter V", 0),
    ("a handwritten seven", "the letter L", 0),
]
# What is seen from afar, and from near. Either caption leaves the other's part open.
HYBRIDS = [
    ("a sign on a blue star", "the letter E on a shape"),
    ("a sign on a green tree", "the letter K on a shape"),
    ("a sign on an orange disc", "the letter X on a shape"),
]


def diffkit(*arguments: Any) -> dict[str, Any]:
    """Run a command and return what `--json` says."""
    command = [sys.executable, "-m", "diffkit", *map(str, arguments), "--json", "--quiet", "--offline"]
    print("diffkit", *(f"'{a}'" if " " in str(a) else a for a in arguments))
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def shown(path: str | Path, *, frame: bool = False) -> Image.Image:
    """A picture, enlarged pixel by pixel; with a frame, where its white would run into the page."""
    with Image.open(path) as image:
        whole = image.convert("RGB")
    factor = max(1, SIDE // max(whole.size))
    large = whole.resize((whole.width * factor, whole.height * factor), Image.Resampling.NEAREST)
    if frame:
        ImageDraw.Draw(large).rectangle((0, 0, large.width - 1, large.height - 1), outline="grey")
    return large


def keep(source: str | Path, name: str) -> None:
    """Copy a file that a command wrote."""
    (HERE / name).write_bytes(Path(source).read_bytes())


def save(name: str, tiles: list[tuple[str, Image.Image]], columns: int) -> None:
    """Write labelled pictures as one sheet."""
    write_png(HERE / name, grid([tile for _, tile in tiles], columns, labels=[label for label, _ in tiles]), {})


def main() -> None:
    HERE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for draw in (samples, sdedit, inpaint, anagrams, hybrids, film):
            draw(Path(folder) / draw.__name__)
    print(f"pictures: {HERE}")


def samples(out: Path) -> None:
    """Prompts by guidance."""
    prompts = [
        "a handwritten three",
        "the letter R",
        "a red heart",
        "a green tree",
        "the blue letter K",
        "an orange star",
    ]
    tiles = []
    for guidance in (1, 2, 4, 8):
        words = [part for prompt in prompts for part in ("-p", prompt)]
        told = diffkit("sample", "tiny", *words, "--guidance", guidance, "--seed", 3, "--steps", 30,
                       "-o", out / str(guidance))  # fmt: skip
        for prompt, path in zip(prompts, told["images"], strict=True):
            tiles.append((f"{guidance}: {prompt}", shown(path)))
    save("samples.png", tiles, len(prompts))


def sdedit(out: Path) -> None:
    """The sketch by strength."""
    out.mkdir(parents=True)
    example_image(3, 32).save(out / "sketch.png")
    tiles = []
    for k, (prompt, strengths) in enumerate(
        (("a red heart", (0.2, 0.4, 0.6, 0.8, 0.9)), ("an orange star", (0.7, 0.75, 0.8, 0.85, 0.9)))
    ):
        tiles.append(("the sketch", shown(out / "sketch.png")))
        told = diffkit("sdedit", "-m", "tiny", "--prompt", prompt, "-o", out / str(k),
                       "--sweep", f"strength={','.join(map(str, strengths))}")  # fmt: skip
        for strength, path in zip(strengths, told["images"], strict=True):
            tiles.append((f"{prompt}: {strength}", shown(path)))
    save("sdedit.png", tiles, 6)


def inpaint(out: Path) -> None:
    """The right half of a letter, with its prompt and with those of others that begin alike."""
    out.mkdir(parents=True)
    prompt = "the letter O"
    whole = diffkit("sample", "tiny", "-p", prompt, "--guidance", 4, "--seed", 3, "-o", out / "whole.png")["images"][0]
    example_mask(32, 32).save(out / "mask.png")
    tiles = [("the picture", shown(whole)), ("the mask", shown(out / "mask.png", frame=True))]
    for k, other in enumerate((prompt, "the letter C", "the letter G", "the letter Q")):
        told = diffkit("inpaint", whole, out / "mask.png", "-m", "tiny", "--prompt", other, "--resample", 4,
                       "--seed", 1, "-o", out / f"{k}.png")  # fmt: skip
        tiles.append((other, shown(told["images"][0])))
    save("inpaint.png", tiles, len(tiles))


def anagrams(out: Path) -> None:
    """Pairs by half a turn; the first one turning."""
    tiles = []
    for k, (one, other, seed) in enumerate(ANAGRAMS):
        told = diffkit("anagram", "--p1", one, "--p2", other, "--view", "rotate_180", "-m", "tiny", "--seed", seed,
                       "-o", out / str(k), *(["--animate", "gif"] if k == 0 else []))  # fmt: skip
        upright = shown(told["images"][0])
        tiles += [(one, upright), (f"{other} (turned)", upright.rotate(180))]
        if k == 0:
            (moving,) = sorted((out / "0").glob("*.gif"))
            keep(moving, "anagram.gif")
    save("anagrams.png", tiles, 4)


def hybrids(out: Path) -> None:
    """From near, and from afar."""
    tiles = []
    for k, (far, near) in enumerate(HYBRIDS):
        told = diffkit("hybrid", "--p1", far, "--p2", near, "-m", "tiny", "-o", out / str(k))
        close = shown(told["images"][0])
        (low, _) = seen(make_hybrid([far, near], SMALL_SPLIT), to_tensor(close, 3))
        tiles += [(near, close), (f"{far} (from afar)", from_tensor(low)[0])]
    save("hybrids.png", tiles, 6)


def film(out: Path) -> None:
    """The denoising of six pictures."""
    words = [
        "a red heart",
        "the letter B",
        "a handwritten five",
        "a blue house",
        "the green letter S",
        "an orange star",
    ]
    told = diffkit("sample", "tiny", *(part for word in words for part in ("-p", word)), "--guidance", 4, "--seed", 3,
                   "--columns", 3, "--gif", "-o", out)  # fmt: skip
    keep(told["gif"], "denoising.gif")


if __name__ == "__main__":
    main()
