"""Two processes on the CPU, started as a user starts them."""

import json
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from tiny_run import TINY, assert_same_run

from diffkit.data import Loader, open_dataset
from diffkit.training import checkpoint, fit

CONFIG = Path(__file__).parents[2] / "recipes" / "accelerate" / "cpu.yaml"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def launch(folder, *sets, check=True):
    items = [i for s in [*TINY, f"output.dir={folder}", *sets] for i in ("--set", s)]
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIG),
        "--main_process_port", free_port(),
        "-m", "diffkit", "train", "digits", "--json", *items,
    ]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, check=check, capture_output=True, text=True, env=env, timeout=300)


def rows(folder):
    lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_two_processes_are_one_with_twice_the_batch(tmp_path, tiny):
    """The same images per update in the same order, the same learning rates, the same epochs; one writer."""
    done = launch(tmp_path / "two", "training.batch_size=4")
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == 1
    assert json.loads(lines[0])["step"] == 12
    one = fit(tiny(out="one"))
    two_rows, one_rows = rows(tmp_path / "two"), rows(one["output_dir"])
    for key in ("step", "epoch", "lr", "images"):
        assert [r.get(key) for r in two_rows] == [r.get(key) for r in one_rows]
    # The losses differ by their noise alone, which belongs to the process; they measure the same images.
    assert two_rows[-1]["loss"] == pytest.approx(one_rows[-1]["loss"], rel=0.3)
    recipe = tiny()
    dataset = open_dataset(recipe.dataset, seed=0)
    whole = Loader(dataset, recipe.dataset, batch_size=8, seed=0).stream(0)
    ranks = [Loader(dataset, recipe.dataset, batch_size=4, seed=0, rank=r, world=2).stream(0) for r in (0, 1)]
    for _ in range(20):
        parts = [next(rank) for rank in ranks]
        batch = next(whole)
        assert torch.equal(batch.images, torch.cat([p.images for p in parts]))
        assert torch.equal(batch.labels, torch.cat([p.labels for p in parts]))


def test_a_resumed_run_of_two_processes_is_bit_equal(tmp_path):
    more = ["training.batch_size=4", "training.gradient_accumulation=2", "dataset.validation=0.2"]
    launch(tmp_path / "whole", *more)
    launch(tmp_path / "resumed", *more)
    newest = checkpoint.find(tmp_path / "resumed" / "checkpoints")[0]
    (newest / "network.safetensors").write_bytes(b"broken")
    again = launch(tmp_path / "resumed", *more)
    assert json.loads(again.stdout.splitlines()[-1])["resumed_from"].endswith("step-0000008")
    assert "network.safetensors" in again.stderr
    assert_same_run(tmp_path / "whole", tmp_path / "resumed")


def test_two_processes_share_an_evaluation_and_train_as_without_one(tmp_path, monkeypatch):
    from diffkit.evaluation.classifier import SmallCNN, save_classifier

    monkeypatch.setenv("DIFFKIT_CACHE", str(tmp_path / "kit"))
    save_classifier(tmp_path / "judge.safetensors", SmallCNN(8, 3, width=4).eval(), ["a", "b", "c"])
    more = ["training.batch_size=4"]
    measured = [
        "training.evaluate_every=6", "training.evaluate_images=70", "training.evaluate_steps=2",
        f"training.evaluate_features=classifier:{tmp_path / 'judge.safetensors'}",
    ]  # fmt: skip
    launch(tmp_path / "plain", *more)
    done = launch(tmp_path / "measured", *more, *measured)
    assert_same_run(tmp_path / "plain", tmp_path / "measured")
    found = [row for row in rows(tmp_path / "measured") if "kid" in row]
    assert [(row["step"], row["evaluated"]) for row in found] == [(6, 70), (12, 70)]
    best = json.loads(done.stdout.splitlines()[-1])["best"]
    assert best["kid"] == min(row["kid"] for row in found)
    assert (tmp_path / "measured" / "best" / "model_index.json").is_file()


def test_another_number_of_processes_is_refused(tmp_path, tiny):
    fit(tiny(out="run"))
    done = launch(tmp_path / "run", check=False)
    assert done.returncode != 0
    assert "processes: 1 -> 2" in done.stdout + done.stderr


def test_sharded_weights_are_gathered_and_put_back(tmp_path):
    """FSDP2 on two CPU processes: what `collect` saves is the whole state, and `restore` shards it again."""
    script = tmp_path / "sharded.py"
    script.write_text(textwrap.dedent(SHARDED))
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", free_port(),
        str(script), str(tmp_path),
    ]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "ok0").exists()
    assert (tmp_path / "ok1").exists()


SHARDED = """
import os
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.device_mesh import init_device_mesh
from diffkit.training import checkpoint, state as states
from diffkit.training.ema import EMA
from diffkit.training.loop import TrainState
from diffkit.training.optim import make_optimizer, gradient_norm, step_unless
from diffkit.recipes.schema import TrainingSpec

if not hasattr(torch.cpu.Stream, "record_event"):  # torch 2.6: its FSDP2 calls them, on a GPU they are there
    torch.cpu.Stream.record_event = lambda self, event=None: event or torch.cpu.Event()
    torch.cpu.Stream.wait_event = lambda self, event: None

root = Path(sys.argv[1])
dist.init_process_group("gloo")
rank = dist.get_rank()
mesh = init_device_mesh("cpu", (2,))

def build():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.SiLU(), torch.nn.Linear(6, 4))
    fully_shard(net, mesh=mesh)
    optimizer = make_optimizer(net, TrainingSpec(lr=0.1), torch.device("cpu"))
    return TrainState(net, net, optimizer, EMA(net, 0.9), None, torch.device("cpu"))

def steps(state, first, count):
    for k in range(first, first + count):
        x = torch.full((3, 4), float(k + rank))
        state.network(x).square().mean().backward()
        norm = gradient_norm(list(state.network.parameters()), 1.0)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        step_unless(state.optimizer, (~torch.isfinite(norm)).float())
        state.optimizer.zero_grad()
        state.ema.update(state.step)
        state.step += 1

state = build()
steps(state, 0, 3)
files = states.collect(state)
assert files["network"]["0.weight"].shape == (6, 4), files["network"]["0.weight"].shape
assert all(not hasattr(v, "full_tensor") for part in files.values() for v in part.values())
if rank == 0:
    checkpoint.save(root / "c", 3, files, states.summary(state))
dist.barrier()
steps(state, 3, 3)
other = build()
states.restore(other, checkpoint.newest(root / "c"))
steps(other, 3, 3)
a, b = states.collect(state), states.collect(other)
for part in a:
    assert a[part].keys() == b[part].keys()
    for name in a[part]:
        assert torch.equal(a[part][name], b[part][name]), (part, name)
(root / f"ok{rank}").write_text("")
dist.destroy_process_group()
# No shutdown of the interpreter: torch's caches keep the mesh and so Gloo's threads alive to the very end (those of
# diffkit's own runs end before), and one that lets go of a tensor while the interpreter shuts down aborts the process.
os._exit(0)
"""
