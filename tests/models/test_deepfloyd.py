"""DeepFloyd IF against diffusers' own pipelines, on tiny random weights: same seed, same steps, fp32."""

from __future__ import annotations

import logging

import pytest
import torch
from diffusers import IFPipeline, IFSuperResolutionPipeline
from torch import Tensor

from diffkit.engine.guidance import cfg
from diffkit.engine.sampling import denoise, generators, pure_noise, set_grid
from diffkit.errors import ModelError, UsageError
from diffkit.models import load
from tests.models.conftest import IF_UNET, TINY_VISION, make_if, text_unet, write_checker, write_index

PROMPT, NEGATIVE = "A Photo of a CAT", "Blurry"


def stock(cls, parts: dict):
    pipe = cls(**parts, safety_checker=None, feature_extractor=None, watermarker=None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe, seeds: list[int], scale: float, **options) -> Tensor:
    options = {"negative_prompt": [NEGATIVE] * len(seeds), "num_inference_steps": 5, "output_type": "pt"} | options
    return pipe([PROMPT] * len(seeds), generator=generators(seeds), guidance_scale=scale, **options).images


def close(ours: Tensor, theirs: Tensor) -> None:
    print("largest difference", float((ours - theirs).abs().max()))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [7.0, 1.0])
def test_parity_stage_one(tmp_path, embeddings, scale):
    parts = make_if(tmp_path / "m")
    theirs = run(stock(IFPipeline, parts), [3, 4], scale)
    model, made = load(str(tmp_path / "m"), device="cpu"), generators([3, 4])
    assert (model.info.source, model.info.sample) == ("noise", (3, 8, 8))
    set_grid(model.scheduler, 5)
    x = pure_noise(model.scheduler, model.noise(made))
    net = cfg(model, model.encode([NEGATIVE]), scale)
    for step in denoise(net, x, model.scheduler, model.encode([PROMPT]).expand(2), generators=made):
        x = step.x
    close(x, theirs)


def test_parity_stage_two(tmp_path, embeddings):
    parts = make_if(tmp_path / "m", stage=2)
    small = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    noising = parts.pop("image_noising_scheduler")
    pipe = stock(lambda **p: IFSuperResolutionPipeline(**p, image_noising_scheduler=noising), parts)
    theirs = run(pipe, [3, 4], 4.0, image=small, noise_level=250)
    model, made = load(str(tmp_path / "m"), device="cpu"), generators([3, 4])
    assert (model.info.source, model.info.sample, model.info.noise_level) == ("small", (3, 16, 16), 250)
    set_grid(model.scheduler, 5)
    x = pure_noise(model.scheduler, model.noise(made))
    extra = model.image_cond(small, made, noise_level=model.info.noise_level)
    net = cfg(model, model.encode([NEGATIVE]).join(extra), 4.0)
    for step in denoise(net, x, model.scheduler, model.encode([PROMPT]).join(extra), generators=made):
        x = step.x
    close(x, theirs)


def test_prediction_is_taken_apart(tmp_path, embeddings):
    make_if(tmp_path / "m")
    model = load(str(tmp_path / "m"), device="cpu")
    x = model.noise(generators([0]))
    prediction = model(x, torch.tensor(500), model.encode([PROMPT]))
    whole = model.network(x, 500, encoder_hidden_states=model.encode([PROMPT]).tensors["encoder_hidden_states"]).sample
    assert prediction.var is not None
    torch.testing.assert_close(torch.cat([prediction.out, prediction.var], dim=1), whole, rtol=0, atol=0)


def test_every_row_has_its_own_timestep(tmp_path, embeddings):
    make_if(tmp_path / "m")
    model = load(str(tmp_path / "m"), device="cpu")
    x, cond = model.noise(generators([0, 1])), model.encode([PROMPT, ""])
    both = model(x, torch.tensor([500, 3]), cond).out
    alone = model(x[1:], torch.tensor(3), cond.rows(1, 2)).out
    torch.testing.assert_close(both[1:], alone, rtol=0, atol=1e-5)


def test_other_samplers_without_learned_variance(tmp_path, embeddings):
    """DDIM keeps "learned_range" in its configuration and takes three channels all the same."""
    make_if(tmp_path / "m")
    model = load(str(tmp_path / "m"), device="cpu", scheduler="ddim")
    made = generators([0])
    x = model.noise(made)
    for step in denoise(model, x, model.scheduler, model.encode([PROMPT]), steps=4, generators=made):
        x = step.x
    assert x.shape == (1, *model.info.sample)
    assert x.isfinite().all()


def test_stage_two_shares_the_prompts_of_stage_one(tmp_path, embeddings):
    """One T5 for both, and none of stage II's own is read."""
    make_if(tmp_path / "one")
    make_if(tmp_path / "two", stage=2)
    for name in ("text_encoder", "tokenizer"):
        for path in (tmp_path / "two" / name).iterdir():
            path.unlink()
    one = load(str(tmp_path / "one"), device="cpu")
    two = load(str(tmp_path / "two"), device="cpu", prompts=one.prompts)
    a, b = (m.encode([PROMPT]).tensors["encoder_hidden_states"] for m in (one, two))
    assert torch.equal(a, b)
    assert one.prompts.loads == 1
    with pytest.raises(ModelError, match="tokenizer"):
        load(str(tmp_path / "two"), device="cpu").encode(["something else"])


def test_wrong_use(tmp_path, embeddings):
    make_if(tmp_path / "one")
    make_if(tmp_path / "two", stage=2)
    one, two = (load(str(tmp_path / name), device="cpu") for name in ("one", "two"))
    small = torch.zeros(1, 3, 8, 8)
    with pytest.raises(UsageError, match="not from an image"):
        one.image_cond(small, generators([0]))
    with pytest.raises(UsageError, match=r"outside 0\.\.999"):
        two.image_cond(small, generators([0]), noise_level=1000)
    with pytest.raises(UsageError, match="3 channels beside the sample, got 0"):
        two(two.noise(generators([0])), torch.tensor(3), two.encode([PROMPT]))
    parts = {"unet": text_unet(**IF_UNET | {"in_channels": 5}), "scheduler": one.scheduler}
    (tmp_path / "odd").mkdir()
    write_index(tmp_path / "odd", "IFPipeline", parts)
    with pytest.raises(ModelError, match="no stage of IF"):
        load(str(tmp_path / "odd"), device="cpu")


def test_grey_images_are_taken(tmp_path, embeddings):
    make_if(tmp_path / "two", stage=2)
    two, grey = load(str(tmp_path / "two"), device="cpu"), torch.rand(1, 1, 8, 8)
    a, b = (
        two.image_cond(g, generators([0]), noise_level=250).tensors["channels"]
        for g in (grey, grey.expand(-1, 3, -1, -1))
    )
    assert torch.equal(a, b)


def add_checker(folder) -> None:
    """As in the real repositories: a class that from_pretrained of transformers 5 cannot load."""
    from diffusers.pipelines.deepfloyd_if.safety_checker import IFSafetyChecker
    from transformers import CLIPConfig

    checker = IFSafetyChecker(CLIPConfig(vision_config=TINY_VISION, projection_dim=4))
    with torch.no_grad():
        for head in (checker.p_head, checker.w_head):
            head.weight.zero_()
            head.bias.fill_(-9.0)
    write_checker(folder, "deepfloyd_if", checker)


@pytest.mark.parametrize("head", [None, "p_head", "w_head"])
def test_the_safety_checker_works(tmp_path, embeddings, head, caplog):
    from safetensors.torch import load_file, save_file

    make_if(tmp_path / "m")
    add_checker(tmp_path / "m")
    if head:
        path = tmp_path / "m" / "safety_checker" / "model.safetensors"
        save_file(load_file(path) | {f"{head}.bias": torch.ones(1)}, path, metadata={"format": "pt"})
    model = load(str(tmp_path / "m"), device="cpu")
    images = torch.rand(2, 3, 8, 8)
    with caplog.at_level(logging.INFO, "diffkit"):
        out, flagged = model.screen(images)
    assert flagged == [head is not None] * 2
    assert torch.equal(out, images if head is None else torch.full_like(images, -1.0))
    assert "cannot be loaded" not in caplog.text
