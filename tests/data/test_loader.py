"""The stream's laws: permutation, ranks, resume, memory against disk, workers; one data order for all of them."""

import numpy as np
import pytest
import torch
from data_support import loader, picture, png, same, take, write_folder, write_parquet

from diffkit.data import Loader, open_dataset, store
from diffkit.errors import DataError, UsageError
from diffkit.recipes.schema import DatasetSpec


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "set", 23, classes=3)


def spec_of(folder, **fields):
    return DatasetSpec(name=str(folder), resolution=8, **{"workers": 0, **fields})


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_every_epoch_is_an_exact_permutation_and_batches_are_full(folder, cache):
    batches = take(loader(spec_of(folder, cache=cache)).stream(), 23)
    assert all(batch.images.shape == (4, 3, 8, 8) for batch in batches)
    ids = np.concatenate([batch.ids for batch in batches])
    for epoch in range(4):
        assert np.array_equal(np.sort(ids[epoch * 23 : (epoch + 1) * 23]), np.arange(23))


@pytest.mark.parametrize("crop", ["center", "random"])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_memory_and_disk_give_the_same_bits(folder, crop, flip, channels):
    fields = {"crop": crop, "flip": flip, "channels": channels, "validation": 0.2}
    memory = loader(spec_of(folder, cache="memory", **fields))
    disk = loader(spec_of(folder, cache="disk", **fields))
    same(take(memory.stream(), 14), take(disk.stream(), 14))
    same(list(memory.validation()), list(disk.validation()))


def test_workers_make_no_difference(folder):
    fields = {"crop": "random", "flip": True, "cache": "disk"}
    none = take(loader(spec_of(folder, workers=0, **fields)).stream(), 9)
    same(none, take(loader(spec_of(folder, workers=2, **fields)).stream(), 9))


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_starting_anywhere_is_the_rest_of_the_stream(folder, cache):
    spec = spec_of(folder, crop="random", flip=True, cache=cache)
    whole = take(loader(spec).stream(), 15)
    for start in range(15):
        same(take(loader(spec).stream(start), 15 - start), whole[start:])


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_two_processes_read_what_one_reads_with_twice_the_batch(folder, cache):
    spec = spec_of(folder, crop="random", flip=True, cache=cache)
    one = take(loader(spec, batch_size=8).stream(), 9)
    ranks = [take(loader(spec, batch_size=4, rank=r, world=2).stream(), 9) for r in range(2)]
    for whole, first, second in zip(one, *ranks, strict=True):
        assert np.array_equal(whole.ids, np.concatenate([first.ids, second.ids]))
        assert torch.equal(whole.images, torch.cat([first.images, second.images]))
        assert torch.equal(whole.labels, torch.cat([first.labels, second.labels]))


def test_the_seed_changes_order_and_augmentation(folder):
    spec = spec_of(folder, flip=True)
    first, second = (take(loader(spec, seed=s).stream(), 6) for s in (0, 1))
    assert not np.array_equal(first[0].ids, second[0].ids)


def test_augmentation_changes_from_epoch_to_epoch_and_flip_mirrors(folder):
    plain = {int(k): x for b in take(loader(spec_of(folder)).stream(), 6) for k, x in zip(b.ids, b.images, strict=True)}
    seen = {k: set() for k in plain}
    for batch in take(loader(spec_of(folder, flip=True)).stream(), 80):
        for k, x in zip(batch.ids.tolist(), batch.images, strict=True):
            mirrored = torch.equal(x, plain[k].flip(-1))
            assert mirrored or torch.equal(x, plain[k])
            seen[k].add(mirrored)
    assert sum(len(states) == 2 for states in seen.values()) >= 22  # 13 fair throws each


def test_random_crop_cuts_windows_of_the_scaled_image(tmp_path):
    ramp = np.tile(np.arange(0, 240, 10, dtype=np.uint8), (8, 1))  # 24 wide, 8 high
    (tmp_path / "set").mkdir()
    for k in range(5):
        png_path = tmp_path / "set" / f"{k}.png"
        png_path.write_bytes(png(_grey(ramp)))
    batches = take(loader(spec_of(tmp_path / "set", crop="random", cache="memory"), batch_size=5).stream(), 40)
    starts = set()
    for batch in batches:
        for x in ((batch.images[:, 0] + 1) * 127.5).round():
            first = int(x[0, 0])
            assert torch.equal(x[0], torch.arange(first, first + 80, 10).float())
            starts.add(first // 10)
    assert starts == set(range(17))


def _grey(array):
    from PIL import Image

    return Image.fromarray(array)


def test_validation_part_is_held_out_whole_and_never_trained_on(folder):
    spec = spec_of(folder, validation=0.25, flip=True, crop="random")
    one = loader(spec)
    held = np.concatenate([batch.ids for batch in one.validation()])
    assert len(held) == round(0.25 * 23)
    assert one.length == 23 - len(held)
    trained = np.concatenate([batch.ids for batch in take(one.stream(), 20)])
    assert set(trained) | set(held) == set(range(23))
    assert not set(trained) & set(held)
    same(list(one.validation()), list(loader(spec, seed=99).validation()))
    shares = [np.concatenate([b.ids for b in loader(spec, rank=r, world=2).validation()]) for r in range(2)]
    assert sorted(np.concatenate(shares)) == sorted(held)


def test_digits():
    one = loader(DatasetSpec(resolution=16), batch_size=64)
    assert one.length == 1797
    assert one.shape == (1, 16, 16)
    assert one.dataset.class_names == [str(k) for k in range(10)]
    batch = next(one.stream())
    assert batch.images.min() == -1
    assert batch.images.max() == 1
    from sklearn.datasets import load_digits

    digits = load_digits()
    assert np.array_equal(one.dataset.source.labels, digits.target)
    assert np.array_equal(batch.labels.numpy(), digits.target[batch.ids])
    eight = next(loader(DatasetSpec(resolution=8), batch_size=64).stream())
    # At their own size the pixels are the values 0..16, rounded to 8 bits.
    expected = np.rint(digits.images[eight.ids] * 255 / 16) / 127.5 - 1
    torch.testing.assert_close(eight.images[:, 0].double(), torch.from_numpy(expected), atol=1e-6, rtol=0)


def test_no_global_random_state_is_used(folder):
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    take(loader(spec_of(folder, cache="disk", workers=2, flip=True, crop="random")).stream(), 3)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_the_choice_is_by_size_and_is_said(folder, caplog, monkeypatch):
    with caplog.at_level("INFO", "diffkit.data"):
        small = loader(spec_of(folder))
    assert small._store is not None
    assert caplog.text.count("held in memory") == 1
    caplog.clear()
    monkeypatch.setattr(store, "LARGEST", 1000)
    with caplog.at_level("INFO", "diffkit.data"):
        large = loader(spec_of(folder))
    assert large._store is None
    assert "read from disk" in caplog.text
    same(take(small.stream(), 5), take(large.stream(), 5))


def damage(folder):
    (folder / "c0" / "img3.png").write_bytes(b"")
    (folder / "c1" / "img7.png").write_bytes(b"no image")
    data = (folder / "c2" / "img8.png").read_bytes()
    (folder / "c2" / "img8.png").write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_broken_images_under_skip_are_counted_and_never_drawn(folder, cache):
    names = [loader(spec_of(folder)).dataset.source.where(k) for k in range(23)]
    damage(folder)
    one = loader(spec_of(folder, cache=cache, on_error="skip"))
    assert (one.skipped, one.length) == (3, 20)
    for epoch in range(2):
        ids = np.concatenate([batch.ids for batch in take(one.stream(5 * epoch), 5)])
        assert len(set(ids.tolist())) == 20
        drawn = {names[k].rpartition("/")[2] for k in ids}
        assert drawn == {f"img{k}.png" for k in range(23)} - {"img3.png", "img7.png", "img8.png"}


def test_skipping_is_the_same_from_memory_and_disk(folder):
    damage(folder)
    fields = {"on_error": "skip", "flip": True, "validation": 0.1}
    first = loader(spec_of(folder, cache="memory", **fields))
    second = loader(spec_of(folder, cache="disk", workers=2, **fields))
    same(take(first.stream(), 12), take(second.stream(), 12))


@pytest.mark.parametrize("fields", [{"cache": "memory"}, {"cache": "disk"}, {"cache": "disk", "workers": 2}])
def test_a_broken_image_under_error_names_the_file(folder, fields):
    (folder / "c1" / "img7.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"img7\.png") as caught:
        take(loader(spec_of(folder, **fields)).stream(), 6)
    assert "diffkit data check" in caught.value.hint


def test_all_broken(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"none of the .* can be read"):
        loader(spec_of(tmp_path, on_error="skip"))


def test_captions_travel_with_their_images(tmp_path):
    cells = [png(picture(k)) for k in range(6)]
    write_parquet(tmp_path / "d.parquet", {"jpg": cells, "caption": [f"text {k}" for k in range(6)]})
    for cache in ("memory", "disk"):
        batch = next(loader(spec_of(tmp_path, cache=cache)).stream())
        assert batch.captions == [f"text {k}" for k in batch.ids]


def test_wrong_arguments(folder):
    spec = spec_of(folder)
    dataset = open_dataset(spec)
    for wrong in ({"batch_size": 0}, {"batch_size": 1, "rank": 2, "world": 2}):
        with pytest.raises(UsageError):
            Loader(dataset, spec, seed=0, **wrong)
    with pytest.raises(DataError, match="none left for training"):
        loader(spec_of(folder, limit=1, validation=0.5))


def test_what_workers_get_survives_pickling(folder, tmp_path):
    """Where processes are spawned, not forked, the decoder travels as a pickle."""
    import pickle

    write_parquet(tmp_path / "d.parquet", {"image": [png(picture(k)) for k in range(3)]})
    for path in (folder, tmp_path / "d.parquet"):
        decoder = loader(spec_of(path))._decoder
        copy = pickle.loads(pickle.dumps(decoder))
        assert np.array_equal(copy[(1, 0.3)], decoder[(1, 0.3)])
