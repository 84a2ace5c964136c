"""Features by name: against the libraries' own, their hash, their resizing, and the laws over all rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffkit.errors import ModelError, UsageError
from diffkit.evaluation.classifier import SmallCNN, load_classifier, save_classifier
from diffkit.evaluation.features import FEATURES, parse_features, resized
from diffkit.evaluation.inception import FIDInception, convert
from diffkit.pictures.tensors import from_tensor, to_tensor


def images(count: int, channels: int = 3, size: int = 16, seed: int = 0) -> Tensor:
    found = torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return to_tensor(from_tensor(found))


def make_clip(folder: Path) -> str:
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    tiny = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**tiny, "vocab_size": 50}, vision_config={**tiny, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )  # fmt: skip
    CLIPModel(config).eval().save_pretrained(folder)
    return f"clip:{folder}"


def make_dinov2(folder: Path) -> str:
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=7)
    Dinov2Model(config).eval().save_pretrained(folder)
    return f"dinov2:{folder}"


def make_inception(folder: Path) -> str:
    torch.manual_seed(0)
    network = FIDInception()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    folder.mkdir()
    torch.save({**network.state_dict(), "fc.weight": torch.zeros(1008, 2048)}, folder / "usual.pth")
    return f"inception:{convert(folder / 'usual.pth', folder / 'inception.safetensors')}"


def make_classifier(folder: Path) -> str:
    torch.manual_seed(0)
    folder.mkdir()
    save_classifier(folder / "classifier.safetensors", SmallCNN(8, 3, width=4).eval(), ["a", "b", "c"])
    return f"classifier:{folder / 'classifier.safetensors'}"


MAKERS = {"clip": make_clip, "dinov2": make_dinov2, "inception": make_inception, "classifier": make_classifier}
DIMENSIONS = {"clip": 8, "dinov2": 16, "inception": 2048, "classifier": 24}


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {name: make(tmp_path_factory.mktemp(name) / "m") for name, make in MAKERS.items()}


def test_every_row_has_a_maker() -> None:
    assert set(MAKERS) == set(FEATURES)


@pytest.mark.parametrize("name", MAKERS)
def test_a_row_is_one_of_its_kind(name: str, specs: dict[str, str]) -> None:
    """Laws: the dimensions it says, grey is colour, the batch does not matter, the hash is that of the weights."""
    row = parse_features(specs[name])
    assert row.dimensions == DIMENSIONS[name]
    grey = images(3, 1, 20)
    found = row.embed(grey)
    assert found.shape == (3, row.dimensions)
    assert found.dtype == torch.float32
    assert found.std(0).max() > 0
    torch.testing.assert_close(row.embed(grey.expand(-1, 3, -1, -1)), found, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(row.embed(grey[1:2]), found[1:2], atol=1e-4, rtol=1e-3)
    assert row.hash == parse_features(specs[name]).hash
    with torch.no_grad():
        next(iter(row.network.module.parameters())).view(-1)[0].add_(1e-3)
    changed = type(row)(row.source)
    changed.__dict__["network"] = row.network
    assert changed.hash != row.hash


def test_hashes_of_different_features_differ(specs: dict[str, str]) -> None:
    assert len({parse_features(spec).hash for spec in specs.values()}) == len(specs)


def test_clip_is_the_librarys_own(specs: dict[str, str]) -> None:
    from transformers import CLIPImageProcessor, CLIPModel

    pictures = images(3)
    process = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    with torch.no_grad():
        model = CLIPModel.from_pretrained(specs["clip"].partition(":")[2])
        wanted = model.get_image_features(**process(images=from_tensor(pictures), return_tensors="pt"))
    wanted = wanted if isinstance(wanted, Tensor) else wanted.pooler_output
    torch.testing.assert_close(parse_features(specs["clip"]).embed(pictures), wanted, atol=1e-5, rtol=1e-4)


def test_dinov2_is_the_librarys_class_token(specs: dict[str, str]) -> None:
    from transformers import Dinov2Model

    pictures = images(2, size=28)
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        model = Dinov2Model.from_pretrained(specs["dinov2"].partition(":")[2])
        wanted = model(pixel_values=(pictures / 2 + 0.5 - mean) / std).pooler_output
    torch.testing.assert_close(parse_features(specs["dinov2"]).embed(pictures), wanted, atol=1e-5, rtol=1e-4)


def test_inception_has_the_size_of_the_published_network(specs: dict[str, str]) -> None:
    """21,785,568 parameters below the classification, and 94 convolutions; its file holds no classification."""
    row = parse_features(specs["inception"])
    assert row.size == 299
    assert sum(p.numel() for p in row.network.module.parameters()) == 21_785_568
    held = load_file(row.source)
    assert len(held) == 5 * 94
    assert {"Conv2d_1a_3x3.conv.weight", "Mixed_6e.branch7x7dbl_5.bn.running_var"} < set(held)


def test_inception_files_that_are_none(specs: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no file named"):
        parse_features("inception")
    with pytest.raises(ModelError, match="no such file") as caught:
        parse_features(f"inception:{tmp_path / 'none.safetensors'}")
    assert "convert_inception" in caught.value.hint
    held = load_file(specs["inception"].partition(":")[2])
    held.pop("Mixed_7c.branch1x1.conv.weight")
    save_file(held, tmp_path / "less.safetensors")
    with pytest.raises(ModelError, match=r"Mixed_7c.branch1x1.conv.weight is missing \(1 of 470"):
        parse_features(f"inception:{tmp_path / 'less.safetensors'}").embed(images(1))
    torch.save({"a": [1]}, tmp_path / "other.pth")
    with pytest.raises(ModelError, match="no tensors by name"):
        convert(tmp_path / "other.pth", tmp_path / "x.safetensors")
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet.pth")
    with pytest.raises(ModelError, match="is missing"):
        convert(tmp_path / "resnet.pth", tmp_path / "x.safetensors")


def test_the_classifiers_features_are_means_over_its_maps(specs: dict[str, str]) -> None:
    network, _ = load_classifier(Path(specs["classifier"].partition(":")[2]))
    pictures = images(4, 1, 8)
    first = F.relu(network.layers[1](network.layers[0](pictures))).mean((2, 3))
    found = parse_features(specs["classifier"]).embed(pictures)
    torch.testing.assert_close(found[:, :4], first.detach())


def test_resizing_is_antialiased_and_leaves_a_flat_picture_flat() -> None:
    stripes = torch.ones(1, 1, 64, 64)
    stripes[..., ::2] = -1
    assert resized(stripes, 16)[..., 2:-2].abs().max() < 0.1  # without the filter every pixel would be an extreme
    flat = torch.full((1, 3, 16, 16), 0.25)
    torch.testing.assert_close(resized(flat, 299), torch.full((1, 3, 299, 299), 0.25))
    assert resized(images(1) * 3, 40).abs().max() <= 1
    assert resized(flat, 16) is flat


def test_names_and_what_is_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown features 'clap'") as caught:
        parse_features("clap:x")
    assert "clip" in caught.value.hint
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match="bert, not CLIP"):
        parse_features(f"clip:{tmp_path}")
    with pytest.raises(ModelError, match="bert, not dinov2 or dinov2_with_registers"):
        parse_features(f"dinov2:{tmp_path}")
    with pytest.raises(ModelError, match="not in the local cache"):
        parse_features("dinov2")
    with pytest.raises(UsageError, match="classifier: no file named"):
        parse_features("classifier").embed(images(1))
