"""Stable Diffusion 3 and 3.5: a flow on latents of 16 channels, by a transformer that reads two CLIPs and a T5.

T5 may be left out of a repository; its tokens are zeros then. What image to image and inpainting change is the loop,
and no part of the model. Source: Esser et al., arXiv:2403.03206.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffkit.engine.samplers import is_flow
from diffkit.errors import UsageError
from diffkit.models.configuration import (
    check_multiple,
    field_of,
    load_scheduler,
    read_network,
    read_record,
    read_size,
    whole_number,
    wrong,
)
from diffkit.models.latents import vae_config
from diffkit.models.options import LoadOptions
from diffkit.models.repo import Repo
from diffkit.models.text_encodings import MAX_TOKENS, LoadedPart, TextEncoding, TextPart
from diffkit.models.text_model import TextModel
from diffkit.types import Cond, ModelInfo

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

# As its pipeline and its authors use it: classifier-free guidance, and steps of Euler.
GUIDANCE, STEPS = 7.0, 28
T5_TOKENS = 256
FOLDER, NETWORK = "transformer", "SD3Transformer2DModel"
_CLIPS, _T5 = ("text_encoder", "text_encoder_2"), "text_encoder_3"


class TwoClipsAndT5(TextEncoding):
    """The layer before the last of two CLIPs side by side, then T5's last; and both CLIPs' pooled embeddings."""

    name = "sd3"

    def parts(self, repo: Repo) -> tuple[TextPart, ...]:
        """Return both CLIPs, and T5 where there is one."""
        clip = "CLIPTextModelWithProjection"
        clips = (TextPart(encoder_class=clip), TextPart("tokenizer_2", "text_encoder_2", encoder_class=clip))
        t5 = TextPart(
            "tokenizer_3", _T5, "T5Tokenizer", "T5EncoderModel", eight_bit=True,
            vocabularies=(("tokenizer.json",), ("spiece.model",)),
        )  # fmt: skip
        return (*clips, t5) if has_t5(repo) else clips

    def label(self, repo: Repo, eight_bit: bool = False) -> str:
        """Name the encoders, their numbers of tokens and the width that all are brought to."""
        second = f"t5-{T5_TOKENS}" if has_t5(repo) else f"zeros-{T5_TOKENS}"
        return f"sd3-{MAX_TOKENS}-{second}-{_width(repo)}" + "-8bit" * eight_bit

    def embed(self, repo: Repo, parts: Mapping[str, LoadedPart], prompt: str) -> dict[str, Tensor]:
        """Return `encoder_hidden_states` (77 + 256, D) and `pooled_projections` (P1 + P2,)."""
        width = _width(repo)
        # Of a long prompt T5 reads more; without it the first CLIP says what is cut off.
        clips = [
            parts[name](prompt, MAX_TOKENS, hidden=True, quiet=_T5 in parts or name != _CLIPS[0]) for name in _CLIPS
        ]
        words = torch.cat([clip.hidden_states[-2][0] for clip in clips], dim=-1)
        words = F.pad(words, (0, width - words.shape[-1]))
        # It was trained with T5 left out of many captions, as zeros; and T5 attends to its padding here.
        more = parts[_T5](prompt, T5_TOKENS)[0][0] if _T5 in parts else words.new_zeros(T5_TOKENS, width)
        return {
            "encoder_hidden_states": torch.cat([words, more.to(words)]),
            "pooled_projections": torch.cat([clip.text_embeds[0] for clip in clips], dim=-1),
        }


TEXT_ENCODER = TwoClipsAndT5()


class StableDiffusion3(TextModel):
    """Stable Diffusion 3 (the `Model` protocol); arguments as of `TextModel`."""

    encoding = TEXT_ENCODER

    def __init__(self, repo: Repo, info: ModelInfo, options: LoadOptions) -> None:
        super().__init__(repo, info, options)
        self.codec = self.latent_codec()

    def at(self, height: int, width: int) -> StableDiffusion3:
        """Return this model for latents of another size, sharing all weights.

        Raises:
            UsageError: They cannot be cut into patches, or are larger than the table of positions.
        """
        return self._resized(height, width)

    def predict(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Call the transformer: the velocity at x."""
        words, pooled = (cond.tensors[name].to(self.dtype) for name in ("encoder_hidden_states", "pooled_projections"))
        out: Tensor = self.network(
            hidden_states=x, timestep=t.expand(len(x)), encoder_hidden_states=words, pooled_projections=pooled,
            return_dict=False,
        )[0]  # fmt: skip
        return out


def info(repo: Repo) -> ModelInfo:
    """Say what a Stable Diffusion 3 model is, from its configuration alone.

    Raises:
        ModelError: A field is missing or contradicts another one; the message names it.
    """
    network = read_network(repo, FOLDER, NETWORK)
    where, config, (record, _) = field_of(repo, network), network.config, read_record(repo)
    taken, patch, most = (
        whole_number(config, key, where) for key in ("in_channels", "patch_size", "pos_embed_max_size")
    )
    whole_number(config, "num_layers", where)
    if config.get("out_channels") not in (None, taken):
        raise wrong(where, "out_channels", config["out_channels"], f"{taken}, as in_channels")
    side, width = read_size(config, where)
    if side != width or not isinstance(config["sample_size"], int):
        raise wrong(where, "sample_size", config["sample_size"], "one number: other sizes are asked for")
    check_multiple((side, side), patch, where, "it cuts them into patches of that size")
    if side > most * patch:
        raise wrong(where, "pos_embed_max_size", most, f"{side // patch} or more, for a sample_size of {side}")
    _check_widths(repo, config, where)
    _, factor = vae_config(repo, taken)
    return ModelInfo(
        id=repo.id, revision=repo.revision, family="stable_diffusion_3", pipeline=repo.pipeline, channels=3,
        size=(side * factor, side * factor), sample=(taken, side, side), network=network,
        scheduler=_scheduler(repo, (side // patch) ** 2), conditioning="text", text_encoder=TEXT_ENCODER.name,
        null=True, guidance=GUIDANCE, illusion_guidance=GUIDANCE, steps=STEPS, latent=True, record=record,
        size_multiple=factor * patch, refit=_refit,
    )  # fmt: skip


def _refit(info: ModelInfo) -> ModelInfo:
    """Return what a model is at another size: its shift follows the number of patches.

    Raises:
        UsageError: Larger than its table of positions.
    """
    (_, height, width), config = info.sample, info.network.config
    patch, most = int(config["patch_size"]), int(config["pos_embed_max_size"])
    if max(height, width) > most * patch:
        limit = most * patch * info.factor
        size = f"{info.size[1]}x{info.size[0]}"
        raise UsageError(f"{info.id} draws up to {limit}x{limit} pixels, not {size}", "Draw smaller.")
    return replace(info, scheduler=_shifted(info.scheduler, (height // patch) * (width // patch)))


def has_t5(repo: Repo) -> bool:
    """Say whether a repository has the third text encoder, which may be left out."""
    entry = (repo.json("model_index.json") or {}).get(_T5)
    return isinstance(entry, list) and len(entry) == 2 and entry[1] is not None


def _width(repo: Repo) -> int:
    """Return how wide the transformer's words are."""
    network = read_network(repo, FOLDER, NETWORK)
    return whole_number(network.config, "joint_attention_dim", field_of(repo, network))


def _check_widths(repo: Repo, config: Mapping[str, Any], where: str) -> None:
    """Refuse a transformer that the text encoders, as far as they are there, do not fit, or its own parts."""
    heads, each = (whole_number(config, key, where) for key in ("num_attention_heads", "attention_head_dim"))
    caption = whole_number(config, "caption_projection_dim", where)
    if caption != heads * each:
        raise wrong(where, "caption_projection_dim", caption, f"{heads * each}: {heads} heads of {each}")
    joint, pooled = (whole_number(config, key, where) for key in ("joint_attention_dim", "pooled_projection_dim"))
    widths, pools = (_of_clips(repo, key) for key in ("hidden_size", "projection_dim"))
    if widths is not None and joint < widths:
        raise wrong(where, "joint_attention_dim", joint, f"{widths} or more, the hidden_size of both CLIPs")
    if pools is not None and pooled != pools:
        raise wrong(where, "pooled_projection_dim", pooled, f"{pools}, the projection_dim of both CLIPs")
    t5 = repo.json(f"{_T5}/config.json") if has_t5(repo) else None
    if t5 is not None and (width := whole_number(t5, "d_model", f"{repo.id}: {_T5}/config.json")) != joint:
        raise wrong(where, "joint_attention_dim", joint, f"{width}, the d_model of {_T5}")


def _of_clips(repo: Repo, key: str) -> int | None:
    """Return the sum of a field of both CLIPs; None where one is not there, as with prompts from the cache."""
    configs = [(name, repo.json(f"{name}/config.json")) for name in _CLIPS]
    found = [whole_number(one, key, f"{repo.id}: {name}/config.json") for name, one in configs if one is not None]
    return sum(found) if len(found) == len(_CLIPS) else None


def _scheduler(repo: Repo, patches: int) -> SchedulerMixin:
    """Return the flow's scheduler, with the grid of the stock pipeline: its own, shifted as suits so many patches."""
    scheduler, where = load_scheduler(repo), f"{repo.id}: scheduler/scheduler_config.json"
    if not is_flow(scheduler):
        raise wrong(where, "_class_name", type(scheduler).__name__, "FlowMatchEulerDiscreteScheduler, of a flow")
    config = scheduler.config
    if config.get("use_dynamic_shifting"):
        few, many = (whole_number(config, f"{name}_image_seq_len", where) for name in ("base", "max"))
        if many <= few:
            raise wrong(where, "max_image_seq_len", many, f"more than base_image_seq_len, {few}")
        for key in ("base_shift", "max_shift"):
            if type(config.get(key)) not in (int, float):
                raise wrong(where, key, config.get(key), "a number")
    scheduler.register_to_config(timestep_spacing="linspace")
    return _shifted(scheduler, patches)


def _shifted(scheduler: SchedulerMixin, patches: int) -> SchedulerMixin:
    """Return a scheduler whose shift depends on the size as it is for so many patches; any other one as it is.

    Source: Esser et al., arXiv:2403.03206, section 5.3.2; between two sizes the stock pipeline draws a line.
    """
    config = scheduler.config
    if not config.get("use_dynamic_shifting"):
        return scheduler
    few, many = config["base_image_seq_len"], config["max_image_seq_len"]
    slope = (config["max_shift"] - config["base_shift"]) / (many - few)
    other = copy.copy(scheduler)
    other.register_to_config(mu=config["base_shift"] + slope * (patches - few))  # makes a configuration of its own
    return other


load = StableDiffusion3  # (repo, info, options): its parts are loaded when they are first used
