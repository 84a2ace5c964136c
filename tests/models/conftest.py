"""Tiny repositories of every shape that exists on the Hub, built on the spot with random weights, and a fake Hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models.fakehub import FakeHub, serve

OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def tiny_unet():
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def old_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the attention parameters to what diffusers 0.1 called them."""
    out = {}
    for key, value in state.items():
        for new, old in OLD_NAMES.items():
            if ".attentions." in key:
                key = key.replace(f".{new}.", f".{old}.")
        out[key] = value.contiguous()
    return out


def make_flat(folder: Path, *, weights: str = "safetensors", old: bool = True):
    """Write a flat repository as `google/ddpm-*`: everything at the root, old configuration keys and tensor names."""
    unet = tiny_unet()
    folder.mkdir(parents=True, exist_ok=True)
    keep = ("sample_size", "in_channels", "out_channels", "block_out_channels", "layers_per_block", "norm_num_groups",
            "down_block_types", "up_block_types", "act_fn", "freq_shift", "flip_sin_to_cos", "center_input_sample",
            "downsample_padding", "mid_block_scale_factor", "norm_eps", "time_embedding_type",
            "attention_head_dim")  # fmt: skip
    config = {key: unet.config[key] for key in keep}
    config |= {"_class_name": "UNet2DModel", "_diffusers_version": "0.0.4", "resnet_input_channels": 3}
    (folder / "config.json").write_text(json.dumps(config))
    index = {"_class_name": "DDPMPipeline", "_diffusers_version": "0.1.1", "scheduler": ["diffusers", "DDPMScheduler"],
             "unet": ["diffusers", "UNet2DModel"]}  # fmt: skip
    (folder / "model_index.json").write_text(json.dumps(index))
    scheduler = {"_class_name": "DDPMScheduler", "_diffusers_version": "0.1.1", "beta_start": 0.0001, "beta_end": 0.02,
                 "beta_schedule": "linear", "clip_predicted_image": True, "clip_sample": True,
                 "num_train_timesteps": 1000, "trained_betas": None, "variance_type": "fixed_small"}  # fmt: skip
    (folder / "scheduler_config.json").write_text(json.dumps(scheduler))
    state = old_state(unet.state_dict()) if old else unet.state_dict()
    if weights == "safetensors":
        save_file(state, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    elif weights == "bin":
        torch.save(state, folder / "diffusion_pytorch_model.bin")
    return unet


def make_pipeline(folder: Path, *, variant: str | None = None, shard: str | None = None):
    """Write a DDPM pipeline in the usual layout."""
    from diffusers import DDPMPipeline, DDPMScheduler

    unet = tiny_unet()
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder)
    if variant or shard:
        (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
        saved = unet.half() if variant == "fp16" else unet
        saved.save_pretrained(folder / "unet", variant=variant, **({"max_shard_size": shard} if shard else {}))
    return unet.float()


TINY_VISION = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
               "image_size": 224, "patch_size": 56, "projection_dim": 4}  # fmt: skip


def write_checker(folder: Path, library: str, checker) -> None:
    """Add a safety checker with the tensor names that the real repositories have (transformers 4)."""
    state = {}
    for name, value in checker.state_dict().items():
        if name.startswith("vision_model.") and not name.startswith(
            ("vision_model.vision_model", "vision_model.visual")
        ):
            name = "vision_model." + name
        state[name] = value.clone()
    (folder / "safety_checker").mkdir()
    checker.config.save_pretrained(folder / "safety_checker")
    save_file(state, folder / "safety_checker" / "model.safetensors", metadata={"format": "pt"})
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = [library, type(checker).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))


def drop_tensor(path: Path, name: str) -> None:
    state = load_file(path)
    del state[name]
    save_file(state, path, metadata={"format": "pt"})


CHARS = "abcdefghijklmnopqrstuvwxyz0123456789.,"


def clip_tokenizer(folder: Path):
    """Write a CLIP tokenizer that knows single letters."""
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True)
    tokens = [*CHARS, *(c + "</w>" for c in CHARS), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: k for k, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(str(folder), model_max_length=77)
    tokenizer.save_pretrained(folder)
    return tokenizer


def t5_tokenizer(folder: Path):
    """Write a sentencepiece model, the form DeepFloyd IF has, and nothing else a tokenizer could be read from."""
    import sentencepiece
    from transformers import T5Tokenizer

    folder.mkdir(parents=True)
    text = ["a photo of a cat", "an oil painting of a dog", "two ducks, one pond.", CHARS]
    with (folder / "spiece.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(text * 5), model_writer=file, vocab_size=64, model_type="unigram", pad_id=0,
            eos_id=1, unk_id=2, bos_id=-1, minloglevel=2, hard_vocab_limit=False,
        )  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 4}))
    return T5Tokenizer.from_pretrained(str(folder), extra_ids=4)


def clip_encoder(vocabulary: int):
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(1)
    return CLIPTextModel(
        CLIPTextConfig(vocab_size=vocabulary, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                       num_attention_heads=2, max_position_embeddings=77, bos_token_id=vocabulary - 2,
                       eos_token_id=vocabulary - 1, pad_token_id=vocabulary - 1)
    ).eval()  # fmt: skip


def t5_encoder(vocabulary: int, width: int = 16):
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(1)
    config = T5Config(vocab_size=vocabulary, d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    return T5EncoderModel(config).eval()


def text_unet(**changes):
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    torch.manual_seed(2)
    config = {
        "sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": (8, 16), "layers_per_block": 1,
        "norm_num_groups": 4, "attention_head_dim": 4, "cross_attention_dim": 16,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }  # fmt: skip
    return UNet2DConditionModel(**(config | changes)).eval()


def tiny_vae():
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    torch.manual_seed(3)
    return AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 2, sample_size=16,
    ).eval()  # fmt: skip


def sd_parts(folder: Path) -> dict:
    tokenizer = clip_tokenizer(folder / "tokenizer")
    return {"tokenizer": tokenizer, "text_encoder": clip_encoder(len(tokenizer)), "vae": tiny_vae()}


def write_index(folder: Path, name: str, parts: dict, **more) -> None:
    """Save the parts of a pipeline and its model_index.json (the library would add what this machine lacks)."""
    index: dict = {"_class_name": name, "_diffusers_version": "0.36.0", **more}
    for part, module in parts.items():
        if not part.startswith("tokenizer"):
            module.save_pretrained(folder / part)
        library = type(module).__module__.split(".")[0]
        index[part] = [library, type(module).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))


def make_sd(folder: Path, *, prediction: str = "epsilon", scheduler=None, **unet) -> dict:
    """Write a tiny Stable Diffusion repository; return its parts."""
    from diffusers import DDIMScheduler

    parts = sd_parts(folder)
    parts["unet"] = text_unet(**unet)
    parts["scheduler"] = scheduler or DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type=prediction,
    )  # fmt: skip
    write_index(folder, "StableDiffusionPipeline", parts)
    return parts


def projected_clip_encoder(vocabulary: int, width: int = 24, projection: int = 20, seed: int = 5):
    """The second text encoder of Stable Diffusion XL: three layers, and a pooled embedding."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    torch.manual_seed(seed)
    return CLIPTextModelWithProjection(
        CLIPTextConfig(vocab_size=vocabulary, hidden_size=width, intermediate_size=32, num_hidden_layers=3,
                       num_attention_heads=2, max_position_embeddings=77, bos_token_id=vocabulary - 2,
                       eos_token_id=vocabulary - 1, pad_token_id=vocabulary - 1, projection_dim=projection)
    ).eval()  # fmt: skip


SDXL_UNET = {
    "cross_attention_dim": 40, "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 20,
}  # fmt: skip


def make_sdxl(folder: Path, *, name: str = "StableDiffusionXLPipeline", vae: dict | None = None, **unet) -> dict:
    """Write a tiny Stable Diffusion XL repository; return its parts."""
    from diffusers import EulerDiscreteScheduler

    parts = sd_parts(folder)
    parts["tokenizer_2"] = clip_tokenizer(folder / "tokenizer_2")
    parts["text_encoder_2"] = projected_clip_encoder(len(parts["tokenizer_2"]))
    parts["unet"] = text_unet(**SDXL_UNET | unet)
    parts["vae"].register_to_config(scaling_factor=0.13025, force_upcast=True, **vae or {})
    parts["scheduler"] = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading",
    )  # fmt: skip
    write_index(folder, name, parts, force_zeros_for_empty_prompt=True)
    return parts


SD3_TRANSFORMER = {
    "sample_size": 8, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 2, "attention_head_dim": 8,
    "num_attention_heads": 2, "joint_attention_dim": 64, "caption_projection_dim": 16, "pooled_projection_dim": 32,
    "pos_embed_max_size": 12,
}  # fmt: skip


def make_sd3(
    folder: Path, *, name: str = "StableDiffusion3Pipeline", t5: bool = True, scheduler=None, **transformer
) -> dict:
    """Write a tiny Stable Diffusion 3 repository, with its third text encoder or without; return its parts."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

    parts: dict = {}
    for number, (place, width, projection) in enumerate((("", 24, 12), ("_2", 32, 20)), start=6):
        parts[f"tokenizer{place}"] = clip_tokenizer(folder / f"tokenizer{place}")
        encoder = projected_clip_encoder(len(parts[f"tokenizer{place}"]), width, projection, seed=number)
        parts[f"text_encoder{place}"] = encoder
    if t5:
        parts["tokenizer_3"] = t5_tokenizer(folder / "tokenizer_3")
        parts["text_encoder_3"] = t5_encoder(len(parts["tokenizer_3"]), SD3_TRANSFORMER["joint_attention_dim"])
    torch.manual_seed(8)
    parts["transformer"] = SD3Transformer2DModel(**SD3_TRANSFORMER | transformer).eval()
    parts["vae"] = AutoencoderKL(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=16, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 2, sample_size=16, scaling_factor=1.5305, shift_factor=0.0609,
        force_upcast=True, use_quant_conv=False, use_post_quant_conv=False,
    ).eval()  # fmt: skip
    parts["scheduler"] = scheduler or FlowMatchEulerDiscreteScheduler(shift=3.0)
    write_index(folder, name, parts, **({} if t5 else {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}))
    return parts


def if_scheduler(stage: int = 1):
    from diffusers import DDPMScheduler

    return DDPMScheduler(
        beta_schedule="squaredcos_cap_v2", variance_type="learned_range", thresholding=True, clip_sample=True,
        dynamic_thresholding_ratio=0.95, sample_max_value=1.5 if stage == 1 else 1.0, prediction_type="epsilon",
    )  # fmt: skip


IF_UNET = {
    "in_channels": 3, "out_channels": 6, "encoder_hid_dim": 16, "addition_embed_type": "text",
    "addition_embed_type_num_heads": 2, "cross_attention_dim": 8, "act_fn": "gelu",
    "resnet_time_scale_shift": "scale_shift", "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"), "only_cross_attention": True,
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
}  # fmt: skip


def make_if(folder: Path, stage: int = 1) -> dict:
    """Write a tiny stage of DeepFloyd IF, with the same text encoder in every stage; return its parts."""
    from diffusers import DDPMScheduler

    tokenizer = t5_tokenizer(folder / "tokenizer")
    parts = {"tokenizer": tokenizer, "text_encoder": t5_encoder(len(tokenizer)), "scheduler": if_scheduler(stage)}
    if stage == 1:
        parts["unet"] = text_unet(**IF_UNET)
        write_index(folder, "IFPipeline", parts)
    else:
        parts["unet"] = text_unet(**IF_UNET | {"in_channels": 6, "sample_size": 16, "class_embed_type": "timestep"})
        parts["image_noising_scheduler"] = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
        write_index(folder, "IFSuperResolutionPipeline", parts)
    return parts


def make_dit(folder: Path, *, scheduler=None, id2label: dict[str, str] | None = None, **changes) -> dict:
    """Write a tiny DiT pipeline with five classes, as facebook/DiT-XL-2-256 is laid out; return its parts."""
    from diffusers import DDIMScheduler, DiTTransformer2DModel

    torch.manual_seed(4)
    config = {
        "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8, "num_layers": 2,
        "sample_size": 8, "patch_size": 2, "num_embeds_ada_norm": 5, "norm_num_groups": 4,
    }  # fmt: skip
    network = DiTTransformer2DModel(**config | changes).eval()
    with torch.no_grad():  # the stock initialisation hardly tells classes apart
        for block in network.transformer_blocks:
            block.norm1.emb.class_embedder.embedding_table.weight.mul_(20)
    parts = {"transformer": network, "vae": tiny_vae(), "scheduler": scheduler or DDIMScheduler(clip_sample=False)}
    write_index(folder, "DiTPipeline", parts, **({} if id2label is None else {"id2label": id2label}))
    return parts


@pytest.fixture
def embeddings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty embedding cache."""
    monkeypatch.setenv("DIFFKIT_CACHE", str(tmp_path / "kit"))
    return tmp_path / "kit" / "embeddings"


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """A Hub of our own and an empty cache."""
    from huggingface_hub import constants

    with serve() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)  # what HF_ENDPOINT sets when it is there at import
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield hub
