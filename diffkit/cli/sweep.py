"""`--sweep OPTION=V1,V2`: every combination of options, and where it stands on the contact sheet."""

from __future__ import annotations

import inspect
import re
import typing
from dataclasses import dataclass
from itertools import product
from typing import Any

from diffkit.errors import UsageError, did_you_mean

# What a sweep may not change: the model is loaded once, and the files are named by the seed.
FIXED = {
    "model", "revision", "variant", "allow_pickle", "device", "dtype", "memory", "out", "gif", "num", "seed", "sweep",
    "batch_size", "dry_run", "image", "image_b", "mask", "no_safety_checker", "max_batch",
}  # fmt: skip


@dataclass(frozen=True)
class Combination:
    """One tile (per seed) of the sheet: the values by parameter, and what is written above it."""

    values: dict[str, Any]
    label: str

    @property
    def tag(self) -> str:
        """Part of the file's name."""
        return re.sub(r"[^\w.=+-]+", "_", self.label)[:80]


@dataclass(frozen=True)
class Table:
    """All combinations, row by row."""

    combinations: list[Combination]
    columns: int


# What differs from picture to picture of one batch at no cost.
PER_PICTURE = ("label", "prompt", "negative_prompt", "guidance")


def groups(table: Table, batched: bool) -> list[list[int]]:
    """Return which combinations are drawn together, by their places: those that differ in `PER_PICTURE` only.

    Args:
        table: The combinations.
        batched: Whether the command's pictures may stand in one batch; else each combination is a group.
    """
    found: dict[Any, list[int]] = {}
    for k, cell in enumerate(table.combinations):
        rest = tuple((name, str(value)) for name, value in cell.values.items() if name not in PER_PICTURE)
        found.setdefault(rest if batched else k, []).append(k)
    return list(found.values())


def narrowed(sweeps: list[str], cells: list[Combination], signature: inspect.Signature) -> list[str]:
    """Return the sweep, as text, that makes exactly the cells of one group: what their pictures are replayed by."""
    kept = []
    for text in sweeps:
        flag = text.partition("=")[0].strip().removeprefix("--")
        if _options(signature)[flag][0] in PER_PICTURE:
            kept.append(text)
    return kept if len(cells) > 1 else []


def parse(sweeps: list[str] | None, signature: inspect.Signature) -> Table:
    """Read the sweeps of a command line; without any there is one combination without a label.

    Raises:
        UsageError: More than two, an unknown option, or a value of the wrong type.
    """
    if not sweeps:
        return Table([Combination({}, "")], 1)
    if len(sweeps) > 2:
        raise UsageError(f"--sweep was given {len(sweeps)} times; a sheet has rows and columns", "Give it twice.")
    known = _options(signature)
    axes = []
    for text in sweeps:
        flag, equals, rest = text.partition("=")
        flag = flag.strip().removeprefix("--")
        if not equals or not rest.strip():
            raise UsageError(f"--sweep {text!r} has no values", "For example --sweep strength=0.2,0.5,0.8.")
        if flag not in known:
            raise UsageError(f"--sweep {text!r}: {flag!r} is no option that can be swept", did_you_mean(flag, known))
        name, kind = known[flag]
        # A prompt may hold commas: a bar separates those.
        values = [v.strip() for v in rest.split("|" if "|" in rest else ",")]
        many = _repeats(kind)
        found = [convert(v, kind, f"--sweep {text!r}") for v in values]
        axes.append([(name, f"{flag}={v}", [one] if many else one) for v, one in zip(values, found, strict=True)])
    if len({axis[0][0] for axis in axes}) < len(axes):
        raise UsageError(f"--sweep {sweeps[0]!r} and {sweeps[1]!r} are of the same option")
    combinations = [
        Combination({name: value for name, _, value in cell}, " ".join(label for _, label, _ in cell))
        for cell in product(*axes)
    ]
    return Table(combinations, len(axes[-1]))


def _options(signature: inspect.Signature) -> dict[str, tuple[str, Any]]:
    """Options by flag, without the dashes: the parameter and its type."""
    found = {}
    for name, parameter in signature.parameters.items():
        info = next((m for m in getattr(parameter.annotation, "__metadata__", ()) if hasattr(m, "param_decls")), None)
        if name in FIXED or info is None:
            continue
        # In an annotation, typer keeps the first name as the default.
        flags = [d for d in (info.default, *(info.param_decls or ())) if isinstance(d, str) and d.startswith("--")]
        kind = plain(parameter.annotation)
        if flags and kind in (int, float, str):
            found[flags[0].removeprefix("--").partition("/")[0]] = (name, parameter.annotation)
    return found


def _repeats(annotation: Any) -> bool:
    """Whether an option may be given several times: each value of a sweep is then all there is."""
    kind = typing.get_args(annotation)[0] if typing.get_origin(annotation) is typing.Annotated else annotation
    return any(typing.get_origin(a) is list for a in (kind, *typing.get_args(kind)))


def plain(annotation: Any) -> Any:
    """Return int, float, str or bool for an annotation such as Annotated[int | None, ...] or a list of them."""
    if typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    inner = [a for a in typing.get_args(annotation) if a is not type(None)]
    if typing.get_origin(annotation) is typing.Literal:
        return str
    if not inner:
        return annotation
    return plain(inner[0])


def _choices(annotation: Any) -> tuple[str, ...]:
    """The values of a Literal, wherever it stands in an annotation; none where any text will do."""
    if typing.get_origin(annotation) is typing.Literal:
        return typing.get_args(annotation)
    return next((found for inner in typing.get_args(annotation) if (found := _choices(inner))), ())


def convert(text: str, annotation: Any, where: str) -> Any:
    """Turn a value's text into the option's type, within its limits.

    Raises:
        UsageError: It is not of that type, out of its limits, or not one of its choices.
    """
    kind = plain(annotation)
    try:
        value = kind(text)
    except ValueError:
        raise UsageError(f"{where}: {text!r} is not a {kind.__name__}") from None
    allowed = _choices(annotation)
    if allowed and value not in allowed:
        raise UsageError(f"{where}: {text!r} is not one of {', '.join(allowed)}", did_you_mean(text, allowed))
    for info in getattr(annotation, "__metadata__", ()):
        low, high = getattr(info, "min", None), getattr(info, "max", None)
        if (low is not None and value < low) or (high is not None and value > high) or value != value:
            raise UsageError(f"{where}: {value} is not in {low}..{high}")
    return value
