"""Streams: each epoch exact, shards divided among processes, resumed anywhere without replay beyond a block."""

import json

import numpy as np
import pytest
from data_support import loader, picture, png, same, take, write_parquet, write_shards

from diffkit.data import open_dataset, streaming
from diffkit.errors import DataError, UsageError
from diffkit.recipes.schema import DatasetSpec

TOTAL = 123


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(streaming, "BLOCK", 16)
    monkeypatch.setattr(streaming, "WINDOW", 8)


@pytest.fixture
def shards(tmp_path):
    return write_shards(tmp_path / "set")


def spec_of(path, **fields):
    return DatasetSpec(name=str(path), resolution=8, streaming=True, workers=2, **fields)


def all_ids(batches):
    return np.concatenate([batch.ids for batch in batches])


def test_every_epoch_is_a_permutation_in_another_order(shards):
    ids = all_ids(take(loader(spec_of(shards), batch_size=3).stream(), TOTAL))
    epochs = [ids[k * TOTAL : (k + 1) * TOTAL] for k in range(3)]
    for epoch in epochs:
        assert len(set(epoch.tolist())) == TOTAL
        assert set(epoch.tolist()) == set(ids.tolist())
    assert not np.array_equal(epochs[0], epochs[1])


def test_images_and_labels_belong_to_their_ids(shards):
    for batch in take(loader(spec_of(shards)).stream(), 10):
        for index, label in zip(batch.ids.tolist(), batch.labels.tolist(), strict=True):
            assert label == index % 2**40 % 3
    names = open_dataset(spec_of(shards)).class_names
    assert names == ["a", "b", "c"]


def test_resume_anywhere_goes_on_exactly(shards):
    spec = spec_of(shards, flip=True, crop="random")
    one = loader(spec, batch_size=5)
    batches, states = [], []
    for batch in take_lazily(one.stream(), 60):
        batches.append(batch)
        states.append(json.loads(json.dumps(one.state())))
    for k in range(0, 58, 3):
        same(take(loader(spec, batch_size=5).stream(k + 1, states[k]), 2), batches[k + 1 : k + 3])


def take_lazily(stream, count):
    for _, batch in zip(range(count), stream, strict=False):
        yield batch


def test_resume_reads_no_more_than_a_block_again(shards, monkeypatch):
    spec = spec_of(shards)
    one = loader(spec, batch_size=5)
    take(one.stream(), 20)
    state = one.state()
    read = []
    plain = streaming.StreamReader._block
    monkeypatch.setattr(
        streaming.StreamReader,
        "_block",
        lambda self, start, rows, number: read.append(len(rows)) or plain(self, start, rows, number),
    )
    two = loader(spec, batch_size=5)
    next(two.stream(20, state))
    assert sum(read[:1]) <= 16
    assert two.state()["epoch"] == state["epoch"]
    assert len(read) <= 3  # this block, and what is read ahead


def test_without_a_state_the_beginning_is_read_again(shards, caplog):
    whole = take(loader(spec_of(shards)).stream(), 6)
    same(take(loader(spec_of(shards)).stream(4), 2), whole[4:])
    assert "again" in caplog.text


@pytest.mark.parametrize("world", [2, 3, 5])
def test_processes_divide_an_epoch_among_them(shards, world):
    examples = open_dataset(spec_of(shards)).examples
    parts = []
    for rank in range(world):
        reader = streaming.StreamReader(examples, spec_of(shards), 1, seed=0, rank=rank, world=world)
        blocks = take_lazily(reader._blocks({}), 20)
        parts.append([index for block in blocks if block.epoch == 0 for index, _ in block.rows])
    together = [index for part in parts for index in part]
    assert len(together) == len(set(together)) == TOTAL
    assert all(parts)


def test_broken_rows(tmp_path):
    cells = [png(picture(k)) for k in range(12)]
    cells[5] = b"no image"
    write_parquet(tmp_path / "a.parquet", {"image": cells})
    with pytest.raises(DataError, match="row 5"):
        take(loader(spec_of(tmp_path)).stream(), 6)
    one = loader(spec_of(tmp_path, on_error="skip"))
    ids = all_ids(take(one.stream(), 11))
    assert 5 not in ids
    assert all(len(set(ids[k * 11 : (k + 1) * 11].tolist())) == 11 for k in range(4))
    assert one.skipped >= 3
    assert one.state()["skipped"] == one.skipped


def test_colour_captions_and_limit(tmp_path):
    columns = {"image": [png(picture(k)) for k in range(9)], "text": [f"t{k}" for k in range(9)]}
    write_parquet(tmp_path / "a.parquet", columns)
    one = loader(spec_of(tmp_path, limit=4))
    assert (one.shape, one.length) == ((3, 8, 8), 4)
    batches = take(one.stream(), 3)
    assert set(all_ids(batches).tolist()) == {0, 1, 2, 3}
    assert batches[0].captions == [f"t{k}" for k in batches[0].ids]
    assert batches[0].labels is None


def test_what_a_stream_cannot_do(shards, tmp_path):
    with pytest.raises(UsageError, match="no part to hold out"):
        open_dataset(spec_of(shards, validation=0.1))
    write_parquet(tmp_path / "plain" / "a.parquet", {"image": [png(picture(0))], "label": [4]})
    assert open_dataset(spec_of(tmp_path / "plain")).class_names is None
    with pytest.raises(DataError, match="does not name its classes"):
        open_dataset(spec_of(tmp_path / "plain", class_column="label"))
    assert open_dataset(spec_of(shards)).length is None
