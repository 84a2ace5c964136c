"""The judge's book-keeping, without training one: what it is asked, what counts as right."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from glyph_support import fake_mnist

from diffkit.data.glyphs.wording import GLYPHS, INKS, SHAPES, Subject, caption, parse

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="benchmarks are not part of this installation")


@pytest.fixture
def judge(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import glyph_judge

    return glyph_judge


@pytest.fixture
def quality(judge):
    import glyph_quality

    return glyph_quality


def test_truth_is_what_the_pictures_show(judge, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFKIT_MNIST", str(fake_mnist(tmp_path)))
    images, truth = judge.split("train", 200)
    from diffkit.data.glyphs.dataset import Glyphs
    from diffkit.recipes.schema import DatasetSpec

    source = Glyphs(size=200).open(DatasetSpec(name="glyphs", resolution=32))
    names = {head: [judge.HEADS[head][i] for i in rows.tolist()] for head, rows in truth.items()}
    verdict = judge.Verdict(**names)
    assert all(all(verdict.right(k, parse(source.caption(k))).values()) for k in range(200))
    assert tuple(images.shape) == (200, 3, 32, 32)
    assert images.min() >= -1
    assert images[:, :, 0, 0].median() == 1


def test_right_counts_what_a_caption_names(judge):
    seen = judge.Verdict(["zero", "A"], ["-", "heart"], ["black", "black"], ["-", "red"])
    assert seen.right(0, Subject("O", "black")) == {"glyph": False, "shape": True, "colour": True}
    assert seen.right(0, Subject("O", "black"), twins=True)["glyph"]
    assert not seen.right(0, Subject("Q", "black"), twins=True)["glyph"]
    assert all(seen.right(1, parse("a sign on a red heart")).values())
    assert all(seen.right(1, parse("the letter A on a shape")).values())
    assert seen.right(1, parse("a red heart")) == {"glyph": False, "shape": True, "colour": True}
    assert seen.right(1, parse("the letter A on a blue heart")) == {"glyph": True, "shape": True, "colour": False}


def test_scores_are_log_probabilities_of_what_is_named(judge):
    network = judge.GlyphJudge(width=4)
    read = judge.Reader(network)
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    letters = read.score(images, [caption(Subject(glyph, "black")) for glyph in GLYPHS])
    none = read.logits(images)["glyph"].softmax(1)[:, -1]
    torch.testing.assert_close(letters.exp().sum(1) + none, torch.ones(5))
    glyph, shape, both = read.score(images, ["the letter A", "a red tree", "the letter A on a red tree"]).T
    torch.testing.assert_close(both, glyph + shape)


def test_blur_keeps_what_is_flat_and_the_mean(judge):
    flat = torch.full((2, 3, 32, 32), 0.5)
    torch.testing.assert_close(judge.blur(flat, torch.tensor([0.0, 3.0])), flat)
    dot = torch.zeros(2, 1, 32, 32)
    dot[:, :, 16, 16] = 1
    sharp, soft = judge.blur(dot, torch.tensor([0.0, 2.0]))
    torch.testing.assert_close(sharp, dot[0])
    torch.testing.assert_close(soft.sum(), torch.tensor(1.0))
    torch.testing.assert_close(soft.max(), torch.tensor(1 / (2 * torch.pi * 4)), rtol=0.02, atol=0)


def test_every_class_is_asked_for_equally_often(quality):
    count = {kind: quality.subjects(kind, 880) for kind in quality.KINDS}
    assert {s.glyph for s in count["digits"]} | {s.glyph for s in count["letters"]} == set(GLYPHS)
    pairs = [(s.shape, s.ground) for s in count["shapes"]]
    assert {pairs.count((shape, ink)) for shape in SHAPES for ink in INKS} == {22}
    assert {(s.ink or s.ground) for s in count["colours"]} == set(INKS[1:])
    assert all(parse(caption(s)) == s for kind in quality.KINDS for s in count[kind])
