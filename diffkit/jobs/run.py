"""How a job becomes pictures and files: the only place that knows.

The model is chosen, checked and loaded, every combination of a sweep is drawn in batches, and pictures, sheet,
animation and numbers are written. Progress bars, films and other listeners `watch`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from diffkit.jobs.base import Job, PictureJob, build
from diffkit.jobs.batch import Batch, Drawn, Row
from diffkit.jobs.options import Again, Run, Watch
from diffkit.jobs.rows import Place, Prepared, batches_of
from diffkit.jobs.shared import Batched
from diffkit.jobs.sweep import Cell, Table, table
from diffkit.models import LoadOptions, info, load_opened, open_repo
from diffkit.models.bundled import BUNDLED
from diffkit.models.vocabulary import unknown_words
from diffkit.pictures.files import Destination

if TYPE_CHECKING:
    from diffkit.jobs.output import Result
    from diffkit.types import Model, ModelInfo, Step

LOG = logging.getLogger("diffkit.jobs")
T = TypeVar("T")
Models = dict[tuple[str, str | None, LoadOptions], "Model"]


def run(
    cls: type[Job],
    values: Mapping[str, Any],
    options: Run | None = None,
    *,
    watch: Watch | None = None,
    again: Again | None = None,
    models: Models | None = None,
) -> Result:
    """Do a job.

    Args:
        cls: The job.
        values: Its fields, by name.
        options: Where it runs, and what is written.
        watch: A listener; see `Watch`.
        again: What alone is to be drawn, for a replay.
        models: Models that earlier jobs have loaded, and that later ones shall find; each is loaded by the first job
            that asks for it. One job alone needs none.

    Returns:
        The pictures with their metadata, and what was written; of a dry run what it would take.

    Raises:
        DiffkitError: What cannot be done, in one line; before weights are read wherever that can be known.
    """
    began = time.perf_counter()
    options, watch, again = options or Run(), watch or Watch(), again or Again()
    if not issubclass(cls, PictureJob):
        done = build(cls, values).execute(options, again)
        assert done is not None, "a job without a model does all its work itself"
        return done
    prepared = prepare(cls, values, options)
    if options.dry_run:
        from diffkit.jobs.estimate import estimate

        return estimate(prepared)
    from diffkit.engine.settings import Settings, batch_settings
    from diffkit.jobs.output import Output

    known, table_, jobs = prepared.info, prepared.table, prepared.jobs
    rank, world, device, barrier = processes(options.device)
    rows = [_rows_again(job, known, again) if again.company else job.rows(known) for job in jobs]
    to = Destination.of(options.out, cls.name, sum(map(len, rows))) if options.files else None  # fails early
    model = load_prepared(prepared, options, device, watch, {} if models is None else models)
    film = None
    if options.gif and rank == 0:
        from diffkit.pictures.film import Film

        film = Film(model.codec.decode, options.columns or jobs[0].columns(), model.info.sample)
    output = cache(lambda: Output(prepared, rows, model, options, to, rank))
    loaded = time.perf_counter()
    for group, timesteps, stages in zip(table_.groups, prepared.timesteps, prepared.stages, strict=True):
        drawer, places = jobs[group[0]], [Place(k, row) for k in group for row in rows[k]]
        size = drawer.batch_size if isinstance(drawer, Batched) else len(places)
        if again.index is None or not again.company:
            found = drawer.search(model, [p.row.seed for p in places], size, watch)
            if found is not None:
                places = [Place(group[0], Row(seed)) for seed in found.seeds]
                output().found(group[0], found)
        if drawer.settings.interval != Settings.interval:
            _say(_unguided(drawer, known, timesteps), warning=True)
        batches = batches_of(len(places), size)
        mine = batches[rank::world] if again.index is None else [b for b in batches if again.index in b]
        title = " ... ".join(dict.fromkeys(table_.cells[k].label for k in (group[0], group[-1]))) or cls.name
        watch.begin(title, (len(timesteps) + sum(stage["steps"] for stage in stages)) * len(mine))
        for positions in mine:
            some = [places[k] for k in positions]
            settings = batch_settings([jobs[place.cell].settings for place in some])
            batch = Batch([p.row.seed for p in some], [p.row.label for p in some], settings)
            drawn = follow(drawer.draw(model, batch), positions, watch.step, *([film.watch] if film else []))
            output().write(positions, some, drawn)
        watch.end()
    drawn_at = time.perf_counter()
    barrier()
    if world > 1 and again.index is None:
        output().share()
    return output().close(began, loaded, drawn_at, film, whole=again.index is None)


def draw(job: PictureJob, model: Model, batch: Batch, watch: Watch | None = None) -> Drawn:
    """Draw one batch with a model at hand."""
    return follow(job.draw(model, batch), range(len(batch.seeds)), *([watch.step] if watch else []))


def follow(steps: Generator[Step, None, T], positions: range, *listeners: Callable[[Step, range], None]) -> T:
    """Take all steps of a batch, tell each listener of every one, and return what they end in.

    Args:
        steps: From `PictureJob.draw`, or any other loop.
        positions: Of the batch among all pictures.
        listeners: Called with every step and the positions.
    """
    while True:
        try:
            step = next(steps)
        except StopIteration as done:
            result: T = done.value
            return result
        for listener in listeners:
            listener(step, positions)


def prepare(cls: type[PictureJob], values: Mapping[str, Any], options: Run) -> Prepared:
    """Make the jobs, choose their model, fill in what suits it, and refuse what it cannot do; no weights are read.

    Raises:
        UsageError: Something that no model takes, or this one.
        ModelError: The model is not there, or its configuration is broken.
    """
    asked = table(cls, values, options.sweep) if options.sweep else Table([Cell({}, "", build(cls, values))])
    jobs = [cell.job for cell in asked.cells]
    if not options.dry_run:
        each = jobs[0].num if isinstance(jobs[0], Batched) else None
        check_place(cls.name, len(jobs) * (each or 1), options)
    words = list(dict.fromkeys(word for job in jobs for word in job.words()))
    _say([line for job in jobs for line in job.warnings()], warning=True)
    loading, size = jobs[0].loading(), jobs[0].picture_size()
    source = jobs[0].model or jobs[0].default_model(words)
    repo = open_repo(source, revision=jobs[0].revision)
    native = info(repo)
    cls.check_source(native)
    known = native if size is None else native.resized(*size)
    strange = list(dict.fromkeys(unknown_words(" ".join(words), known.vocabulary)))
    examples = [job.example() for job in jobs] if source == BUNDLED else [None]
    if all(examples):  # nobody says what to draw
        _say([f"no `prompt`: {said}" for _, said in filter(None, examples)])
        jobs = [job.revised(change[0]) for job, change in zip(jobs, examples, strict=True) if change]
        words = list(dict.fromkeys(word for job in jobs for word in job.words()))
    _say(line for job in jobs for line in job.assumed(known))
    jobs = [job.fitted(known) for job in jobs]
    for job in jobs:
        job.check(known)
    cells = [Cell(cell.values, cell.label, job) for cell, job in zip(asked.cells, jobs, strict=True)]
    _say(line for job in jobs for line in job.notices(known))
    first = [jobs[group[0]] for group in asked.groups]
    timesteps, stages = [job.sampling_timesteps(known) for job in first], [job.stages(known) for job in first]
    return Prepared(replace(asked, cells=cells), repo, known, native, loading, jobs, words, strange, timesteps, stages)


def check_place(name: str, count: int, options: Run) -> None:
    """Refuse a place where pictures cannot be written, or a device that is not there, before anything is looked for.

    Args:
        name: The command's.
        count: Number of pictures, as far as it is known.
        options: Where to write, and where to draw.

    Raises:
        UsageError: The folder cannot be written to, one file is named for several pictures, or an unknown device.
    """
    if options.files:
        Destination.of(options.out, name, count)
    if options.device != "auto":
        from diffkit.models.devices import pick_device

        pick_device(options.device)


def _say(lines: Iterable[str], warning: bool = False) -> None:
    """Say each line once per call, not once per combination."""
    for line in dict.fromkeys(lines):
        LOG.log(logging.WARNING if warning else logging.INFO, "%s", line)


def _rows_again(job: PictureJob, known: ModelInfo, again: Again) -> list[Row]:
    """The pictures that a search had found."""
    return [Row(seed, job.label_for(known)) for seed in again.company]


def _unguided(job: PictureJob, known: ModelInfo, timesteps: Sequence[float]) -> list[str]:
    """Say where no step lies in the interval of the guidance."""
    if job.unguided() is not None or known.one_step:
        return []
    from diffkit.models.conditioning import interval_missed

    line = interval_missed(job.settings, timesteps, known.timesteps)
    return [line] if line else []


def load_prepared(prepared: Prepared, options: Run, device: str, watch: Watch, models: Models) -> Model:
    """Load the model; prompts are encoded at once, and the text encoder is gone before the network comes."""
    job, known, native = prepared.jobs[0], prepared.info, prepared.native
    if prepared.strange:
        LOG.warning(
            "%s was never told what %s means: `diffkit inspect %s` lists its words",
            known.id, ", ".join(map(repr, prepared.strange)), known.id,
        )  # fmt: skip
    from diffkit.models.devices import pick_device, pick_dtype

    dtype = None if job.dtype == "auto" else pick_dtype(job.dtype)
    how = replace(prepared.loading, device=pick_device(device), dtype=dtype, allow_pickle=options.allow_pickle)
    key = (known.id, known.revision, how)
    fresh = key not in models
    if fresh:
        watch.loading(known)
        models[key] = load_opened(prepared.repo, native, how)
    if known.text:
        models[key].encode(sorted({*prepared.words, ""}))
    if fresh:
        watch.loaded(models[key])
    return models[key] if known.size == native.size else models[key].at(*known.sample[1:])


def processes(device: str) -> tuple[int, int, str, Any]:
    """Return (rank, number of processes, device, barrier); under `accelerate launch` the launcher decides."""
    import os

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1, device, lambda: None
    from accelerate import PartialState

    from diffkit.models.devices import several_cpu_processes

    state = PartialState(cpu=several_cpu_processes())
    place = str(state.device) if device == "auto" else device
    return state.process_index, state.num_processes, place, state.wait_for_everyone
