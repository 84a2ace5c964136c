"""Hub ids without a Hub: the cache in both its forms, and one clear line within seconds where there is none."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from data_support import loader, picture, png, take, write_parquet, write_shards

from diffkit.data import open_dataset
from diffkit.errors import DataError, ModelError
from diffkit.recipes.schema import DatasetSpec


def spec_of(**fields):
    return DatasetSpec(**{"name": "someone/some_set", "resolution": 8, "workers": 0, **fields})


def fill_hub_cache(revision="main"):
    """What `hf download --repo-type dataset someone/some_set` leaves."""
    from huggingface_hub import constants

    root = Path(constants.HF_HUB_CACHE) / "datasets--someone--some_set"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / revision).write_text(commit)
    write_shards(root / "snapshots" / commit / "data")
    return root / "snapshots" / commit


def fill_datasets_cache(tmp_path, rows=7, commit="0123456789abcdef0123456789abcdef01234567"):
    """What a run with a network leaves: the prepared table under the Hub id."""
    import datasets

    source = write_parquet(tmp_path / "x.parquet", {"image": [png(picture(k)) for k in range(rows)]})
    datasets.load_dataset("parquet", data_files=str(source), split="train")
    cache = Path(datasets.config.HF_DATASETS_CACHE)
    made = next(cache.glob("parquet/*/*/*/dataset_info.json")).parent
    target = cache / "someone___some_set" / "default" / "0.0.0" / commit
    shutil.copytree(made, target)
    (target / "parquet-train.arrow").rename(target / "some_set-train.arrow")
    info = target / "dataset_info.json"
    config = made.parts[-3]
    text = info.read_text().replace(f'"{config}"', '"default"')
    info.write_text(text.replace('"dataset_name": "parquet"', '"dataset_name": "some_set"'))


def test_nothing_cached_names_the_command():
    started = time.monotonic()
    with pytest.raises(ModelError, match=r"someone/some_set.*not in the cache") as caught:
        open_dataset(spec_of(revision="v1"))
    assert time.monotonic() - started < 5
    assert "hf download --repo-type dataset someone/some_set --revision v1" in caught.value.hint


@pytest.mark.parametrize("streaming", [False, True])
def test_a_downloaded_snapshot_is_used(streaming):
    fill_hub_cache()
    one = loader(spec_of(streaming=streaming))
    assert one.dataset.class_names == ["a", "b", "c"]
    assert len(take(one.stream(), 2)) == 2
    assert streaming or one.length == 123
    marks = one.dataset.fingerprint(captions=True, classes=True)
    assert marks.get("source") == ("0123456789abcdef0123456789abcdef01234567" if streaming else None)
    assert marks.get("count") == (None if streaming else "123")


def test_a_partial_snapshot_is_said_to_be_incomplete():
    snapshot = fill_hub_cache()
    shutil.rmtree(snapshot / "data")
    (snapshot / "README.md").write_text("# some set\n")
    with pytest.raises(ModelError, match="incomplete") as caught:
        open_dataset(spec_of())
    assert "hf download" in caught.value.hint


def test_a_split_or_configuration_that_is_not_there():
    fill_hub_cache()
    with pytest.raises(DataError, match="split"):
        open_dataset(spec_of(split="nowhere"))
    with pytest.raises(DataError, match="'other' not found"):
        open_dataset(spec_of(config="other"))


def test_what_an_earlier_run_prepared_is_used(tmp_path):
    fill_datasets_cache(tmp_path)
    assert loader(spec_of()).length == 7


@pytest.mark.parametrize(("commit", "known"), [("89abcdef" * 5, True), ("abcdef", False)])
def test_a_stream_of_what_was_prepared_is_known_by_its_commit(tmp_path, commit, known):
    """An old version of `datasets` called the folder otherwise; then nothing is compared."""
    fill_datasets_cache(tmp_path, commit=commit)
    marks = open_dataset(spec_of(streaming=True)).fingerprint(captions=True, classes=True)
    assert marks == ({"source": commit} if known else {})


PROBE = """
import sys, time
import datasets
from diffkit.data import open_dataset
from diffkit.recipes.schema import DatasetSpec
started = time.monotonic()
try:
    open_dataset(DatasetSpec(name="someone/some_set"))
except Exception as error:
    print(type(error).__name__, error.exit_code, error, "|", error.hint)
    sys.exit(0 if time.monotonic() - started < 5 else 9)
"""


def test_an_unreachable_hub_costs_seconds_not_minutes(tmp_path):
    """A server that accepts and never answers is the slow case."""
    import socket

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        env = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "HF_HOME": str(tmp_path)}
        env["HF_ENDPOINT"] = f"http://127.0.0.1:{silent.getsockname()[1]}"
        done = subprocess.run([sys.executable, "-c", PROBE], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("ModelError 4 dataset 'someone/some_set': the Hub cannot be reached")
    assert "hf download --repo-type dataset someone/some_set" in done.stdout
