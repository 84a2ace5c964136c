"""PixNerd's families: what they say of themselves, prompts and classes, sizes, and published checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file
from tiny_pixnerd import EVERY, SIDE, TEXT, inputs, numbers
from tiny_pixnerd_pipeline import TOKENS, class_network, make_pixnerd, make_pixnerd_class, text_network, text_parts

import diffkit
from diffkit.engine.adams import FlowMatchAdamsScheduler
from diffkit.engine.guidance import cfg
from diffkit.engine.sampling import denoise, generators
from diffkit.errors import ModelError, UsageError
from diffkit.models import LoadOptions, info, load, open_repo, text_encoding
from diffkit.models.memory import count_parameters
from diffkit.models.pixnerd import PixNerdTransformer2DModel
from diffkit.models.pixnerd_checkpoint import from_checkpoint, is_pixnerd, write_pipeline
from diffkit.models.pixnerd_network import PixNerdClassTransformer2DModel
from diffkit.models.text import open_encoder
from diffkit.types import Cond

RECORDED = load_file(Path(__file__).parents[1] / "fixtures" / "pixnerd.safetensors")


@pytest.fixture
def folder(tmp_path: Path, embeddings: Path) -> Path:
    make_pixnerd(tmp_path / "m")
    return tmp_path / "m"


def edited(path: Path, **changes: object) -> None:
    """Change fields of a JSON file; None takes one away."""
    data = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))


def fields(network: torch.nn.Module) -> dict:
    return {key: value for key, value in network.config.items() if not key.startswith("_")}


# --- against the authors' code ------------------------------------------------------------------------------------


def test_ten_guided_steps_on_the_engine(tmp_path):
    """The recorded loop of the authors' Euler sampler, an oblong picture, in diffusers' convention of time and sign."""
    write_pipeline(tmp_path, text_network(txt_max_length=6))
    model = load(str(tmp_path), device="cpu").at(64, 32)
    x, _, y, _ = inputs(64, 32)
    empty = Cond({"encoder_hidden_states": numbers("empty", 2, 6, 12)})
    # Their sampler guides where 0 < t < 1, so not in the first step.
    net, scheduler = cfg(model, empty, 3.0, start=0.05, levels=1000), FlowMatchEulerDiscreteScheduler()
    for step in denoise(net, x, scheduler, Cond({"encoder_hidden_states": y}), steps=10):
        x = step.x
    theirs = RECORDED["euler"]
    difference = float((x.flatten()[::EVERY] - theirs).abs().max() / theirs.abs().max())
    print(f"largest difference {difference:.1e} of the largest number")
    assert difference < 1e-5


@pytest.mark.parametrize("width", [12, 16, 20])
@pytest.mark.parametrize("prompt", ["a cat", "", "two ducks on a pond"])
def test_prompts_are_the_last_hidden_state(tmp_path, embeddings, prompt, width):
    parts = make_pixnerd(tmp_path, txt_embed_dim=width)
    tokens = parts["tokenizer"](
        prompt, padding="max_length", padding_side="right", max_length=TOKENS, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        want = parts["text_encoder"](tokens.input_ids, attention_mask=tokens.attention_mask)[0]
    want = torch.cat([want, torch.zeros(1, TOKENS, 4)], dim=-1)[..., :width]
    got = load(str(tmp_path), device="cpu").encode([prompt]).tensors["encoder_hidden_states"]
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    assert got.isfinite().all()


def test_what_a_long_prompt_loses_is_said(folder, caplog):
    caplog.set_level("WARNING", "diffkit")
    load(str(folder), device="cpu").encode(["two ducks on a pond"])
    assert "16 tokens; this part is not seen: ond" in caplog.text


# --- what they say of themselves ----------------------------------------------------------------------------------


def test_everything_is_known_without_weights(tmp_path):
    text, classes = tmp_path / "text", tmp_path / "classes"
    parts, network = make_pixnerd(text), make_pixnerd_class(classes, id2label={0: "tench, Tinca tinca", 2: "shark"})
    for path in tmp_path.rglob("*.safetensors"):
        path.unlink()
    known = info(open_repo(text))
    assert (known.family, known.conditioning, known.text_encoder, known.null) == ("pixnerd", "text", "qwen3", True)
    assert (known.size, known.sample, known.latent, known.guidance) == ((SIDE, SIDE), (3, SIDE, SIDE), False, 8.0)
    assert count_parameters(known.network) == sum(p.numel() for p in parts["transformer"].parameters())
    known = info(open_repo(classes))
    assert (known.family, known.conditioning, known.text_encoder) == ("pixnerd_class", "class", "")
    assert (known.classes, known.guidance, known.null) == (("tench", "1", "shark", "3", "4"), 3.5, True)
    assert count_parameters(known.network) == sum(p.numel() for p in network.parameters())
    assert text_encoding(open_repo(classes)) is None
    for folder in (text, classes):
        with pytest.raises(ModelError, match="transformer"):
            load(str(folder), device="cpu")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"in_channels": 4}, "in_channels"),
        ({"num_groups": 5}, "num_groups"),
        ({"hidden_size": None}, "hidden_size"),
        ({"txt_max_length": None}, "txt_max_length"),
        ({"sample_size": [32, 64]}, "sample_size"),
        ({"sample_size": 30}, "sample_size"),
        ({"_class_name": "PixNerdClassTransformer2DModel"}, "_class_name"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(folder, changes, named):
    edited(folder / "transformer" / "config.json", **changes)
    with pytest.raises(ModelError, match=named):
        info(open_repo(folder))


def test_a_scheduler_that_is_no_flows_is_refused(folder):
    (folder / "scheduler" / "scheduler_config.json").unlink()
    DDIMScheduler().save_pretrained(folder / "scheduler")
    edited(folder / "model_index.json", scheduler=["diffusers", "DDIMScheduler"])
    with pytest.raises(ModelError, match="FlowMatch"):
        info(open_repo(folder))


def test_no_other_code_is_named_by_an_index(folder):
    edited(folder / "model_index.json", transformer=["modeling", "PixNerdTransformer2DModel"])
    with pytest.raises(ModelError, match="custom code"):
        open_repo(folder)


# --- parts --------------------------------------------------------------------------------------------------------


def test_a_network_alone_and_a_text_encoder_elsewhere(folder, tmp_path):
    """The index names where the text encoder is; nothing of it is looked for before a prompt is encoded."""
    whole = load(str(folder), device="cpu").encode(["a cat"])
    encoder, tokenizer = text_parts()
    for part in (encoder, tokenizer):
        part.save_pretrained(tmp_path / "qwen")
    write_pipeline(tmp_path / "bare", text_network(), text_encoder_id=str(tmp_path / "qwen"))
    got = load(str(tmp_path / "bare"), device="cpu").encode(["a cat"])
    assert torch.equal(got.tensors["encoder_hidden_states"], whole.tensors["encoder_hidden_states"])
    alone = folder / "transformer"
    known = info(open_repo(alone))
    assert isinstance(known.scheduler, FlowMatchEulerDiscreteScheduler)
    x, _, _, _ = inputs(SIDE, SIDE)
    cond = Cond({"encoder_hidden_states": numbers("text", 2, TOKENS, 12)})
    pair = [load(str(path), device="cpu")(x, torch.tensor(300.0), cond).out for path in (alone, folder)]
    assert torch.equal(*pair)


def test_an_embedding_that_was_carried_here_needs_neither_hub_nor_encoder(tmp_path, embeddings, monkeypatch):
    """An encoder that lies on the Hub is known by its name, so that nobody is asked for a prompt in the cache."""
    write_pipeline(tmp_path / "bare", text_network())
    repo = open_repo(str(tmp_path / "bare"))
    first = open_encoder(repo, text_encoding(repo), LoadOptions())
    assert first.key("a cat")["revision"] == "Qwen/Qwen3-1.7B"
    kept = numbers("kept", TOKENS, 12)
    first.cache.put(first.key("a cat"), {"encoder_hidden_states": kept})
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    got = load(str(tmp_path / "bare"), device="cpu").encode(["a cat"]).tensors["encoder_hidden_states"]
    assert torch.equal(got[0], kept)


def test_half_precision_is_bf16(folder):
    """Where nobody says: both were trained in it, and the language model overflows in fp16."""
    repo = open_repo(folder)
    for dtype, want in ((None, torch.bfloat16), (torch.float16, torch.float16)):
        options = LoadOptions(device="cuda", memory="low", dtype=dtype)
        assert open_encoder(repo, text_encoding(repo), options).dtype == want


@pytest.mark.parametrize("kind", ["text", "class"])
def test_time_sign_and_type(tmp_path, embeddings, kind):
    x, _, _, labels = inputs(SIDE, SIDE)
    if kind == "text":
        network = make_pixnerd(tmp_path)["transformer"]
        told = numbers("text", 2, TOKENS, 12)
        cond = Cond({"encoder_hidden_states": told})
    else:
        network, told, cond = make_pixnerd_class(tmp_path), labels, Cond({"class_labels": labels})
    model = load(str(tmp_path), device="cpu")
    with torch.no_grad():
        for t in (torch.tensor(250.0), torch.tensor([250.0, 900.0])):
            want = -network(x, 1 - t / 1000, told)
            torch.testing.assert_close(model(x, t, cond).out, want, rtol=0, atol=1e-6)
    out = load(str(tmp_path), device="cpu", dtype="bf16")(x, torch.tensor(250.0), cond).out
    assert out.dtype == torch.float32


@pytest.mark.parametrize("kind", ["text", "class"])
def test_other_sizes_share_the_weights(tmp_path, embeddings, kind):
    (make_pixnerd if kind == "text" else make_pixnerd_class)(tmp_path)
    model = load(str(tmp_path), device="cpu")
    other = model.at(64, 32)
    assert (other.info.size, other.info.sample) == ((64, 32), (3, 64, 32))
    assert other.network is model.network
    cond = other.encode(["a cat" if kind == "text" else "3"])
    out = other(other.noise(generators([0])), torch.tensor(500.0), cond).out
    assert out.shape == (1, 3, 64, 32)
    assert other.codec.decode(out).shape == (1, 3, 64, 32)
    assert model.info.size == (SIDE, SIDE)
    with pytest.raises(UsageError, match="multiples of"):
        model.at(63, 32)


@pytest.mark.parametrize("flow", [FlowMatchEulerDiscreteScheduler(shift=3.0), FlowMatchAdamsScheduler(shift=3.0)])
def test_the_authors_way_of_drawing(folder, flow):
    """25 steps with a shift of 3, guidance 4."""
    model = load(str(folder), device="cpu")
    net = cfg(model, model.uncond(1), 4.0)
    x = model.noise(generators([0, 1]))
    flow.set_timesteps(25)
    for step in denoise(net, x, flow, model.encode(["a cat", "a dog"])):
        x = step.x
    assert x.isfinite().all()


# --- checkpoints --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["text", "class"])
@pytest.mark.parametrize("prefix", ["ema_denoiser.", "denoiser.", ""])
def test_a_checkpoint_says_all_but_its_size(tmp_path, kind, prefix):
    network = text_network() if kind == "text" else class_network()
    state = {prefix + name: value for name, value in network.state_dict().items()}
    if prefix == "ema_denoiser.":  # the last weights, which are not the average, and what the training had beside
        state |= {f"denoiser.{name}": value + 1 for name, value in network.state_dict().items()}
        state["diffusion_trainer.proj.0.weight"] = torch.zeros(3)
    made = from_checkpoint(state, sample_size=SIDE)
    assert type(made) is type(network)
    assert fields(made) == fields(network)
    for name, value in network.state_dict().items():
        assert torch.equal(made.state_dict()[name], value)
    last = from_checkpoint(state, average=False).final_layer.linear.bias
    assert torch.equal(last, network.final_layer.linear.bias + (prefix == "ema_denoiser."))
    assert from_checkpoint(state).config.sample_size == (512 if kind == "text" else 256)
    write_pipeline(tmp_path, made)
    model = load(str(tmp_path), device="cpu")
    assert model.parameters == sum(value.numel() for value in network.state_dict().values())


def test_the_published_shapes_give_the_published_configurations():
    for cls in (PixNerdTransformer2DModel, PixNerdClassTransformer2DModel):
        with torch.device("meta"):
            network = cls()
        made = from_checkpoint({f"ema_denoiser.{name}": value for name, value in network.state_dict().items()})
        assert fields(made) == fields(network)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: state.pop("blocks.1.mlp.w12.weight"), "lacks blocks.1.mlp.w12.weight"),
        (lambda state: state.pop("s_embedder.proj.weight"), "lacks s_embedder.proj.weight"),
        (lambda state: state.update({"vae.weight": torch.zeros(1)}), "vae.weight"),
        (lambda state: state.update({"t_embedder.mlp.0.weight": torch.zeros(2, 2)}), "another shape t_embedder.mlp.0"),
        (lambda state: state.update({"y_pos_embedding": torch.zeros(2)}), "another shape y_pos_embedding"),
        (lambda state: state.clear(), "lacks"),
        (lambda state: state.update({"blocks.0.attn.q_norm.weight": torch.ones(5)}), "num_groups"),
    ],
)
def test_another_networks_state_is_refused(change, named):
    state = dict(text_network().state_dict())
    change(state)
    with pytest.raises(ModelError, match=named):
        from_checkpoint(state)


def test_a_checkpoint_is_known_by_its_names():
    state = text_network().state_dict()
    assert is_pixnerd(state)
    assert is_pixnerd({f"ema_denoiser.{name}": value for name, value in class_network().state_dict().items()})
    assert not is_pixnerd({f"model.{name}": value for name, value in state.items()})
    assert not is_pixnerd({})


def test_from_python(folder):
    (picture,) = diffkit.sample(str(folder), prompt="a cat", steps=2)
    assert picture.size == (SIDE, SIDE)
    assert TEXT["num_text_blocks"] == load(str(folder), device="cpu").info.network.config["num_text_blocks"]
