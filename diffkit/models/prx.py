"""PRX: text to image by a flow, on latents of an AutoencoderKL or AutoencoderDC (PRX) or on pixels (PRXPixel).

The transformer reads the prompt's tokens beside the patches of the sample, padding hidden. On latents it gives the
velocity; on pixels x0, from noise of twice the usual size. Its timestep is the flow's sigma, from 1 (noise) to 0.
Source: diffusers' `PRXPipeline` and `PRXPixelPipeline`; the flow: Lipman et al., arXiv:2210.02747; predicting x0 with
a velocity's loss: Li & He, arXiv:2511.13720.
"""

from __future__ import annotations

import html
import logging
from collections.abc import Mapping
from functools import cache
from inspect import signature
from typing import TYPE_CHECKING, Any, Self

import diffusers
import torch
from torch import Tensor

from diffkit.errors import ModelError
from diffkit.models.configuration import field_of, load_flow, read_network, read_record, whole_number, wrong
from diffkit.models.kinds import network_class
from diffkit.models.latents import vae_config
from diffkit.models.options import LoadOptions
from diffkit.models.pixels import PixelCodec
from diffkit.models.repo import Repo
from diffkit.models.text_encodings import LoadedPart, TextEncoding, TextPart, installed
from diffkit.models.text_model import TextModel
from diffkit.models.weights import load_config
from diffkit.types import Cond, ModelInfo

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

LOG = logging.getLogger("diffkit.models")

# As the pipelines draw by default; the models' cards ask for guidance 5, here that of several prompts in one picture.
GUIDANCE, ILLUSION_GUIDANCE, STEPS = 4.0, 5.0, 28
# Constants of the stock pixel pipeline: the least sigma that x0 is made a velocity with, and what its index may say.
LEAST_SIGMA, NOISE_SCALE, MAX_TOKENS = 0.05, 2.0, 256
_SIZES = {"PRXPipeline": 512, "PRXPixelPipeline": 1024}
_PIXELS, _INDEX = "PRXPixelPipeline", "model_index.json"
_MOST_TOKENS = 1 << 13  # positions of T5Gemma; a tokenizer without a length says 10^30


class _Masked(TextEncoding):
    """The last hidden states of a text encoder, and which of its tokens are no padding."""

    half = torch.bfloat16

    def length(self, repo: Repo) -> int:
        """Return the number of tokens, padding included."""
        raise NotImplementedError

    def check(self, repo: Repo) -> None:
        """Refuse, with a `ModelError`, parts and a length that are not its own."""
        self.parts(repo)
        self.length(repo)

    def embed(self, repo: Repo, parts: Mapping[str, LoadedPart], prompt: str) -> dict[str, Tensor]:
        """Return `encoder_hidden_states` (L, D) and `attention_mask` (L,), bool."""
        part = parts["text_encoder"]
        tokens = part.tokens(self.clean(prompt), self.length(repo))
        mask = tokens.attention_mask.to(part.device).bool()
        states = part.encoder(tokens.input_ids.to(part.device), attention_mask=mask).last_hidden_state
        return {"encoder_hidden_states": states[0], "attention_mask": mask[0]}


class T5Gemma(_Masked):
    """PRX's: the encoder of T5Gemma, prompts cleaned as captions were in training."""

    name = "t5gemma"

    def parts(self, repo: Repo) -> tuple[TextPart, ...]:
        """Return the encoder alone, which is no class of its own to transformers."""
        encoder = "models.t5gemma.modeling_t5gemma.T5GemmaEncoder"
        _named(repo, "tokenizer", ("GemmaTokenizerFast", "GemmaTokenizer"))
        _named(repo, "text_encoder", ("T5GemmaEncoder",))
        files = (("tokenizer.json",),)
        return (TextPart(tokenizer_class="GemmaTokenizer", encoder_class=encoder, vocabularies=files),)

    def length(self, repo: Repo) -> int:
        """Return what the tokenizer's configuration says."""
        config = load_config(repo, "tokenizer", "tokenizer_config.json")
        return _tokens(config, "model_max_length", f"{repo.id}: tokenizer/tokenizer_config.json")

    def label(self, repo: Repo, eight_bit: bool = False) -> str:
        """Name the encoder, its number of tokens and what is done to prompts."""
        return f"t5gemma-{self.length(repo)}" + ("-cleaned" if installed("ftfy") else "-lower")

    def clean(self, prompt: str) -> str:
        """Clean a prompt by diffusers' rules, those of the training; without ftfy only lower-case and strip it."""
        if not installed("ftfy"):
            _say_once(
                "ftfy is not installed: prompts are lower-cased only, and PRX knows cleaned ones (pip install ftfy)"
            )
            return prompt.lower().strip()
        from diffusers.pipelines.prx.pipeline_prx import TextPreprocessor

        return str(TextPreprocessor().clean_text(prompt))


class Qwen3VL(_Masked):
    """PRXPixel's: the language model of Qwen3-VL, prompts as they are but for broken characters."""

    name = "qwen3vl"

    def parts(self, repo: Repo) -> tuple[TextPart, ...]:
        """Return the language model, of the class that the index names."""
        _named(repo, "tokenizer", ("Qwen2TokenizerFast", "Qwen2Tokenizer"))
        kind = _named(repo, "text_encoder", ("Qwen3VLTextModel", "Qwen3Model"))
        return (TextPart(tokenizer_class="Qwen2Tokenizer", encoder_class=kind),)

    def length(self, repo: Repo) -> int:
        """Return what the index says; the tokenizer's own number is far larger."""
        return _tokens({"prompt_max_tokens": MAX_TOKENS, **_index(repo)}, "prompt_max_tokens", f"{repo.id}: {_INDEX}")

    def label(self, repo: Repo, eight_bit: bool = False) -> str:
        """Name the encoder, its number of tokens and what is done to prompts."""
        return f"qwen3vl-{self.length(repo)}" + ("-fixed" if installed("ftfy") else "-unescaped")

    def clean(self, prompt: str) -> str:
        """Mend wrongly decoded characters (with ftfy alone) and HTML's, which may be written twice."""
        if not installed("ftfy"):
            _say_once("ftfy is not installed: wrongly decoded characters in prompts stay (pip install ftfy)")
            return html.unescape(html.unescape(prompt)).strip()
        from diffusers.pipelines.prx.pipeline_prx_pixel import _basic_clean

        return str(_basic_clean(prompt))


TEXT_ENCODER: dict[str, _Masked] = {"PRXPipeline": T5Gemma(), _PIXELS: Qwen3VL()}


class PRX(TextModel):
    """PRX on latents (the `Model` protocol); arguments as of `TextModel`."""

    encoding = TEXT_ENCODER["PRXPipeline"]

    def __init__(self, repo: Repo, info: ModelInfo, options: LoadOptions) -> None:
        super().__init__(repo, info, options)
        self.codec: Any = self._codec()

    def _codec(self) -> Any:
        return self.latent_codec(deep=True)

    def at(self, height: int, width: int) -> Self:
        """Return this model for samples of another size, sharing all weights.

        Raises:
            UsageError: A side that cannot be cut into patches.
        """
        other = self._resized(height, width)
        if not self.info.latent:
            other.codec = other._codec()  # a codec of pixels knows its size
        return other

    def predict(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Call the transformer, padding hidden."""
        out: Tensor = self.network(
            hidden_states=x, timestep=(t.float() / self.info.timesteps).expand(len(x)),
            encoder_hidden_states=cond.tensors["encoder_hidden_states"].to(self.dtype),
            attention_mask=cond.tensors["attention_mask"].to(self.device), return_dict=False,
        )[0]  # fmt: skip
        return out


class PRXPixel(PRX):
    """PRX on pixels, whose network gives x0."""

    encoding = TEXT_ENCODER[_PIXELS]

    def _codec(self) -> PixelCodec:
        return PixelCodec(self.info.size, self.info.size)


def info(repo: Repo) -> ModelInfo:
    """Say what a PRX is, from its configuration alone.

    Raises:
        ModelError: A field is missing or contradicts another one, or this diffusers does not know it; it is named.
    """
    network = read_network(repo, "transformer", "PRXTransformer2DModel")
    where, config, encoding = field_of(repo, network), network.config, TEXT_ENCODER[repo.pipeline]
    pixels = repo.pipeline == _PIXELS
    _check_known(repo, config, where)
    channels, patch = (whole_number(config, key, where) for key in ("in_channels", "patch_size"))
    _check_network(config, where)
    if pixels and channels != 3:
        raise wrong(where, "in_channels", channels, "3 (RGB): it draws pixels")
    factor = 1 if pixels else vae_config(repo, channels, deep=True)[1]
    side = _side(repo, factor * patch)
    encoding.check(repo)
    _check_width(repo, whole_number(config, "context_in_dim", where), where)
    record, _ = read_record(repo)
    return ModelInfo(
        id=repo.id, revision=repo.revision, family="prx", pipeline=repo.pipeline, channels=3, size=(side, side),
        sample=(channels, side // factor, side // factor), network=network, scheduler=_scheduler(repo, pixels),
        conditioning="text", text_encoder=encoding.name, null=True, guidance=GUIDANCE,
        illusion_guidance=ILLUSION_GUIDANCE, steps=STEPS, latent=not pixels,
        size_multiple=factor * network.config["patch_size"], record=record,
    )  # fmt: skip


def _index(repo: Repo) -> dict[str, Any]:
    return {key: value for key, value in (repo.json(_INDEX) or {}).items() if value is not None}


def _scheduler(repo: Repo, pixels: bool) -> SchedulerMixin:
    """Load the scheduler, and register what the stock pipeline does beside it; see `engine/flows.py`."""
    scheduler = load_flow(repo)
    scheduler.register_to_config(timestep_spacing="linspace")  # the grid of the class itself, as the pipelines take it
    if pixels:
        scale = _index(repo).get("noise_scale", NOISE_SCALE)
        if not _positive(scale):
            raise wrong(f"{repo.id}: {_INDEX}", "noise_scale", scale, "a positive number")
        scheduler.register_to_config(prediction_type="sample", noise_scale=float(scale), least_sigma=LEAST_SIGMA)
    return scheduler


def _side(repo: Repo, unit: int) -> int:
    """Return the side of the pictures that it draws, pixels."""
    where, key = f"{repo.id}: {_INDEX}", "default_sample_size"
    side = whole_number({key: _SIZES[repo.pipeline], **_index(repo)}, key, where)
    if side % unit:
        raise wrong(where, key, side, f"a multiple of {unit}, the side of a patch in pixels")
    return side


def _check_known(repo: Repo, config: Mapping[str, Any], where: str) -> None:
    """Refuse what an older diffusers would pass over in silence."""
    known = signature(network_class("PRXTransformer2DModel").__init__).parameters
    fresh = [key for key in ("bottleneck_size", "resolution_embeds") if config.get(key) and key not in known]
    if fresh or not hasattr(diffusers, repo.pipeline):
        what = f"{where}: {fresh[0]}" if fresh else f"{repo.id}: {repo.pipeline}"
        raise ModelError(
            f"{what} needs diffusers 0.39 or later, and {diffusers.__version__} is installed",
            "pip install 'diffusers>=0.39'",
        )


def _check_network(config: Mapping[str, Any], where: str) -> None:
    """Refuse a configuration that no transformer can be made of."""
    width, heads, _ = (whole_number(config, key, where) for key in ("hidden_size", "num_heads", "depth"))
    if width % heads:
        raise wrong(where, "num_heads", heads, f"a divisor of hidden_size {width}")
    axes = config.get("axes_dim")
    axes = [32, 32] if axes is None else axes
    good = isinstance(axes, (list, tuple)) and len(axes) == 2 and all(type(a) is int and a > 0 for a in axes)
    if not good or sum(axes) != width // heads or any(a % 2 for a in axes):
        raise wrong(where, "axes_dim", axes, f"two even numbers whose sum is {width // heads}, the width of a head")
    for key in ("mlp_ratio", "theta", "time_factor", "time_max_period"):
        if key in config and not _positive(config[key]):
            raise wrong(where, key, config[key], "a positive number")
    if (bottleneck := config.get("bottleneck_size")) is not None and (type(bottleneck) is not int or bottleneck < 1):
        raise wrong(where, "bottleneck_size", bottleneck, "a positive whole number, or null")
    if type(config.get("resolution_embeds", False)) is not bool:
        raise wrong(where, "resolution_embeds", config["resolution_embeds"], "true or false")


def _check_width(repo: Repo, width: int, where: str) -> None:
    """Refuse a network whose text is of another width than its encoder's, where that one is at hand."""
    config = repo.json("text_encoder/config.json") or {}
    nested = config.get("encoder")
    given = config.get("hidden_size", nested.get("hidden_size") if isinstance(nested, Mapping) else None)
    if given is not None and given != width:
        raise wrong(where, "context_in_dim", width, f"{given}, the hidden_size in text_encoder/config.json")


def _named(repo: Repo, part: str, kinds: tuple[str, ...]) -> str:
    """Return the class that the index names for a part, the first of the known ones where it names none."""
    entry = _index(repo).get(part, [None, kinds[0]])
    name = entry[1] if isinstance(entry, list) and len(entry) == 2 else entry
    if name not in kinds:
        raise wrong(f"{repo.id}: {_INDEX}", part, entry, " or ".join(kinds))
    return str(name)


def _tokens(config: Mapping[str, Any], key: str, where: str) -> int:
    if (count := whole_number(config, key, where)) > _MOST_TOKENS:
        raise wrong(where, key, count, f"the number of tokens of a prompt, up to {_MOST_TOKENS}")
    return count


def _positive(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < float("inf")


@cache
def _say_once(notice: str) -> None:
    LOG.warning("%s", notice)


def load(repo: Repo, info: ModelInfo, options: LoadOptions) -> PRX:
    """Make a PRX; its parts are loaded when they are first used."""
    return (PRX if info.latent else PRXPixel)(repo, info, options)
