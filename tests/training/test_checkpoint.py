"""A checkpoint is whole or it is not there."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch

from diffkit.errors import BusyError, ModelError, ResourceError, UsageError
from diffkit.training import checkpoint
from diffkit.training.lock import hold, prepare_folder


def write(root, step, keep=2):
    tensors = {"network": {"w": torch.full((4, 4), float(step))}, "optimizer": {"m/w": torch.ones(4, 4)}}
    return checkpoint.save(root, step, tensors, {"step": step, "note": "é"}, keep=keep)


def test_round_trip_and_pruning(tmp_path):
    for step in (1, 2, 3, 4):
        write(tmp_path, step)
    assert [p.name for p in checkpoint.find(tmp_path)] == ["step-0000004", "step-0000003"]
    newest = checkpoint.newest(tmp_path)
    assert (newest.step, newest.state["note"]) == (4, "é")
    assert torch.equal(newest.tensors("network")["w"], torch.full((4, 4), 4.0))
    assert checkpoint.newest(tmp_path / "nothing") is None


def truncate(folder):
    path = folder / "network.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    return "network.safetensors"


def flip(folder):
    path = folder / "network.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    return "network.safetensors"


def remove(folder):
    (folder / "optimizer.safetensors").unlink()
    return "optimizer.safetensors"


def unmanifest(folder):
    (folder / "manifest.json").unlink()
    return "manifest.json"


def plant(folder):
    (folder / "extra.pkl").write_bytes(b"cos\nsystem\n(S'touch sentinel'\ntR.")
    return "extra.pkl"


@pytest.mark.parametrize("damage", [truncate, flip, remove, unmanifest, plant])
def test_a_broken_checkpoint_is_passed_over_and_named(tmp_path, caplog, damage):
    write(tmp_path, 1)
    name = damage(write(tmp_path, 2))
    with caplog.at_level("WARNING"):
        assert checkpoint.newest(tmp_path).step == 1
    assert name in caplog.text
    assert "falling back to checkpoint step-0000001" in caplog.text
    damage(tmp_path / "step-0000001")
    with pytest.raises(ModelError, match=name):
        checkpoint.newest(tmp_path)


def test_a_kill_after_each_file_of_a_save_leaves_the_previous_checkpoint(tmp_path):
    """The process dies at every point of a save at which it can: after each sync and right before the rename."""
    script = textwrap.dedent(
        """
        import os, sys, torch
        from pathlib import Path
        from diffkit.training import checkpoint
        root, fatal = Path(sys.argv[1]), int(sys.argv[2])
        sync, count = checkpoint.sync, 0
        def dying(path):
            global count
            sync(path)
            count += 1
            if count == fatal:
                os.kill(os.getpid(), 9)
        checkpoint.sync = dying
        tensors = {"network": {"w": torch.zeros(4, 4)}, "optimizer": {"m/w": torch.ones(4, 4)}}
        checkpoint.save(root, 2, tensors, {"step": 2})
        """
    )
    survived = 0
    for fatal in range(1, 8):
        root = tmp_path / str(fatal)
        write(root, 1)
        code = subprocess.run([sys.executable, "-c", script, str(root), str(fatal)], check=False).returncode
        newest = checkpoint.newest(root)
        if code == -9 and newest.step == 1:
            survived += 1
            assert list(root.glob(".tmp-*"))
            checkpoint.clean(root)
            assert not list(root.glob(".tmp-*"))
        else:  # killed after the rename, or not at all
            assert newest.step == 2
    assert survived == 5  # two tensor files, the state, the manifest, the folder


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("No space left on device (os error 28)")]
)
def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path, monkeypatch, error):
    write(tmp_path, 1)

    def full(*args, **kwargs):
        raise error

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(ResourceError, match="step 2"):
        write(tmp_path, 2)
    assert checkpoint.newest(tmp_path).step == 1
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_really_full_disk(tmp_path):
    """The same on a 1 MB file system, where the machine lets the test mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no right to mount a file system here")
    try:
        write(disk, 1)
        with pytest.raises(ResourceError, match="step 2"):
            checkpoint.save(disk, 2, {"network": {"w": torch.zeros(2_000_000)}}, {"step": 2})
        assert checkpoint.newest(disk).step == 1
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_the_second_run_on_a_folder_is_told_who_holds_it(tmp_path):
    script = "import sys\nfrom pathlib import Path\nfrom diffkit.training.lock import hold\n"
    script += "with hold(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(BusyError, match=str(other.pid)) as caught, hold(tmp_path):
            pass
        assert caught.value.exit_code == 7
        other.kill()
        other.wait()
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == other.pid
        with hold(tmp_path):  # a dead holder's lock is taken over
            assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def test_an_output_folder_that_cannot_be_made_is_a_usage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        prepare_folder(tmp_path / "file" / "run")
