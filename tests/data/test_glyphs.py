"""The dataset `glyphs`: what the captions say is what is drawn, and picture k depends on nothing but k."""

from __future__ import annotations

import math
import pickle
from io import BytesIO

import numpy as np
import pytest
from data_support import loader, same, take
from glyph_support import fake_mnist, handwriting
from PIL import Image

from diffkit.data.glyphs import dataset as glyphs
from diffkit.data.glyphs import drawing, fonts, wording
from diffkit.data.glyphs.composition import BOTH, SHAPE, SHARES, Plan
from diffkit.data.glyphs.wording import GLYPHS, INKS, LETTERS, SHAPES, Subject
from diffkit.data.preview import preview
from diffkit.errors import DataError, ModelError, UsageError
from diffkit.recipes.schema import DatasetSpec


@pytest.fixture(scope="module")
def mnist(tmp_path_factory):
    return fake_mnist(tmp_path_factory.mktemp("mnist"))


@pytest.fixture(autouse=True)
def _no_other_mnist(monkeypatch):
    monkeypatch.delenv(glyphs.ENVIRONMENT, raising=False)


def source(mnist, size=300, seed=0, split="train", resolution=32):
    spec = DatasetSpec(name="glyphs", split=split, resolution=resolution)
    return glyphs.Glyphs(str(mnist), size, seed).open(spec)


def pictures(opened, count):
    return opened.render(np.arange(count))


class TestPositionAlone:
    def test_the_same_seed_gives_the_same_pictures_and_words(self, mnist):
        a, b = source(mnist), source(mnist)
        assert np.array_equal(pictures(a, 300), pictures(b, 300))
        assert [a.caption(k) for k in range(300)] == [b.caption(k) for k in range(300)]

    def test_another_seed_or_split_gives_others(self, mnist):
        first = source(mnist)
        for other in (source(mnist, seed=1), source(mnist, split="validation"), source(mnist, split="test")):
            assert not any(np.array_equal(a, b) for a, b in zip(pictures(first, 50), pictures(other, 50), strict=True))
            assert [first.caption(k) for k in range(50)] != [other.caption(k) for k in range(50)]

    def test_a_picture_depends_neither_on_how_many_there_are_nor_on_its_neighbours(self, mnist):
        small, large = source(mnist, size=70), source(mnist, size=300)
        assert np.array_equal(pictures(small, 70), pictures(large, 70))
        assert [small.caption(k) for k in range(70)] == [large.caption(k) for k in range(70)]
        for k in (0, 63, 64, 69):
            assert np.array_equal(large.render(np.array([k]))[0], np.asarray(small.read(k)))

    def test_a_copy_in_another_process_draws_the_same(self, mnist):
        first = source(mnist)
        first.read(3)
        copy = pickle.loads(pickle.dumps(first))
        assert np.array_equal(np.asarray(copy.read(200)), np.asarray(first.read(200)))

    def test_memory_and_disk_give_the_same_batches(self, mnist):
        fields = {"name": f"glyphs:{mnist},100", "resolution": 32}
        memory = loader(DatasetSpec(cache="memory", **fields), batch_size=16)
        disk = loader(DatasetSpec(cache="disk", workers=2, **fields), batch_size=16)
        assert memory.shape == (3, 32, 32)
        same(take(memory.stream(3), 3), take(disk.stream(3), 3))


class TestPictures:
    def test_one_thing_in_one_ink_is_nothing_but_paper_and_that_ink(self, mnist):
        opened = source(mnist)
        for k, picture in enumerate(pictures(opened, 300)):
            subject = wording.parse(opened.caption(k))
            if opened.plan.kind[k] == BOTH:
                continue
            ink = np.array(drawing.RGB[subject.ink or subject.ground], dtype=float)
            away = 255.0 - ink
            amount = ((255.0 - picture) @ away) / (away @ away)
            assert np.abs(255.0 - amount[..., None] * away - picture).max() < 1.0
            assert amount.max() > 0.8
            assert 0.02 < amount.mean() < 0.6

    def test_a_glyph_on_a_shape_shows_the_shapes_colour_and_black(self, mnist):
        opened = source(mnist)
        drawn = pictures(opened, 300)
        chosen = np.flatnonzero(opened.plan.kind == BOTH)
        assert len(chosen) > 20
        shown = [int((drawn[k] == drawing.RGB[opened.plan.subject(k).ground]).all(-1).sum()) for k in chosen]
        assert min(shown) > 20  # a wide M in bold covers most of its shape
        assert np.median(shown) > 80
        for k in chosen:
            assert (np.abs(drawn[k].astype(int) - drawing.RGB["black"]).max(-1) < 60).sum() > 10

    def test_colours_are_far_apart(self):
        colours = np.array([*drawing.RGB.values(), (255, 255, 255)], dtype=float)
        distance = np.linalg.norm(colours[:, None] - colours[None], axis=-1) + 999 * np.eye(len(colours))
        assert distance.min() > 100

    def test_things_stand_near_the_middle_and_inside(self, mnist):
        opened = source(mnist)
        alone = opened.plan.kind != BOTH
        inked = (pictures(opened, 300) < 200).any(-1)[alone]
        rows, columns = inked.any(2), inked.any(1)
        for lines in (rows, columns):
            low, high = lines.argmax(1), 31 - lines[:, ::-1].argmax(1)
            assert np.abs((low + high) / 2 - 15.5).max() < 3
        extent = np.maximum(rows.sum(1), columns.sum(1))
        assert extent.min() > 15
        assert 22 < np.median(extent) < 27

    def test_other_resolutions_show_the_same(self, mnist):
        small, large = pictures(source(mnist), 20), pictures(source(mnist, resolution=64), 20)
        assert large.shape == (20, 64, 64, 3)
        shrunk = large.reshape(20, 32, 2, 32, 2, 3).mean((2, 4))
        assert np.abs(shrunk - small).mean() < 3

    @pytest.mark.parametrize("shape", SHAPES)
    def test_a_shapes_area_is_its_outlines(self, shape):
        x, y = np.array(drawing.outline(shape)).T
        area = 0.5 * abs(x @ np.roll(y, 1) - y @ np.roll(x, 1))
        if shape == "disc":
            assert area == pytest.approx(math.pi, rel=1e-3)
        reach = drawing.EXTENT * drawing._SMALLER.get(shape, 1.0) / 2
        mask = drawing.shape_masks()[SHAPES.index(shape)]
        assert mask.mean() / 255 == pytest.approx(area * reach**2, rel=0.01)

    def test_placing_scales_the_area_and_turning_keeps_it(self):
        mask = drawing.shape_masks()[[SHAPES.index("heart")] * 3]
        ones, zeros = np.ones((3, 2)), np.zeros(3)
        scale = ones * np.array([[1.0], [1.0], [0.5]])
        placed = drawing.Placement(scale, np.array([0.0, 0.3, 0.0]), zeros, np.zeros((3, 2)))
        plain, turned, half = drawing.place(mask, placed.inverse(), 32).mean((1, 2, 3)).tolist()
        assert turned == pytest.approx(plain, rel=0.01)
        assert half == pytest.approx(plain / 4, rel=0.02)

    def test_a_digit_is_moved_to_the_middle_and_made_as_large_as_the_others(self):
        digits = np.stack([np.asarray(Image.open(BytesIO(handwriting(0, d)))) for d in (0, 9)])
        still = drawing.Placement(np.ones((2, 2)), np.zeros(2), np.zeros(2), np.zeros((2, 2)))
        masks = drawing.place_digits(digits, still.inverse(), np.full(2, 0.5), 32)[:, 0].numpy() > 0.5
        for mask in masks:
            ys, xs = np.nonzero(mask)
            assert abs(xs.min() + xs.max() - 63) <= 2
            assert abs(ys.min() + ys.max() - 63) <= 2
            assert max(np.ptp(xs), np.ptp(ys)) + 1 == pytest.approx(64 * drawing.DIGIT, abs=2)


class TestWords:
    @pytest.mark.parametrize(
        ("subject", "text"),
        [
            (Subject("three", "black"), "a handwritten three"),
            (Subject("eight", "orange"), "an orange handwritten eight"),
            (Subject("A", "black"), "the letter A"),
            (Subject("M", "blue"), "the blue letter M"),
            (Subject(shape="heart", ground="red"), "a red heart"),
            (Subject(shape="disc", ground="black"), "a disc"),
            (Subject("three", "black", "disc", "red"), "a handwritten three on a red disc"),
        ],
    )
    def test_natural_captions(self, subject, text):
        assert wording.caption(subject) == text
        assert wording.parse(text) == subject

    def test_more_words(self):
        both = Subject("eight", "black", "tree", "orange")
        assert wording.caption(both, name_black=True, handwritten=False) == "a black eight on an orange tree"
        assert wording.caption(both, handwritten=False) == "an eight on an orange tree"
        assert wording.caption(both, open_part="glyph") == "a sign on an orange tree"
        assert wording.caption(both, handwritten=False, open_part="shape") == "an eight on a shape"
        assert wording.parse("The  letter a on a SHAPE") == Subject("A", "black", wording.ANY_SHAPE, None)
        assert wording.parse("a one").glyph == "one"
        with pytest.raises(KeyError):
            wording.parse("a violet heart")

    def test_the_language_is_closed_and_small(self, mnist):
        every = set(wording.captions())
        assert len(every) == len(wording.captions())
        words = wording.vocabulary()
        assert len(words) < 64
        assert {*GLYPHS, *SHAPES, *INKS} <= set(words)
        opened = source(mnist, size=3000)
        assert {opened.caption(k) for k in range(3000)} <= every

    def test_captions_say_what_the_plan_shows(self, mnist):
        opened = source(mnist, size=1500)
        left_open = 0
        for k in range(1500):
            meaning, subject = wording.parse(opened.caption(k)), opened.plan.subject(k)
            if meaning != subject:
                left_open += 1
                assert opened.plan.kind[k] == BOTH
                assert meaning in (
                    Subject(wording.ANY_GLYPH, None, subject.shape, subject.ground),
                    Subject(subject.glyph, subject.ink, wording.ANY_SHAPE, None),
                )
        assert left_open > 50

    def test_kinds_and_classes_are_as_frequent_as_they_should_be(self):
        plan = Plan(60_000, 0, "train")
        found = np.bincount(plan.kind, minlength=4) / 60_000
        np.testing.assert_allclose(found, SHARES, atol=0.01)
        letters = np.bincount(plan.glyph[plan.kind == 1] - 10, minlength=26)
        assert letters.min() > 0.85 * letters.mean()
        shapes = np.bincount(plan.shape[plan.kind == SHAPE], minlength=8)
        assert shapes.min() > 0.85 * shapes.mean()


class TestFonts:
    def test_only_readable_upright_faces(self):
        names = {face.stem for face in fonts.faces()}
        assert {"DejaVuSans", "DejaVuSerif", "STIXGeneral"} <= names
        assert not names & {"cmsy10", "cmex10", "cmmi10", "STIXSizOneSymReg", "LastResortHE-Regular"}
        assert not any("Italic" in name or "Oblique" in name for name in names)

    def test_training_and_judge_share_no_face(self):
        halves = [{face.stem for face in fonts.faces() if fonts.held_out(face) == judge} for judge in (False, True)]
        assert all(halves)
        assert not halves[0] & halves[1]
        for judge, names in zip((False, True), halves, strict=True):
            shape = (len(names), len(fonts.STROKES), 26, fonts.FIELD, fonts.FIELD)
            assert fonts.letter_masks(judge).shape == shape

    def test_a_letter_resembles_itself_in_other_faces_more_than_other_letters(self):
        reference = fonts.letter_masks(False)[:, 1].mean(0).reshape(26, -1)
        middle = reference.mean(0)
        directions = (reference - middle) / np.linalg.norm(reference - middle, axis=1, keepdims=True)
        for face in fonts.letter_masks(True)[:, 1]:
            nearest = ((face.reshape(26, -1) - middle) @ directions.T).argmax(1)
            assert (nearest == np.arange(26)).sum() >= 18  # by chance one

    def test_letters_are_centred_and_of_one_height(self):
        for masks in fonts.letter_masks(False).reshape(-1, fonts.FIELD, fonts.FIELD)[::7]:
            rows = np.flatnonzero((masks > 127).any(1))
            columns = np.flatnonzero((masks > 127).any(0))
            assert abs(rows[0] + rows[-1] - 63) <= 1
            assert abs(columns[0] + columns[-1] - 63) <= 1
            assert len(rows) == pytest.approx(fonts.HEIGHT / 4, abs=1.5)
        assert len(LETTERS) == 26


class TestMnist:
    def test_splits_share_no_digit(self, mnist):
        train, judge = (glyphs._digits(str(mnist), split).rows for split in ("train", "validation"))
        assert [len(rows) for rows in train] == [5] * 10
        assert [len(rows) for rows in judge] == [1] * 10
        assert not set(np.concatenate(train).tolist()) & set(np.concatenate(judge).tolist())
        assert [len(rows) for rows in glyphs._digits(str(mnist), "test").rows] == [2] * 10

    def test_the_environment_names_a_copy_and_the_argument_goes_first(self, mnist, tmp_path, monkeypatch):
        monkeypatch.setenv(glyphs.ENVIRONMENT, str(mnist))
        assert len(loader(DatasetSpec(name="glyphs:,40", resolution=32), batch_size=4).dataset.source) == 40
        with pytest.raises(DataError, match="no such folder"):
            loader(DatasetSpec(name=f"glyphs:{tmp_path / 'none'},40", resolution=32), batch_size=4)

    def test_without_any_the_error_says_both_ways_out(self):
        with pytest.raises(ModelError) as caught:
            glyphs.Glyphs().open(DatasetSpec(name="glyphs", resolution=32))
        assert caught.value.exit_code == 4
        assert "hf download --repo-type dataset ylecun/mnist" in caught.value.hint
        assert f"{glyphs.ENVIRONMENT}=FOLDER" in caught.value.hint
        assert "glyphs:FOLDER" in caught.value.hint

    def test_a_folder_without_ten_digits_is_refused(self, tmp_path):
        with pytest.raises(DataError, match="no MNIST"):
            source(fake_mnist(tmp_path, classes=7))

    @pytest.mark.parametrize(
        ("fields", "size", "error"),
        [({"split": "dev"}, 10, DataError), ({"streaming": True}, 10, UsageError), ({}, 0, UsageError)],
    )
    def test_what_makes_no_sense_is_refused(self, mnist, fields, size, error):
        with pytest.raises(error, match="glyphs"):
            glyphs.Glyphs(str(mnist), size).open(DatasetSpec(name="glyphs", resolution=32, **fields))


def test_preview_shows_the_captions(mnist, tmp_path):
    spec = DatasetSpec(name=f"glyphs:{mnist},200", resolution=32)
    path, payload = preview(spec, num=6, seed=0, out=tmp_path / "seen.png")
    opened = source(mnist, size=200)
    assert payload["labels"] == [opened.caption(k) for k in payload["ids"]]
    assert Image.open(path).size[0] > 3 * 200


def test_check_reads_every_picture(mnist):
    from diffkit.data.check import check

    report = check(DatasetSpec(name=f"glyphs:{mnist},80", resolution=32))
    assert (report.images, report.broken, report.captioned) == (80, [], 80)
    assert report.training["captions"] is True
