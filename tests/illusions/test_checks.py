"""What fits a model, by what it says of itself; how a view acts on a padded sample."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler

from diffkit.errors import UsageError
from diffkit.illusions.checks import Inside, check_fit, latent_way, notes, notes_on_latents, view_in
from diffkit.illusions.composition import Composition
from diffkit.illusions.filters import parse_filter
from diffkit.illusions.views import VIEWS, parse_view
from diffkit.models import info, open_repo
from diffkit.models.ddpm import PixelCodec
from diffkit.models.meta import RunMeta
from diffkit.models.network import build_network, save_pipeline
from diffkit.recipes.schema import ModelSpec
from tests.engine.test_levels import base_of
from tests.support.illusions import anagram, hybrid, info_of, plainly, views


def test_latents_are_viewed_directly_where_that_nearly_commutes(folders) -> None:
    known = info(open_repo(str(folders["sd"])))
    for names, split, way in (
        (("identity", "flip"), None, "direct"),
        (("rotate_cw", "rotate_180"), None, "direct"),
        (("identity", "negate"), None, "decode"),
        (("identity", "jigsaw:2"), None, "decode"),
        (("identity", "identity"), "low_high:2", "direct"),
        (("identity", "identity"), "grey_colour", "decode"),
    ):
        several = Composition(views(*names), split and parse_filter(split))
        assert latent_way(several, known) == way
        (said,) = notes_on_latents(several, known)
        assert said.startswith("approximate")
    assert notes_on_latents(plainly(), known) == []
    # Three channels are not colours where they are latents, as of the models with a vector-quantised encoder.
    three = replace(known, sample=(3, *known.sample[1:]))
    for split, way in (("low_high:2", "direct"), ("grey_colour", "decode")):
        assert latent_way(hybrid(split), three) == way
    with pytest.raises(UsageError, match="have no colours"):
        check_fit(hybrid("grey_colour", latent="direct"), three)
    with pytest.raises(UsageError, match="-z is no negative"):
        check_fit(anagram("identity", "negate", latent="direct"), known)
    with pytest.raises(UsageError, match="draws pixels"):
        check_fit(anagram("identity", "flip", latent="decode"), info(open_repo(str(folders["if"]))))


@pytest.mark.parametrize(
    ("family", "several", "said"),
    [
        ("classes", anagram("identity", "patch_permute:99"), "patch_permute"),
        ("classes", hybrid("grey_colour"), "3 channels, not of 1"),
        ("sd", hybrid("grey_colour", latent="direct"), "have no colours"),
    ],
)
def test_what_does_not_fit_is_said_by_the_configuration_alone(
    folders, family: str, several: Composition, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        check_fit(several, info(open_repo(str(folders[family]))))


@pytest.mark.parametrize(("name", "square"), [(name, VIEWS[name].square) for name in sorted(VIEWS)])
def test_oblong_pictures_take_the_views_that_need_no_square(name: str, square: bool) -> None:
    oblong = info_of((3, 24, 32), base_of("epsilon"))
    assert square == (name not in ("identity", "flip", "rotate_180", "negate"))
    if name == "permutation":  # needs a file
        return
    if square:
        with pytest.raises(UsageError, match="32x24") as caught:
            check_fit(anagram("identity", name), oblong)
        assert "rotate_180" in caught.value.hint
        return
    check_fit(anagram("identity", name), oblong)
    x = torch.randn(2, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    view = parse_view(name)
    assert view.apply(x).shape == x.shape
    torch.testing.assert_close(view.invert(view.apply(x)), x, rtol=0, atol=0)


def test_a_split_is_checked_at_both_sides() -> None:
    check_fit(hybrid("low_high:2"), info_of((3, 24, 32), base_of("epsilon")))
    assert notes(hybrid("low_high:2"), info_of((3, 24, 32), base_of("epsilon"))) == []
    assert notes(hybrid("low_high:2"), info_of((3, 64, 64), base_of("epsilon"))) == []
    (said,) = notes(hybrid("low_high:2"), info_of((3, 64, 8), base_of("epsilon")))  # sigma is counted in the width
    assert "(high) is nearly empty at 8x64 px" in said


@pytest.mark.parametrize("name", sorted(set(VIEWS) - {"permutation"}))  # which needs a file
@pytest.mark.parametrize("padded", [12, 13])
def test_a_view_of_a_padded_sample_is_the_view_of_the_picture(name: str, padded: int) -> None:
    view = parse_view({"patch_permute": "patch_permute:3", "jigsaw": "jigsaw:3"}.get(name, name))
    codec = PixelCodec(9, padded)
    plain = info_of((1, 9, 9), base_of("epsilon"))
    inside = view_in(view, replace(plain, sample=(1, padded, padded)))
    x = torch.randn(2, 1, padded, padded, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(codec.decode(inside.apply(x)), view.apply(codec.decode(x)), rtol=0, atol=0)
    torch.testing.assert_close(inside.invert(inside.apply(x)), x, rtol=0, atol=0)
    torch.testing.assert_close(inside.apply(x).norm(), x.norm())
    turns = view.latent == "close" and (name == "identity" or padded == 13)
    assert isinstance(inside, Inside) == (view.spatial and not turns)
    assert view_in(view, plain) is view


@pytest.mark.parametrize("name", sorted(set(VIEWS) - {"permutation"}))
@pytest.mark.parametrize(("mean", "std"), [((-1.0,) * 3, (2.0,) * 3), ((0.3, -0.2, 0.0), (0.5, 0.4, 0.7))])
def test_views_act_on_samples_of_another_range_as_on_pictures(
    name: str, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    """A view is taken where it commutes with the codec, and refused where it does not."""
    codec, view = PixelCodec(12, 12, mean, std), parse_view({"patch_permute": "patch_permute:3"}.get(name, name))
    known = info_of((3, 12, 12), base_of("epsilon"), grey=tuple(-m / s for m, s in zip(mean, std, strict=True)))
    x = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    off = float((codec.decode(view.apply(x)) - view.apply(codec.decode(x))).abs().max())
    check_fit(anagram("identity", view.spec), replace(known, grey=()))
    if off < 1e-5:
        check_fit(anagram("identity", view.spec), known)
        return
    assert name == "negate"
    with pytest.raises(UsageError, match="negate changes signs"):
        check_fit(anagram("identity", view.spec), known)


@pytest.mark.parametrize(("mean", "std", "code"), [([-1.0], [2.0], 2), ([0.0], [0.5], 0), ([], [], 0)])
def test_the_negative_of_a_range_that_is_not_symmetric_is_refused_by_the_command(
    tmp_path: Path, run_cli, mean: list[float], std: list[float], code: int
) -> None:
    torch.manual_seed(0)
    spec = ModelSpec(preset="tiny", class_conditioning="none")
    network = build_network(spec, shape=(1, 8, 8))
    meta = RunMeta(resolution=8, channels=1, mean=mean, std=std)
    save_pipeline(tmp_path / "m", network, DDPMScheduler(clip_sample=False), meta)
    words = ["anagram", "-m", tmp_path / "m", "--p1", "", "--p2", "", "--steps", "2", "--out", tmp_path]
    ran = run_cli(*words, "--view", "negate")
    assert ran.code == code, ran.stderr
    if code:
        assert "range is not symmetric" in ran.stderr
        assert "flip" in ran.stderr
    assert run_cli(*words, "--view", "flip", "--dry-run").code == 0


@pytest.mark.parametrize("family", ["sd", "classes"])
def test_views_of_squares_name_the_size_in_pixels(folders, family: str) -> None:
    known = info(open_repo(str(folders[family])))
    (height, width), (channels, rows, columns) = known.size, known.sample
    wide = replace(known, size=(height, 2 * width), sample=(channels, rows, 2 * columns))
    with pytest.raises(UsageError, match=f"draws {2 * width}x{height} here, and view rotate_cw is of squares"):
        check_fit(anagram("identity", "rotate_cw"), wide)
