"""The command line of a job, and models that stay from one job to the next."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diffkit.jobs import job_class, run
from diffkit.jobs.base import build
from diffkit.jobs.command import command_line
from diffkit.jobs.options import Run
from diffkit.jobs.output import Result

CASES: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("sample", {"model": "tiny", "prompt": ("a red heart", "it's 2 o'clock"), "num": 5, "seed": 3}, ("steps=2,3",)),
    ("sample", {"model": "runs/x", "classes": ("two, three",), "raw": True, "guidance": 7.5}, ()),
    ("sample", {"guides": ["color:#3070ff@40", "image:photo.png"], "guide_through": "network"}, ("guide=color:red@1",)),
    ("sdedit", {"image": "photo.png", "strength": 0.42, "prompt": "a rocket ship"}, ("strength=0.2,0.5", "seed=1")),
    ("sdedit", {"image": "-photo.png", "label": "3", "mask": "mask.png", "invert_mask": True}, ()),
    ("inpaint", {"image": "photo.png", "mask": "mask.png", "model": "tiny", "resample": 2}, ()),
    ("invert", {"image": "photo.png", "refine": 0, "edit_prompt": "-"}, ()),
    ("anagram", {"p1": "a dog", "p2": "a village", "views": ["identity", "rotate_180"], "weights": (1.0, 0.5)}, ()),
    ("hybrid", {"p1": "a skull", "p2": "a waterfall", "split": "low_high:2"}, ()),
    ("denoise", {"image": "photo.png", "timesteps": [690], "methods": ("blur", "one_step"), "every": 5}, ()),
    ("noise", {"image": "photo.png", "sigma": [0.2, 0.5], "uniform": True}, ()),
    ("velocity", {"image": "photo.png", "times": "0.25,0.5", "guidance": 1.0}, ()),
]


@pytest.mark.parametrize(("name", "values", "sweep"), CASES)
def test_a_command_line_gives_the_same_job_again(
    name: str, values: dict[str, Any], sweep: tuple[str, ...], run_cli: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for file in ("photo.png", "-photo.png"):
        Image.new("RGB", (16, 16), "red").save(tmp_path / file)
    Image.new("L", (16, 16), 255).save(tmp_path / "mask.png")
    cls = job_class(name)
    heard: list[tuple[Any, Run]] = []

    def listen(cls: Any, values: Any, options: Run, **_: Any) -> Result:
        heard.append((build(cls, values), options))
        return Result()

    monkeypatch.setattr(run, "run", listen)
    job = build(cls, values)
    line = command_line(job, sweep=sweep, gif=name == "sample")
    program, *words = shlex.split(line)
    ran = run_cli(*words)
    assert (program, ran.code) == ("diffkit", 0), ran.stderr
    again, options = heard[0]
    kept, asked = again.model_dump(mode="json"), job.model_dump(mode="json")
    if asked.get("image"):
        kept["image"] = kept["image"].removeprefix("./")
    assert kept == asked
    assert options.sweep == sweep
    assert options.gif is (name == "sample")


def test_a_model_is_loaded_once_for_several_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFKIT_CACHE", str(tmp_path / "cache"))
    loads: list[str] = []
    real = run.load_opened
    monkeypatch.setattr(
        run, "load_opened", lambda repo, known, how: (loads.append(known.id), real(repo, known, how))[1]
    )
    values = {"model": "tiny", "prompt": "a red heart", "steps": 2}
    sample, models = job_class("sample"), {}
    alone = run.run(sample, values, Run(files=False)).pictures[0]
    for options in ({"prompt": "a green tree"}, {}, {"seed": 1}, {}):
        last = run.run(sample, {**values, **options}, Run(files=False), models=models).pictures[0]
    assert loads == ["tiny", "tiny"]
    assert last.tobytes() == alone.tobytes()
