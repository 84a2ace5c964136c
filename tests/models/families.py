"""The table family x command: a maker of a tiny model per family, and a command line per command.

A new family adds its row to `FAMILIES`, and nothing else. What it does otherwise than the others, it says there: other
numbers of network calls, commands of its own, and the commands that it refuses, with what the refusal names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
from tiny_if import make_tiny_if
from tiny_pixnerd_pipeline import make_pixnerd, make_pixnerd_class
from tiny_prx import make_prx, make_prx_pixel

from diffkit.engine.schedules import make_noise_scheduler
from diffkit.models.meta import RunMeta
from diffkit.models.network import build_network, save_pipeline
from diffkit.recipes.schema import ModelSpec, NoiseSpec
from tests.models.conftest import make_dit, make_sd, make_sd3, make_sdxl


class Cell(NamedTuple):
    """A command line without its model and without what it is told, and the network calls that it takes.

    In the line, `|` is a space within a word; MODEL, the names of `Family.words` and those of the files of
    `test_families.py` are put in.
    """

    line: str
    calls: int


# On the way up both ways of inverting ask twice at each of 3 levels; then 3 steps down, and 3 more to what is edited.
COMMANDS: dict[str, Cell] = {
    "sample": Cell("sample MODEL TOLD -n 3 --batch-size 2 --steps 3", 6),
    "sample freely": Cell("sample MODEL --steps 2 --scheduler SOLVER", 2),
    "sample fresh": Cell("sample MODEL TOLD --steps 3 --scheduler FRESH --guidance 2 --guidance-interval 0:0.5", 3),
    "sample sweep": Cell("sample MODEL --steps 2 --sweep SWEEP --sweep guidance=1,4", 2),
    "sample guided": Cell("sample MODEL TOLD --steps 3 --guide color:#a05050@3", 3),
    "sdedit": Cell("sdedit drawing.png -m MODEL TOLD --strength 0.5 --steps 4 -n 2", 2),
    "sdedit mask": Cell("sdedit drawing.png -m MODEL TOLD --mask mask.png --steps 2", 2),
    "inpaint": Cell("inpaint drawing.png mask.png -m MODEL TOLD --steps 4 --jump 2 --resample 2", 6),
    "anagram direct": Cell("anagram -m MODEL PAIR --view rotate_180 --latent direct --steps 3 -n 2", 3),
    "anagram decode": Cell("anagram -m MODEL PAIR --view negate --steps 3", 3),
    "anagram best-of": Cell("anagram -m MODEL PAIR --steps 4 -n 1 --best-of 3 --scorer model", 8),
    "hybrid": Cell("hybrid -m MODEL PAIR --split low_high:2 --steps 3", 3),
    "hybrid guided": Cell("hybrid -m MODEL PAIR --split low_high:2 --steps 2 --guide color:#a05050@3", 2),
    "interpolate": Cell("interpolate -m MODEL TOLD --frames 3 --steps 3", 3),
    "interpolate images": Cell("interpolate drawing.png other.png -m MODEL --frames 3 --steps 3 --refine 1", 9),
    "invert": Cell("invert drawing.png -m MODEL TOLD EDIT --steps 3 --refine 1", 12),
    "denoise": Cell("denoise drawing.png -m MODEL TOLD --timesteps 300,700 --stride 250", 7),
}  # fmt: skip

# Refused by models that know classes; and by those that know prompts.
OF_CLASSES = {
    "prompt": ("sample MODEL -p a|shark", "--prompt"),
    "misspelled": ("sample MODEL -c trench", "'trench'"),
    "negative prompt": ("sample MODEL -c tench --negative-prompt blurry", "--negative-prompt"),
}
OF_PROMPTS = {"class": ("sample MODEL -c tench", "--class")}

# Where the first level is (as good as) pure noise it holds nothing of an image, so that inverting ends one level below,
# at the second of 3.
NO_SIGNAL = {"interpolate images": 6, "invert": 8}
# Flows refuse the samplers of diffusion; Heun's method asks twice a step but for the last one.
OF_FLOWS = {"sampler of diffusion": ("sample MODEL --scheduler ddim", "flow")}
CALLS_OF_FLOWS = NO_SIGNAL | {"sample freely": 3}

# Further commands of models of pixels, and what they refuse: their pictures are no latents.
IN_PIXELS = {
    "velocity": Cell("velocity drawing.png -m MODEL TOLD --times 0.25,0.5", 2),
    "anagram guided": Cell("anagram -m MODEL PAIR --view jigsaw:4 --steps 2 --guide color:#5050a0@20", 2),
}
OF_PIXELS: dict[str, tuple[str, str] | str] = {
    "anagram direct": "--latent",
    "upscale": ("upscale drawing.png -m MODEL -p x", "MODEL"),
}

# Refused by every family with latents that draws from noise, and what the refusal names.
OF_LATENTS = {
    "velocity": ("velocity drawing.png -m MODEL TOLD", "pixels"),
    "upscale": ("upscale drawing.png -m MODEL -p x", "MODEL"),
    "negate direct": ("anagram -m MODEL PAIR --view negate --latent direct", "negate"),
    "raw": ("sample MODEL --raw", "--raw"),
    "finetune": ("finetune --pretrained MODEL --dataset digits", "NETWORK"),
}
NO_RUN = {name: OF_LATENTS[name] for name in ("raw", "finetune")}


@dataclass(frozen=True)
class Family:
    """A row of the table.

    Attributes:
        make: Writes a tiny repository with random weights, of pictures of 16x16 pixels.
        network: Class of its network, whose calls are counted.
        words: What is put into the lines of `COMMANDS`, by its name there.
        calls: Other numbers of network calls than in `COMMANDS`, by command.
        commands: Commands of its own.
        refused: Commands that it refuses, by name: of `COMMANDS` what the refusal names, of others the line, too.
        parts: Its parts, as `inspect` names them.
        family: The name of the family's file, where the row has another one.
    """

    make: Callable[[Path], Any]
    network: str
    words: Mapping[str, str]
    calls: Mapping[str, int] = field(default_factory=dict)
    commands: Mapping[str, Cell] = field(default_factory=dict)
    refused: Mapping[str, tuple[str, str] | str] = field(default_factory=dict)
    parts: frozenset[str] = frozenset()
    family: str = ""

    def line(self, text: str, model: str) -> list[str]:
        """Return a command line's words, with the family's and the model's in their places."""
        found = []
        for word in text.split():
            found += self.words.get(word, model if word == "MODEL" else word).split()
        return [word.replace("|", " ") for word in found]

    def cells(self) -> dict[str, Cell]:
        """Return the commands that it runs, with its own numbers of network calls."""
        shared = {name: cell._replace(calls=self.calls.get(name, cell.calls)) for name, cell in COMMANDS.items()}
        return {name: cell for name, cell in {**shared, **self.commands}.items() if name not in self.refused}

    def refusals(self) -> dict[str, tuple[str, str]]:
        """Return the lines that it refuses, and what the refusal names."""
        found = {}
        for name, told in self.refused.items():
            line, named = (COMMANDS[name].line, told) if isinstance(told, str) else told
            found[name] = (line, self.network if named == "NETWORK" else named)
        return found


def make_run(folder: Path, prediction: str) -> None:
    """Write a pipeline of diffkit's own training, told a class."""
    torch.manual_seed(0)
    network = build_network(ModelSpec(preset="tiny", class_conditioning="embedding"), shape=(3, 16, 16), num_classes=3)
    with torch.no_grad():  # fresh networks hardly tell classes apart
        network.unet.class_embedding.weight.mul_(20)
    meta = RunMeta(
        prediction=prediction, conditioning="embedding", class_names=["tench", "crane", "maillot"], resolution=16,
        channels=3, null_class=True,
    )  # fmt: skip
    save_pipeline(folder, network, make_noise_scheduler(NoiseSpec(prediction=prediction)), meta)


DIFFUSION = {"SOLVER": "dpm++", "FRESH": "ddpm"}
FLOW = {"SOLVER": "flow_heun", "FRESH": "flow_dpm++sde"}
CLASSES = {
    "TOLD": "-c tench", "OTHER": "-c maillot", "PAIR": "--c1 tench --c2 maillot", "EDIT": "--edit-class maillot",
    "SWEEP": "class=tench,4",
}  # fmt: skip
PROMPTS = {
    "TOLD": "-p a|cat", "OTHER": "-p two|ducks", "PAIR": "--p1 a|cat --p2 two|ducks", "EDIT": "--edit-prompt two|ducks",
    "SWEEP": "prompt=a|cat,two|ducks",
}  # fmt: skip
NAMES = {"0": "tench, Tinca tinca", "1": "crane", "2": "great white shark, white shark", "3": "crane", "4": "maillot"}

FAMILIES: dict[str, Family] = {
    "ddpm": Family(
        partial(make_run, prediction="epsilon"), "UNet2DModel", DIFFUSION | CLASSES | {"SWEEP": "class=tench,2"},
        calls=NO_SIGNAL,
        commands=IN_PIXELS, refused=OF_PIXELS | OF_CLASSES, parts=frozenset({"unet", "scheduler"}),
    ),
    "flow": Family(
        partial(make_run, prediction="flow"), "UNet2DModel", FLOW | CLASSES | {"SWEEP": "class=tench,2"},
        calls=CALLS_OF_FLOWS, commands=IN_PIXELS, refused=OF_PIXELS | OF_CLASSES | OF_FLOWS,
        parts=frozenset({"unet", "scheduler"}), family="ddpm",
    ),
    "deepfloyd": Family(
        partial(make_tiny_if, stage=1, sample_size=16), "UNet2DConditionModel", DIFFUSION | PROMPTS,
        commands=IN_PIXELS, refused=OF_PIXELS | OF_PROMPTS | NO_RUN,
        parts=frozenset({"unet", "scheduler", "text_encoder", "tokenizer"}),
    ),
    "pixnerd": Family(
        partial(make_pixnerd, sample_size=16), "PixNerdTransformer2DModel", FLOW | PROMPTS, calls=CALLS_OF_FLOWS,
        commands=IN_PIXELS | {
            "authors": Cell("sample MODEL TOLD --scheduler flow_adams --shift 3 --guidance 4 --steps 3", 3),
        },
        refused=OF_PIXELS | OF_PROMPTS | OF_FLOWS | NO_RUN,
        parts=frozenset({"transformer", "scheduler", "text_encoder", "tokenizer"}),
    ),
    "pixnerd_class": Family(
        partial(make_pixnerd_class, sample_size=16, id2label={0: "tench", 1: "crane", 2: "maillot"}),
        "PixNerdClassTransformer2DModel", FLOW | CLASSES, calls=CALLS_OF_FLOWS,
        commands=IN_PIXELS | {"authors": Cell("sample MODEL TOLD --steps 4 --guidance-interval 0.1:1", 4)},
        refused=OF_PIXELS | OF_CLASSES | OF_FLOWS | NO_RUN, parts=frozenset({"transformer", "scheduler"}),
    ),
    "dit": Family(
        partial(make_dit, id2label=NAMES), "DiTTransformer2DModel", DIFFUSION | CLASSES,
        commands={"sample all": Cell("sample MODEL -c all --steps 2", 2)},
        refused=OF_LATENTS | OF_CLASSES,
        parts=frozenset({"transformer", "vae", "scheduler"}),
    ),
    "stable_diffusion": Family(
        make_sd, "UNet2DConditionModel", DIFFUSION | PROMPTS, refused=OF_LATENTS | OF_PROMPTS,
        parts=frozenset({"unet", "vae", "scheduler", "text_encoder", "tokenizer"}),
    ),
    "stable_diffusion_xl": Family(
        make_sdxl, "UNet2DConditionModel", DIFFUSION | PROMPTS, refused=OF_LATENTS | OF_PROMPTS,
        parts=frozenset(
            {"unet", "vae", "scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"}
        ),
    ),
    "stable_diffusion_3": Family(
        make_sd3, "SD3Transformer2DModel", FLOW | PROMPTS,
        calls=CALLS_OF_FLOWS, refused=OF_LATENTS | OF_PROMPTS | OF_FLOWS,
        parts=frozenset(
            {"transformer", "vae", "scheduler", "text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer",
             "tokenizer_2", "tokenizer_3"}
        ),
    ),
    "prx": Family(
        make_prx, "PRXTransformer2DModel", FLOW | PROMPTS,
        calls=CALLS_OF_FLOWS, refused=OF_LATENTS | OF_PROMPTS | OF_FLOWS,
        commands={"steps that suit it": Cell("sample MODEL TOLD", 28)},
        parts=frozenset({"transformer", "vae", "scheduler", "text_encoder", "tokenizer"}),
    ),
    "prx_deep": Family(
        partial(make_prx, deep=True), "PRXTransformer2DModel", FLOW | PROMPTS,
        calls=CALLS_OF_FLOWS, refused=OF_LATENTS | OF_PROMPTS | OF_FLOWS,
        parts=frozenset({"transformer", "vae", "scheduler", "text_encoder", "tokenizer"}), family="prx",
    ),
    "prx_pixel": Family(
        make_prx_pixel, "PRXTransformer2DModel", FLOW | PROMPTS, calls=CALLS_OF_FLOWS,
        commands=IN_PIXELS, refused=OF_PIXELS | OF_PROMPTS | OF_FLOWS | NO_RUN,
        parts=frozenset({"transformer", "scheduler", "text_encoder", "tokenizer"}), family="prx",
    ),
}  # fmt: skip
if not hasattr(diffusers, "PRXPixelPipeline"):  # before 0.39, whose transformer lacks what pixels need
    del FAMILIES["prx_pixel"]
