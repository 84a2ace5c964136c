"""A small x4 upscaler of 16 px pictures in the layout of Stable Diffusion's, whose own weights are too large for this.

It is a VAE of factor 4, a UNet of 7 channels with noise levels, and CLIP (its words those of the captions, its weights
random), in a folder that StableDiffusionUpscalePipeline opens. It learns black glyphs of the dataset `glyphs`: those of
the anagrams' natural pairs. Kept in outputs/upscalers under a hash of its settings, as the judges are.

MNIST is found as by glyph_judge.py. Run: python benchmarks/upscale_views.py tiny
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import OUTPUTS
from glyph_edits import prompt
from glyph_tricks import NATURAL
from torch import Tensor

from diffkit.data import open_dataset
from diffkit.data.glyphs.dataset import GlyphSource
from diffkit.data.glyphs.wording import GLYPHS
from diffkit.models import load
from diffkit.recipes.schema import DatasetSpec

SMALL, LARGE = 16, 64  # pixels: what is enlarged, and what comes out
NAMES = tuple(name for pair in NATURAL for name in pair)
SCALING = 0.08333  # of latents; the stock pipeline overwrites any other


@dataclass(frozen=True)
class Training:
    """All that the upscaler depends on; its hash names the folder."""

    pictures: int = 4000
    vae_steps: int = 800
    vae_batch: int = 8
    vae_widths: tuple[int, ...] = (16, 32, 32)
    vae_lr: float = 2e-3
    kl: float = 1e-4
    unet_steps: int = 1500
    unet_batch: int = 32
    unet_widths: tuple[int, ...] = (32, 64, 96)
    unet_lr: float = 1e-3
    text_width: int = 64
    dropped: float = 0.1  # share of pictures without their prompt
    noisiest: int = 800  # level of the noise on the small picture
    seed: int = 0
    version: int = 1  # of the code below

    def path(self) -> Path:
        """Return the upscaler's folder."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        return OUTPUTS / "upscalers" / f"glyphs-{digest[:12]}"


def pictures(split: str, count: int) -> tuple[Tensor, list[str]]:
    """Return black glyphs of the pairs on paper, uint8 (N, 3, 64, 64), and their names."""
    if "DIFFKIT_MNIST" not in os.environ and (folder := os.environ.get("DIFFKIT_TEST_DATA")):
        os.environ["DIFFKIT_MNIST"] = str(Path(folder) / "mnist")
    source = open_dataset(DatasetSpec(name=f"glyphs:,{15 * count}", split=split, resolution=LARGE)).source
    assert isinstance(source, GlyphSource)
    plan, wanted = source.plan, [GLYPHS.index(name) for name in NAMES]
    rows = np.flatnonzero(np.isin(plan.glyph, wanted) & (plan.shape < 0) & (plan.ink == 0))[:count]
    parts = [torch.from_numpy(source.render(some)) for some in np.array_split(rows, math.ceil(len(rows) / 256))]
    return torch.cat(parts).permute(0, 3, 1, 2).contiguous(), [GLYPHS[k] for k in plan.glyph[rows]]


def to_float(images: Tensor) -> Tensor:
    """Uint8 to [-1, 1]."""
    return images.float() / 127.5 - 1


def shrunk(images: Tensor, size: int) -> Tensor:
    """Bring pictures down, or up, bicubically."""
    return F.interpolate(images, (size, size), mode="bicubic", antialias=True).clamp(-1, 1)


def batches(count: int, size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield `steps` rows of positions, each drawn alike."""
    for _ in range(steps):
        yield torch.randint(count, (size,), generator=generator)


class Learner:
    """AdamW with one cycle of the learning rate; reports now and then."""

    def __init__(self, name: str, network: torch.nn.Module, lr: float, steps: int) -> None:
        self.name, self.network, self.count = name, network.train(), 0
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=1e-2)
        self.cycle = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, lr, total_steps=steps, pct_start=0.1)

    def learn(self, loss: Tensor) -> None:
        """Take one step."""
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.cycle.step()
        self.count += 1
        if self.count % 200 == 0:
            print(f"{self.name}, step {self.count}: loss {float(loss):.4f}", flush=True)


def train_vae(training: Training, images: Tensor, generator: torch.Generator) -> Any:
    """Return a VAE of factor 4; half of what it sees is upside down, so that turned glyphs are nothing new to it."""
    from diffusers import AutoencoderKL

    blocks = len(training.vae_widths)
    vae = AutoencoderKL(
        block_out_channels=training.vae_widths, latent_channels=4, norm_num_groups=8, sample_size=LARGE,
        mid_block_add_attention=False, down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
    )  # fmt: skip
    learner = Learner("VAE", vae, training.vae_lr, training.vae_steps)
    for rows in batches(len(images), training.vae_batch, training.vae_steps, generator):
        real = to_float(images[rows])
        real = torch.where(torch.rand(len(rows), 1, 1, 1, generator=generator) < 0.5, real.flip(2, 3), real)
        posterior = vae.encode(real).latent_dist
        made = vae.decode(posterior.sample(generator)).sample
        learner.learn((made - real).abs().mean() + training.kl * posterior.kl().mean() / posterior.mean[0].numel())
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def spread(vae: Any, factor: float) -> float:
    """Let a VAE's latents be larger by a factor, its pictures as they are; return the factor."""
    before, after = vae.quant_conv, vae.post_quant_conv
    channels = before.out_channels // 2  # the mean, then the logarithm of the variance
    before.weight[:channels] *= factor
    before.bias[:channels] *= factor
    before.bias[channels:] += 2 * math.log(factor)
    after.weight /= factor
    vae.register_to_config(scaling_factor=SCALING)
    return factor


def text_parts(training: Training, folder: Path) -> tuple[Any, Any]:
    """Return a CLIP tokenizer in which every word of the captions is one token, and an encoder of random weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    words = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<|startoftext|>", "<|endoftext|>"]
    trainer = trainers.BpeTrainer(special_tokens=special, end_of_word_suffix="</w>", show_progress=False)
    words.train_from_iterator([prompt(name).lower() for name in NAMES], trainer)
    folder.mkdir(parents=True, exist_ok=True)
    words.model.save(str(folder))  # vocab.json and merges.txt
    tokenizer = CLIPTokenizer.from_pretrained(str(folder), model_max_length=77)
    begin, end = tokenizer.convert_tokens_to_ids(special)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=training.text_width, intermediate_size=2 * training.text_width,
        num_hidden_layers=2, num_attention_heads=4, bos_token_id=begin, eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    return tokenizer, CLIPTextModel(config).eval()


def untrained(training: Training, vae: Any, folder: Path) -> Any:
    """Return the stock pipeline around a VAE; schedulers as the stock upscaler has them."""
    from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionUpscalePipeline, UNet2DConditionModel

    tokenizer, encoder = text_parts(training, folder / "tokenizer")
    later = len(training.unet_widths) - 1
    unet = UNet2DConditionModel(
        sample_size=SMALL, in_channels=7, out_channels=4, num_class_embeds=1000, layers_per_block=1, norm_num_groups=8,
        block_out_channels=training.unet_widths, cross_attention_dim=training.text_width, attention_head_dim=4,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * later),
        up_block_types=(*("CrossAttnUpBlock2D",) * later, "UpBlock2D"),
    )  # fmt: skip
    noise: dict[str, Any] = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "scaled_linear"}
    scheduler = DDIMScheduler(**noise, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False)
    return StableDiffusionUpscalePipeline(
        vae, encoder, tokenizer, unet, DDPMScheduler(**noise), scheduler, max_noise_level=training.noisiest
    )


def train_unet(training: Training, pipe: Any, texts: Tensor, data: tuple[Tensor, ...], random: torch.Generator) -> None:
    """Teach v from noisy latents (N, 4, 16, 16), beside noisy small pictures; the last of `texts` is no prompt."""
    latents, small, labels = data
    learner = Learner("UNet", pipe.unet, training.unet_lr, training.unet_steps)
    for rows in batches(len(latents), training.unet_batch, training.unet_steps, random):
        x0, noise = latents[rows], torch.randn(len(rows), 4, SMALL, SMALL, generator=random)
        t, level = (torch.randint(top, (len(rows),), generator=random) for top in (1000, training.noisiest))
        low = small[rows]
        low = pipe.low_res_scheduler.add_noise(low, torch.randn(low.shape, generator=random), level)
        kept = torch.rand(len(rows), generator=random) >= training.dropped
        text = texts[torch.where(kept, labels[rows], len(texts) - 1)]
        x = torch.cat([pipe.scheduler.add_noise(x0, noise, t), low], dim=1)
        made = pipe.unet(x, t, text, class_labels=level).sample
        learner.learn(F.mse_loss(made, pipe.scheduler.get_velocity(x0, noise, t)))


def first_half(training: Training, images: Tensor, folder: Path) -> None:
    """Write the pipeline with a trained VAE; model_index.json comes last."""
    random = torch.Generator().manual_seed(training.seed)
    with torch.random.fork_rng(devices=[]):  # initial weights
        torch.manual_seed(training.seed)
        vae = train_vae(training, images, random)
        with torch.no_grad():
            spread(vae, 1 / (SCALING * float(vae.encode(to_float(images[:512])).latent_dist.mean.std())))
        untrained(training, vae, folder).save_pretrained(folder)


def train(training: Training) -> dict[str, Any]:
    """Write the upscaler's folder; the record comes last. A training that was broken off keeps its VAE."""
    from diffusers import StableDiffusionUpscalePipeline

    start, folder = time.perf_counter(), training.path()
    images, names = pictures("train", training.pictures)
    if not (folder / "model_index.json").is_file():
        first_half(training, images, folder)
    pipe = StableDiffusionUpscalePipeline.from_pretrained(folder)
    with torch.no_grad():
        latents = torch.cat([pipe.vae.encode(to_float(some)).latent_dist.mean for some in images.split(64)])
    # Through the family, so that a prompt gives here the embedding that it gives later.
    texts = load(str(folder), device="cpu").encode([*map(prompt, NAMES), ""]).tensors["encoder_hidden_states"]
    small = torch.cat([shrunk(to_float(some), SMALL) for some in images.split(512)])
    labels = torch.tensor([NAMES.index(name) for name in names])
    random = torch.Generator().manual_seed(training.seed + 1)
    train_unet(training, pipe, texts, (latents * SCALING, small, labels), random)
    pipe.unet.eval().save_pretrained(folder / "unet")
    facts = {"training": asdict(training), "seconds": round(time.perf_counter() - start)}
    (folder / "record.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return facts


def load_upscaler(*, retrain: bool = False) -> tuple[Any, dict[str, Any]]:
    """Return the upscaler, trained now or earlier, and what is known of its training."""
    training = Training()
    record = training.path() / "record.json"
    if retrain:
        shutil.rmtree(training.path(), ignore_errors=True)
    facts = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else train(training)
    return load(str(training.path()), device="cpu", dtype="fp32"), facts
