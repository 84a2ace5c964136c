from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from diffkit.errors import UsageError
from diffkit.models.attention import set_attention
from diffkit.models.network import build_network
from diffkit.recipes.reading import load_recipe
from diffkit.recipes.schema import Recipe
from diffkit.training.estimate import describe, estimate, estimate_recipe
from diffkit.training.trial import Sizes, measure

CPU = torch.device("cpu")


def recipe(**sections: dict[str, Any]) -> Recipe:
    data: dict[str, dict[str, Any]] = {"model": {"preset": "tiny"}, "training": {"steps": 10, "batch_size": 4}}
    for name, values in sections.items():
        data[name] = {**data.get(name, {}), **values}
    return Recipe.model_validate(data)


def really_kept(spec: Recipe, shape: tuple[int, int, int], num_classes: int) -> int:
    """What autograd keeps in a real forward pass, by storage."""
    network = build_network(spec.model, shape=shape, num_classes=num_classes)
    set_attention(network.unet, spec.model.attention, CPU)
    network.train()
    if spec.training.gradient_checkpointing:
        network.unet.enable_gradient_checkpointing()
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    batch = spec.training.batch_size
    labels = torch.zeros(batch, dtype=torch.long) if num_classes else None
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(torch.rand(batch, *shape), torch.zeros(batch, dtype=torch.long), labels)
    return sum(t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer not in weights)


@pytest.mark.parametrize(("conditioning", "attention"), [("none", "sdpa"), ("embedding", "plain"), ("concat", "sdpa")])
def test_sizes_are_those_of_the_real_network(conditioning: str, attention: str) -> None:
    spec = recipe(model={"class_conditioning": conditioning, "attention": attention})
    classes = 0 if conditioning == "none" else 3
    sizes = measure(spec, (1, 16, 16), classes, CPU)
    network = build_network(spec.model, shape=(1, 16, 16), num_classes=classes)
    assert sizes.parameters == sizes.trainable == sum(p.numel() for p in network.parameters())
    assert sizes.activations == really_kept(spec, (1, 16, 16), classes)
    assert sizes.flops > sizes.parameters


def test_activations_grow_with_the_batch_and_shrink_by_checkpointing() -> None:
    small = measure(recipe(), (1, 16, 16), 0, CPU)
    large = measure(recipe(training={"batch_size": 8}), (1, 16, 16), 0, CPU)
    assert large.activations == pytest.approx(2 * small.activations, rel=0.01)
    assert large.flops == small.flops
    checkpointed = recipe(training={"gradient_checkpointing": True})
    thrifty = measure(checkpointed, (1, 16, 16), 0, CPU)
    assert thrifty.activations < small.activations
    assert thrifty.activations == really_kept(checkpointed, (1, 16, 16), 0)
    half = measure(recipe(), (1, 16, 16), 0, CPU, "bf16")
    assert half.activations < 0.8 * small.activations


def test_nothing_of_the_networks_size_is_allocated_and_no_random_state_is_touched() -> None:
    spec = recipe(model={"preset": "course28"}, training={"batch_size": 100_000})
    before = torch.get_rng_state()
    assert measure(spec, (1, 28, 28), 0, CPU).activations > 500 * 2**30
    estimate(recipe(), 100, (1, 16, 16), 0, timed=True)
    assert torch.equal(torch.get_rng_state(), before)


def test_memory_adds_up_and_frozen_weights_need_less() -> None:
    facts = estimate(recipe(), 100, (1, 16, 16), 0)
    memory, count = facts["memory"], facts["parameters"]
    assert (memory["weights"], memory["gradients"], memory["optimizer"], memory["ema"]) == tuple(
        count * n for n in (4, 4, 8, 4)
    )
    assert memory["total"] == sum(value for name, value in memory.items() if name != "total")
    frozen = estimate(recipe(model={"freeze": ["down_blocks"]}, training={"ema": False}), 100, (1, 16, 16), 0)
    assert 0 < frozen["trainable"] < count == frozen["parameters"]
    assert frozen["memory"]["optimizer"] == 8 * frozen["trainable"]
    assert frozen["memory"]["ema"] == 0


@pytest.mark.parametrize(
    ("training", "length", "world", "updates", "images", "epochs"),
    [
        ({"steps": 10, "batch_size": 4}, 100, 1, 10, 40, 0.4),
        ({"steps": None, "epochs": 2, "batch_size": 4}, 100, 1, 50, 200, 2),
        ({"steps": None, "epochs": 2, "batch_size": 4, "gradient_accumulation": 3}, 100, 2, 9, 216, 2.16),
        ({"steps": 10, "batch_size": 4}, None, 1, 10, 40, None),
        ({"steps": None, "epochs": 2}, None, 1, None, None, None),
    ],
)
def test_updates_are_counted_as_training_counts_them(
    training: dict[str, Any],
    length: int | None,
    world: int,
    updates: int | None,
    images: int | None,
    epochs: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("diffkit.training.estimate.measure", lambda *_: Sizes(1, 1, 1, 1))
    facts = estimate(recipe(training=training), length, (1, 16, 16), 0, world=world)
    assert (facts["updates"], facts["images"], facts["epochs"]) == (updates, images, epochs)


def test_a_timed_estimate_says_how_long() -> None:
    facts = estimate(recipe(), 100, (1, 16, 16), 0, timed=True)
    assert facts["images_per_second"] > 0
    # Ten updates of four images at that speed, and the previews on top.
    assert facts["eta_seconds"] > 0.99 * 40 / facts["images_per_second"]
    assert any(line.startswith("time        about") for line in describe(facts))
    untimed = estimate(recipe(), 100, (1, 16, 16), 0)
    assert "eta_seconds" not in untimed
    unknown = estimate(recipe(training={"steps": None, "epochs": 1}), None, (1, 16, 16), 0, timed=True)
    assert unknown["eta_seconds"] is None
    assert "time        not known: the number of updates is not known" in describe(unknown)


def test_the_default_recipe_is_described_without_training() -> None:
    facts = estimate_recipe(load_recipe("digits", environ={}), timed=False)
    assert facts["epochs"] == round(facts["images"] / 1797, 2)
    lines = describe(facts)
    assert lines[0].startswith("parameters  1,8")
    assert "per process: weights 7 MiB" in lines[1]


def test_a_validation_part_is_taken_off() -> None:
    spec = load_recipe(
        "digits", environ={}, sets=["dataset.validation=0.5", "training.epochs=1", "training.batch_size=1"]
    )
    assert estimate_recipe(spec, timed=False)["updates"] == 1797 - round(0.5 * 1797)


def test_a_dataset_that_cannot_be_reached_leaves_the_length_open(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("diffkit"), "propagate", True)
    facts = estimate_recipe(load_recipe("mnist-class", environ={}), timed=False)
    assert facts["updates"] is None
    assert "its length is left open" in caplog.text


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match=r"unknown model\.preset"):
        estimate(recipe(model={"preset": "huge"}), 100, (1, 16, 16), 0)
    with pytest.raises(UsageError, match="has no classes"):
        estimate(recipe(model={"class_conditioning": "embedding"}), 100, (1, 16, 16), 0)


@pytest.mark.parametrize(("native", "said"), [(True, False), (False, True)])
def test_a_precision_that_the_cpu_lacks_is_said(monkeypatch: pytest.MonkeyPatch, native: bool, said: bool) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: native)
    half = recipe(training={"mixed_precision": "bf16"})
    lines = describe(estimate(half, length=None, shape=(1, 16, 16), num_classes=0, timed=False))
    assert any("in software" in line for line in lines) == said
    full = describe(estimate(recipe(), length=None, shape=(1, 16, 16), num_classes=0, timed=False))
    assert not any("in software" in line for line in full)
