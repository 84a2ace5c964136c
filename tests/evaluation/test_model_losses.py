"""Losses by CLIP and by classifiers, on tiny networks: their values, their gradients, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffkit.engine.losses import parse_guide
from diffkit.errors import ModelError, UsageError
from diffkit.evaluation.classifier import SmallCNN, save_classifier
from diffkit.evaluation.image_classifiers import class_names, class_number, load_logits
from diffkit.evaluation.losses import cutouts, great_circle
from diffkit.evaluation.scorers import parse_scorer
from tests.support.tiny_clip import make_clip, make_vit


def images(count: int, channels: int = 3, size: int = 12, seed: int = 0) -> Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def random(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "m")


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_vit(tmp_path_factory.mktemp("vit") / "m")


def descend(spec: str, start: Tensor, steps: int = 30, rate: float = 20.0) -> tuple[Tensor, Tensor]:
    """The loss before and after some steps of gradient descent on pixels."""
    loss, x = parse_guide(spec).loss, start.clone()
    first = loss.of(x, random(*range(len(x)))).detach()
    for _ in range(steps):
        x.requires_grad_()
        (slope,) = torch.autograd.grad(loss.of(x, random(*range(len(x)))).sum(), x)
        x = (x - rate * slope).detach()
    return first, loss.of(x, random(*range(len(x)))).detach()


# --- CLIP


def test_great_circles() -> None:
    angle = torch.tensor([0.0, 0.3, 1.5, 3.0])
    a = torch.stack([angle.cos(), angle.sin()], 1)
    torch.testing.assert_close(great_circle(a, torch.tensor([[1.0, 0.0]])), angle.square() / 2, atol=1e-5, rtol=1e-4)
    ends = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).requires_grad_()
    (slope,) = torch.autograd.grad(great_circle(ends, torch.tensor([[1.0, 0.0]])).sum(), ends)
    assert torch.isfinite(slope).all()


def test_cutouts_are_drawn_by_their_generator_alone() -> None:
    one, same, other = (cutouts(images(1)[0], 5, 8, g) for g in random(3, 3, 4))
    assert tuple(one.shape) == (5, 3, 8, 8)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert len({float(cut.mean()) for cut in one}) == 5
    flat = cutouts(torch.full((1, 9, 30), -0.5), 3, 8, random(0)[0])
    torch.testing.assert_close(flat, torch.full((3, 3, 8, 8), 0.25))


def test_a_text_is_the_librarys_own_distance(clip: Path) -> None:
    from transformers import CLIPModel, CLIPTokenizer

    loss = parse_guide(f"clip:a cat,model={clip},cuts=3").loss
    loss.check()
    pictures = images(2)
    got = loss.of(pictures, random(5, 6))
    model = CLIPModel.from_pretrained(clip)
    tokens = CLIPTokenizer.from_pretrained(str(clip))(["a cat"], return_tensors="pt")
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    for k, generator in enumerate(random(5, 6)):
        pixels = cutouts(pictures[k], 3, 16, generator)
        with torch.no_grad():
            out = model(**tokens, pixel_values=(pixels - mean.reshape(3, 1, 1)) / std.reshape(3, 1, 1))
        cosine = (out.image_embeds @ out.text_embeds.T)[:, 0]
        torch.testing.assert_close(got[k], (torch.acos(cosine).square() / 2).mean(), atol=1e-4, rtol=1e-3)


def test_its_gradient_goes_down(clip: Path) -> None:
    first, last = descend(f"clip:a cat,model={clip}", images(3))
    assert (last < 0.8 * first).all()


def test_a_picture_s_text_loss_does_not_know_its_neighbours(clip: Path) -> None:
    loss, pictures = parse_guide(f"clip:b,model={clip},cuts=30").loss, images(4)
    alone = torch.cat([loss.of(pictures[k : k + 1], random(k)) for k in range(4)])
    torch.testing.assert_close(loss.of(pictures, random(0, 1, 2, 3)), alone, atol=1e-5, rtol=1e-4)


def test_a_clip_that_is_not_there_names_the_choices(tmp_path: Path, vit: Path) -> None:
    with pytest.raises(ModelError, match=r"guide clip:a rose: .*openai/clip") as caught:
        parse_guide("clip:a rose").loss.check()
    assert "clip:TEXT,model=ID_OR_FOLDER" in caught.value.hint
    assert "color, image and classifier" in caught.value.hint
    with pytest.raises(ModelError, match="vit, not CLIP"):
        parse_guide(f"clip:a,model={vit}").loss.check()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(ModelError, match="guide clip:a"):  # no weights: said before anything is loaded
        parse_guide(f"clip:a,model={tmp_path}").loss.check()


# --- classifiers


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = SmallCNN(8, 3, width=4)
    with torch.no_grad():
        network.layers[-1].weight.mul_(20)
    path = tmp_path_factory.mktemp("small") / "classifier.safetensors"
    save_classifier(path, network.eval(), ["zero", "one", "two, three"])
    return path


def test_a_class_is_minus_its_log_probability(small: Path, vit: Path) -> None:
    pictures = images(3)
    for source, label, number in (
        (small, "two, three", 2), (small.parent, "1", 1), (vit, "goldfish", 1), (vit, "tabby cat", 0)
    ):  # fmt: skip
        loss = parse_guide(f"classifier:{source}={label}").loss
        loss.check()
        p = load_logits(str(source), "cpu")(pictures).softmax(1)[:, number]
        torch.testing.assert_close(loss.of(pictures, random(0, 1, 2)), -p.log(), atol=1e-5, rtol=1e-4)
    assert parse_guide(f"classifier:{small.parent}=one").loss.files() == [small]
    assert parse_guide(f"classifier:{vit}=pond").loss.files() == []


@pytest.mark.parametrize("which", ["small", "vit"])
def test_its_gradient_turns_a_picture_into_the_class(which: str, request: pytest.FixtureRequest) -> None:
    source, name = request.getfixturevalue(which), {"small": "one", "vit": "pond"}[which]
    first, last = descend(f"classifier:{source}={name}", images(3), rate=5.0)
    assert (last < first - 0.1).all()


def test_a_classifier_of_transformers_is_asked_as_the_library_asks(vit: Path) -> None:
    from transformers import ViTForImageClassification

    pictures = images(2, size=16)
    with torch.no_grad():
        expected = ViTForImageClassification.from_pretrained(vit)((pictures / 2 + 0.5 - 0.4) / 0.3).logits
    torch.testing.assert_close(load_logits(str(vit), "cpu")(pictures), expected, atol=1e-5, rtol=1e-4)
    scored = parse_scorer(f"classifier:{vit}").score(pictures, ["goldfish", "tabby"])
    torch.testing.assert_close(scored, expected.log_softmax(1)[:, [1, 0]], atol=1e-5, rtol=1e-4)


def test_a_retrained_file_is_read_anew(small: Path, tmp_path: Path) -> None:
    import os

    path = tmp_path / "c.safetensors"
    path.write_bytes(small.read_bytes())
    before = load_logits(str(path), "cpu")(images(1))
    torch.manual_seed(9)
    save_classifier(path, SmallCNN(8, 3, width=4).eval(), ["a", "b", "c"])
    os.utime(path, ns=(1, 1))
    assert not torch.equal(load_logits(str(path), "cpu")(images(1)), before)


def test_what_is_refused(small: Path, clip: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'tow' is not one of the 3 classes") as caught:
        parse_guide(f"classifier:{small}=tow").loss.check()
    assert "two, three" in caught.value.hint
    for source, said in (
        (tmp_path / "none.safetensors", "no such file"), (clip, "no image classifier"), (tmp_path / "x/y/z", "no such")
    ):  # fmt: skip
        with pytest.raises(ModelError, match=said):
            parse_guide(f"classifier:{source}=one").loss.check()
    with pytest.raises(UsageError, match="class '3' is not one of the 2 classes that me knows"):
        class_number(["a", "b"], "3", "class", "me")
    assert class_names(str(small)) == ["zero", "one", "two, three"]
