"""What families read of a model's configuration: sizes, channels, classes, the scheduler, diffkit's own record.

Everything here either knows or refuses: a missing or contradictory field ends in a `ModelError` that names it, before
any weights are read. Which fields a family has, and what they mean, is the family's business.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import diffusers

from diffkit.engine.flows import FLOW_FIELDS, is_flow
from diffkit.errors import ModelError
from diffkit.models.meta import FILE, RunMeta
from diffkit.models.repo import Repo
from diffkit.models.weights import load_config
from diffkit.recipes.schema import DIFFUSION, ONE_STEP
from diffkit.types import Network

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

LOG = logging.getLogger("diffkit.models")

# What diffkit calls its objectives -> whether such a model's scheduler is a flow's, and what it then predicts.
_OBJECTIVES = {"flow": (True, ""), "linear_mix": (True, ""), **dict.fromkeys(ONE_STEP, (False, "sample"))}


def read_record(repo: Repo) -> tuple[dict[str, Any], RunMeta | None]:
    """Return what diffkit wrote of a model that it trained, as it stands in the file and read; ({}, None) for others.

    Raises:
        ModelError: The file is broken.
    """
    data = repo.json(FILE)
    if data is None:
        return {}, None
    try:
        return data, RunMeta.read(data)
    except ModelError as error:
        raise ModelError(f"{repo.id}: {error.message}", "Put the file right.") from None


def read_network(repo: Repo, name: str, *kinds: str, others: Collection[str] = ()) -> Network:
    """Return a repository's network: its folder (or the root of a flat one) and its configuration.

    Args:
        repo: The repository.
        name: The folder where pipelines have it: unet, transformer.
        kinds: Its class in diffusers, and what older files call it.
        others: Further classes that the family has.

    Raises:
        ModelError: There is no configuration, or it is that of another network.
    """
    folder = repo.part(name)
    network = Network(folder, kinds[0], load_config(repo, folder, "config.json"))
    if (found := network.config.get("_class_name", kinds[0])) in others:
        return replace(network, kind=found)
    if found not in kinds:
        raise ModelError(
            f"{field_of(repo, network)}: _class_name is {found!r}; a {repo.pipeline} has a {kinds[0]} there",
            "Check model_index.json and the folders it names.",
        )
    return network


def field_of(repo: Repo, network: Network) -> str:
    """Return how a network's configuration is called in errors: `REPOSITORY: unet/config.json`."""
    return f"{repo.id}: {network.folder}/config.json" if network.folder else f"{repo.id}: config.json"


def whole_number(config: Mapping[str, Any], key: str, where: str) -> int:
    """Return a positive whole number of a configuration.

    Raises:
        ModelError: It is missing, or something else.
    """
    value = config.get(key)
    if type(value) is not int or value < 1:
        raise wrong(where, key, value, "a positive whole number")
    return value


def whole_numbers(config: Mapping[str, Any], key: str, where: str) -> list[int]:
    """Return a list of positive whole numbers of a configuration: one number per level of a network.

    Raises:
        ModelError: It is missing, or something else.
    """
    value = config.get(key)
    if not isinstance(value, (list, tuple)) or not value or any(type(v) is not int or v < 1 for v in value):
        raise wrong(where, key, value, "a list with one positive whole number per level")
    return list(value)


def read_size(config: Mapping[str, Any], where: str, key: str = "sample_size") -> tuple[int, int]:
    """Return (height, width) of a network's samples; one number stands for a square.

    Raises:
        ModelError: The field is missing or no size: no picture can be drawn by guess.
    """
    value = config.get(key)
    sides = [value, value] if type(value) is int else value
    if not isinstance(sides, (list, tuple)) or len(sides) != 2 or any(type(s) is not int or s < 1 for s in sides):
        raise wrong(where, key, value, "a positive whole number, or two: height and width")
    return int(sides[0]), int(sides[1])


def check_multiple(size: tuple[int, int], unit: int, where: str, why: str) -> None:
    """Refuse a sample whose sides the network cannot take.

    Raises:
        ModelError: A side is no multiple of the unit.
    """
    if size[0] % unit or size[1] % unit:
        raise ModelError(
            f"{where}: sample_size is {size[0]}x{size[1]}; needed: multiples of {unit}, since {why}",
            "Put the configuration right.",
        )


def check_unused(config: Mapping[str, Any], where: str, allowed: Mapping[str, tuple[Any, ...]]) -> None:
    """Refuse a network that takes an input which its pipeline does not give it.

    Args:
        config: The network's configuration.
        where: Its name in errors.
        allowed: By field, what it may say beside nothing.

    Raises:
        ModelError: It says something else.
    """
    for key, values in allowed.items():
        if (value := config.get(key)) is not None and value not in values:
            shown = ", ".join(map(repr, values)) or "nothing"
            raise wrong(where, key, value, f"{shown}, in models of this kind")


def picture_channels(given: int, taken: int, where: str) -> int:
    """Return the channels of a pixel model's pictures, 1 or 3.

    Args:
        given: Its out_channels; twice as many where the variance is learned.
        taken: Channels of its input that are the picture's.
        where: The configuration, for the error.

    Raises:
        ModelError: Neither grey nor RGB, or an output that does not fit the input.
    """
    if taken not in (1, 3):
        raise wrong(where, "in_channels", taken, "1 (grey) or 3 (RGB)")
    if given not in (taken, 2 * taken):
        raise wrong(where, "out_channels", given, f"{taken}, or {2 * taken} with a learned variance")
    return taken


def check_record(
    repo: Repo, record: Mapping[str, Any], size: tuple[int, int], unit: int, channels: int, scheduler: SchedulerMixin
) -> None:
    """Refuse a model whose diffkit.json says something else than the files of diffusers beside it.

    Args:
        repo: The repository.
        record: diffkit.json, its types checked; empty for a model that diffkit did not train.
        size: (height, width) of the network's samples.
        unit: What they are multiples of: pictures are padded to the next one.
        channels: Of the network's pictures.
        scheduler: The model's.

    Raises:
        ModelError: A field that contradicts them.
    """
    where = f"{repo.id}: {FILE}"
    resolution = record.get("resolution") or 0
    if resolution < 0 or (resolution and any(-(-resolution // unit) * unit != side for side in size)):
        raise wrong(where, "resolution", resolution, f"what is padded to the network's sample_size {size[0]}x{size[1]}")
    if record.get("channels", channels) != channels:
        raise wrong(where, "channels", record["channels"], f"{channels}, as the network has")
    if (objective := record.get("prediction")) is None:
        return
    flow, predicts = _OBJECTIVES.get(objective, (False, objective))
    theirs = str(scheduler.config.get("prediction_type", "epsilon"))
    if flow != is_flow(scheduler) or (predicts and predicts != theirs):
        has = "a flow's" if is_flow(scheduler) else f"one that predicts {theirs}"
        raise wrong(where, "prediction", objective, f"what fits the scheduler, which is {has}")


def wrong(where: str, key: str, value: Any, allowed: str) -> ModelError:
    """Make the error for a field of a configuration."""
    shown = "missing" if value is None else repr(value)
    return ModelError(f"{where}: {key} is {shown}; needed: {allowed}", "Put the configuration right.")


def load_scheduler(repo: Repo) -> SchedulerMixin:
    """Load the scheduler of a pipeline; a network without a pipeline gets DDPM's, linear, T = 1000, epsilon.

    Raises:
        ModelError: See `find_scheduler`.
    """
    found = find_scheduler(repo)
    return diffusers.DDPMScheduler() if found is None else found


def load_flow(repo: Repo) -> SchedulerMixin:
    """Load the scheduler of a flow; a network without a pipeline gets Euler's, without a shift.

    Raises:
        ModelError: See `find_scheduler`; or it is no flow's.
    """
    found = find_scheduler(repo)
    if found is not None and not is_flow(found):
        raise wrong(f"{repo.id}: scheduler", "_class_name", type(found).__name__, "one of a flow (FlowMatch...)")
    return diffusers.FlowMatchEulerDiscreteScheduler() if found is None else found


def find_scheduler(repo: Repo) -> SchedulerMixin | None:
    """Load the scheduler of a pipeline as diffusers does; None where a network lies alone.

    The class is that of model_index.json, whatever the configuration was written by, as in the stock pipelines.

    Raises:
        ModelError: It is missing, is none of diffusers', or has a field that cannot be right.
    """
    entry = (repo.json("model_index.json") or {}).get("scheduler")
    named = str(entry[1]) if isinstance(entry, list) and len(entry) == 2 and entry[1] is not None else ""
    for name in ("scheduler/scheduler_config.json", "scheduler_config.json"):
        if (config := repo.json(name)) is not None:
            break
    else:
        if named:
            raise repo.missing("scheduler/scheduler_config.json")
        return None
    where = f"{repo.id}: {name}"
    written = str(config.get("_class_name") or named)
    if not written:
        raise wrong(where, "_class_name", None, "the class of one of diffusers' schedulers")
    made = _make_scheduler(named or written, config, where)
    if named and written != named:
        if is_flow(made) != is_flow(_make_scheduler(written, config, where)):
            raise wrong(where, "_class_name", written, f"{named}, as in model_index.json")
        LOG.info("%s was written by %s; model_index.json makes it a %s", where, written, named)
    return made


def load_noising(repo: Repo, part: str) -> SchedulerMixin:
    """Load the DDPM scheduler that noises the small image of a model that enlarges pictures.

    Raises:
        ModelError: It is missing, or has a field that cannot be right.
    """
    config = load_config(repo, part, "scheduler_config.json")
    return _make_scheduler("DDPMScheduler", config, f"{repo.id}: {part}/scheduler_config.json")


def _make_scheduler(name: str, config: Mapping[str, Any], where: str) -> SchedulerMixin:
    """Make a scheduler of a class and check what it was made of."""
    cls: Any = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
    if cls is None or not hasattr(cls, "from_config"):
        raise ModelError(f"{where}: the scheduler {name!r} is not one of diffusers'", "Use another model.")
    if config.get("num_train_timesteps") is not None:  # else diffusers' own default
        whole_number(config, "num_train_timesteps", where)
    if (old := config.get("predict_epsilon")) is not None:
        # What diffusers before 0.6 called prediction_type "sample", and today's ignores.
        meant = "epsilon" if old else "sample"
        if config.get("prediction_type", meant) != meant:
            raise wrong(where, "predict_epsilon", old, f"what fits prediction_type {config['prediction_type']!r}")
        config = {**config, "prediction_type": meant}
    # What diffkit adds to a flow's configuration: diffusers would keep it, and say each time that it ignores it.
    added = {key: config[key] for key in FLOW_FIELDS if key in config and name.startswith("FlowMatch")}
    for key, least in (("noise_scale", 0.0), ("least_sigma", 0.0), ("mu", -math.inf)):
        value = added.get(key)
        if value is not None and not (isinstance(value, int | float) and least <= value < math.inf):
            raise wrong(where, key, value, "a finite number" + (", 0 or more" if least == 0 else ""))
    try:
        made: SchedulerMixin = cls.from_config({key: value for key, value in config.items() if key not in added})
    except (ValueError, TypeError, NotImplementedError, ArithmeticError, LookupError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{where}: no {name} can be made of it: {reason}", "Put the configuration right.") from None
    made.register_to_config(**added)
    _check_levels(made, where)
    return made


def _check_levels(scheduler: SchedulerMixin, where: str) -> None:
    config = scheduler.config
    levels = whole_number(config, "num_train_timesteps", where)
    betas = config.get("trained_betas")
    if betas is not None and len(betas) != levels:
        raise wrong(where, "num_train_timesteps", levels, f"{len(betas)}, one level for each of trained_betas")
    known = ("flow_prediction", "sample") if config.get("use_flow_sigmas") else DIFFUSION
    if "prediction_type" in config and config["prediction_type"] not in known:
        raise wrong(where, "prediction_type", config["prediction_type"], f"one of {', '.join(known)}")
