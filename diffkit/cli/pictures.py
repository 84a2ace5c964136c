"""Picture commands: a job's fields as typer options, and its run with a progress bar."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from annotated_types import Ge, Gt, Le, Lt

from diffkit.cli import runner
from diffkit.jobs import job_class
from diffkit.jobs.fields import Option
from diffkit.jobs.options import Run
from diffkit.jobs.sweep import value_type

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from diffkit.jobs.base import Job

_KEYWORD = inspect.Parameter.KEYWORD_ONLY


def register_job(app: typer.Typer, name: str) -> None:
    """Add a job's command to the application."""
    cls = job_class(name)

    def command(**given: Any) -> None:
        common = {key: given.pop(key) for key in runner.COMMON}
        values = {key: value for key, value in given.items() if value is not None and value != []}
        options = {key: values.pop(key) for key in cls.offers if key in values}
        if "sweep" in options:
            options["sweep"] = tuple(options["sweep"])
        with runner.session(**common) as show:
            from diffkit.cli.progress import Bar
            from diffkit.jobs.run import run

            result = run(cls, values, Run(**options), watch=Bar())
            show(runner.Output(result.payload, result.lines))

    parameters = [_parameter(cls, key, cls.model_fields[key]) for key in cls.own_fields()]
    parameters += [
        inspect.Parameter(alias, _KEYWORD, default=None, annotation=Annotated[str | None, typer.Option(help=text)])
        for alias, text in cls.aliases().items()
    ]
    parameters += [_parameter(Run, key, info) for key, info in Run.model_fields.items() if key in cls.offers]
    parameters += [
        inspect.Parameter(key, _KEYWORD, default=False, annotation=kind) for key, kind in runner.COMMON.items()
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__doc__ = _help(cls)
    app.command(name)(command)


def field_options(cls: type[Job], names: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    """Return some of a job's fields as `runner.command` takes options that commands share."""
    return {name: (_parameter(cls, name, cls.model_fields[name]).annotation, None) for name in names}


def _help(cls: type[Job]) -> str:
    """The job's own words, without its sources, which stand in the documentation."""
    text = inspect.cleandoc(cls.__doc__ or "")
    paragraphs = [" ".join(p.split()) for p in text.split("\n\n")]
    kept = [p[: p.index("Source")].rstrip() if "Source" in p else p for p in paragraphs]
    return "\n\n".join(p for p in kept if p)


def _parameter(cls: type[Any], name: str, info: FieldInfo) -> inspect.Parameter:
    """A field as a parameter of a typer command; None stands for an option that was not given."""
    option = next((m for m in info.metadata if isinstance(m, Option)), Option())
    kind, many = value_type(cls, name)
    annotation: Any = info.annotation
    literal = next(
        (a for a in (annotation, *typing.get_args(annotation)) if typing.get_origin(a) is typing.Literal), None
    )
    kind = literal or (Path if kind is Any else kind)
    text = (info.description or "") + _limits(info)
    about: dict[str, Any] = {"help": text, "metavar": option.metavar}
    if info.default not in (None, False, (), ""):
        about["show_default"] = str(info.default)
    if option.argument:
        marker: Any = typer.Argument(**about)
    else:
        long, *short = option.names or (name.replace("_", "-"),)
        flags = [f"--{long}".replace("/", "/--"), *(f"-{one}" if len(one) == 1 else f"--{one}" for one in short)]
        marker = typer.Option(*flags, **about)
    shown = list[kind] if many else kind  # type: ignore[valid-type]
    return inspect.Parameter(name, _KEYWORD, default=None, annotation=Annotated[shown | None, marker])


def _limits(info: FieldInfo) -> str:
    """The bounds of a number in words: they are pydantic's to check."""
    found = []
    for item in info.metadata:
        match item:
            case Ge(ge=bound):
                found.append(f"at least {bound:,.10g}")
            case Gt(gt=bound):
                found.append(f"above {bound:,.10g}")
            case Le(le=int() | float() as bound) if bound < 2**63 - 1:
                found.append(f"at most {bound:,.10g}")
            case Lt(lt=bound):
                found.append(f"below {bound:,.10g}")
    return f" ({', '.join(found)})" if found else ""
