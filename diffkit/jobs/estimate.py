"""What a run would take, for `--dry-run`: read from configurations, without any weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from diffkit.engine.levels import course_time
from diffkit.jobs.output import Result
from diffkit.jobs.rows import Prepared, batches_of
from diffkit.jobs.shared import Batched
from diffkit.models.memory import count_parameters
from diffkit.models.parts import count_parts


def estimate(prepared: Prepared) -> Result:
    """Say what a prepared run would take.

    Raises:
        ModelError: A further stage is not there.
    """
    info, cells = prepared.info, prepared.table.cells
    calls = pictures = 0
    extra: Counter[str] = Counter()
    for number, (group, stages) in enumerate(zip(prepared.table.groups, prepared.stages, strict=True)):
        job = cells[group[0]].job
        rows = sum(len(cells[k].job.rows(info)) for k in group)
        size = job.batch_size if isinstance(job, Batched) else rows
        batches = batches_of(rows, size)
        searched = job.search_calls(info, size)
        calls += sum(prepared.calls(number, len(batch)) for batch in batches) + searched
        calls += sum(stage["steps"] for stage in stages) * len(batches)
        for name, count in job.extra_calls(info, prepared.timesteps[number]).items():
            extra[name] += count * len(batches)
        for name, count in job.extra_calls(info, [0] * searched, searching=True).items():
            extra[name] += count
        pictures += rows
    first, visited, stages = cells[0].job, prepared.timesteps[0], prepared.stages[-1]
    parameters, parts = count_parameters(info.network), count_parts(prepared.repo, info)
    facts: dict[str, Any] = {
        "model": {"id": info.id, "revision": info.revision, "family": info.family},
        "steps": len(visited), "timesteps": visited, "unet_calls": calls, "parameters": parameters,
        "weights_mb": parameters * 4 / 1e6, **({"parts": parts} if parts else {}),
        **({"stages": stages} if stages else {}), **extra, **first.uncounted(),
    }  # fmt: skip
    lines = [
        f"pictures    {pictures}",
        f"steps       {len(visited)}",
        f"calls       {calls} of the network",
        *(f"{name.replace('_', ' '):<11} {count}" for name, count in extra.items()),
        f"parameters  {_size(parameters)}",
        *(f"{name:<11} {_size(count)}" for name, count in parts.items()),
        "timesteps   " + _listed(visited, 6),
    ]
    times = [time for t in visited if (time := course_time(info.scheduler, t)) is not None]
    if times:
        lines += ["sigma       " + _listed([1.0 - time for time in times]) + " (1 noise, 0 picture)"]
        lines += ["time        " + _listed(times) + " (1 - sigma, as the courses count)"]
    lines += [
        f"stage       {stage['model']}: {stage['steps']} steps, {stage['parameters'] / 1e6:.2f} M parameters"
        for stage in stages
    ]
    lines += [f"not counted {facts['uncounted']}"] if "uncounted" in facts else []
    return Result(facts, lines)


def _listed(numbers: Sequence[float], digits: int = 4) -> str:
    return ", ".join(f"{number:.{digits}g}" for number in numbers[:100]) + (" ..." * (len(numbers) > 100))


def _size(parameters: int) -> str:
    """Parameters in words: their number, and the memory that they take in single and half precision."""
    return f"{parameters / 1e6:.2f} M, {parameters * 4 / 1e6:.0f} MB in fp32, {parameters * 2 / 1e6:.0f} MB in fp16"
