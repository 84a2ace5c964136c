"""The model card of a run, for the Hub and for its folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from diffkit.models.course_networks import BasicUNet, CS180UNet
from diffkit.models.meta import RunMeta
from diffkit.models.text_encoder import vocabulary
from diffkit.models.text_network import TextNetwork, TrainedNetwork
from diffkit.recipes import reading as recipes
from diffkit.recipes.schema import ONE_STEP, Recipe


def model_card(recipe: Recipe, meta: RunMeta, summary: dict[str, Any], folder: Path, network: TrainedNetwork) -> str:
    """Return the model card: what was trained on what, the measured loss, a sample grid, how to use it, the recipe."""
    grids = sorted((folder / "samples").glob("step-*-ema.png")) or sorted((folder / "samples").glob("step-*-raw.png"))
    picture = f"![Samples after {summary['step']} updates](samples/{grids[-1].name})\n" if grids else ""
    conditional = bool(meta.class_names)
    losses = [f"training loss {summary['loss']:.5f}"] if summary["loss"] is not None else []
    if summary.get("validation_loss") is not None:
        losses.append(f"validation loss {summary['validation_loss']:.5f}")
    base = f"base_model: {recipe.model.pretrained}\n" if _hub_like(recipe.model.pretrained) else ""
    data = f"datasets:\n- {recipe.dataset.name}\n" if _hub_like(recipe.dataset.name) else ""
    if isinstance(network, TextNetwork):
        kind, classes, options = "text-to-image", _words(network, meta), f'--prompt "{_example(network)}" --guidance 4'
        python = _STOCK_TEXT.replace("PROMPT", _example(network))
    elif conditional:
        kind, classes = "class-conditional-image-generation", f"Classes: {', '.join(meta.class_names)}.\n\n"
        options, python = f"--class {meta.class_names[0]} --guidance 2", ""
    else:
        kind, classes, options, python = "unconditional-image-generation", "", "", _STOCK
    # The stock pipeline would step with what these do not predict, or show pixels in another range, and it knows a
    # course's network only where this package is imported.
    if meta.std or meta.prediction in (*ONE_STEP, "linear_mix") or isinstance(network.unet, CS180UNet | BasicUNet):
        python = ""
    use = " ".join(filter(None, ("diffkit sample", folder.name, options, "-n 16")))
    source = f" It goes on from `{recipe.model.pretrained}`." if recipe.model.pretrained else ""
    return f"""---
library_name: diffusers
tags:
- diffkit
- {kind}
- diffusion
{base}{data}---

# {folder.resolve().name}

A diffusion model of {meta.resolution} px images, trained with diffkit on `{recipe.dataset.name}`.{source}
It predicts {meta.prediction}; {summary["step"]} updates, {", ".join(losses) or "no loss recorded"}.

{picture}
{classes}## Use

```
{use}
```
{python}
## Limits

It draws what its dataset holds and nothing else; look at the dataset for its licence and its biases.

## Recipe

```yaml
{recipes.dump_yaml(recipe).strip()}
```
"""


def _example(network: TextNetwork) -> str:
    return max(network.captions[:1000], key=lambda caption: (-len(caption), caption)).replace('"', "")


def _words(network: TextNetwork, meta: RunMeta) -> str:
    """The part of a card that says which prompts the model knows."""
    captions = network.captions
    words = vocabulary(network.tokenizer)
    shown = ", ".join(f"`{caption[:80]}`" for caption in captions[:: max(1, len(captions) // 8)][:8])
    listed = ", ".join(words[:200]) + (", ..." if len(words) > 200 else "")
    return (
        f"## Prompts\n\nTrained on {len(captions):,} different captions, such as {shown}. "
        f"The text encoder is a small T5 that was {meta.text_encoder}"
        f"{' at its random weights' if meta.text_encoder == 'frozen' else ''}: it knows no other words than these "
        f"{len(words):,}, in lower case: {listed}.\n\n"
    )


_STOCK_TEXT = """
```python
from diffusers import IFPipeline

pipeline = IFPipeline.from_pretrained("FOLDER_OR_ID", safety_checker=None, feature_extractor=None, watermarker=None)
image = pipeline("PROMPT", guidance_scale=4, num_inference_steps=50).images[0]
```
"""

_STOCK = """
```python
from diffusers import DDPMPipeline

image = DDPMPipeline.from_pretrained("FOLDER_OR_ID")().images[0]
```
"""


def _hub_like(name: str | None) -> bool:
    """Say whether a name is an id on the Hub, OWNER/NAME, and no folder."""
    return name is not None and re.fullmatch(r"[^./~][^/]*/[^/]+", name) is not None and not Path(name).exists()
