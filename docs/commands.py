"""The pages of the site that say what the code says: one per command.

A hook of mkdocs (`make docs`). A picture command's page is made from its job's fields, another command's from its typer
parameters, so that nothing is written twice; the examples are the command lines of the README and of the other pages.
Nothing here imports torch or mkdocs, but for the hook at the end.
"""

from __future__ import annotations

import inspect
import re
import shlex
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from diffkit.cli import make_app, runner
from diffkit.jobs import function, job_class, summaries
from diffkit.jobs.base import Job, PictureJob
from diffkit.jobs.options import Run

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
FOLDER = "commands"  # of the site, where the pages stand
TYPES = {int: "WHOLE NUMBER", float: "NUMBER", str: "TEXT", Path: "PATH"}


@dataclass(frozen=True)
class Option:
    """An option or argument as its page shows it.

    Attributes:
        names: How the command line calls it, the short form too; of an argument what the usage line says.
        value: What it takes; "" for a switch.
        text: What it is for.
        default: What is taken when it is left out; "" where nothing is.
        field: The Python argument.
        argument: Whether it has no name but a place.
    """

    names: tuple[str, ...]
    value: str
    text: str
    default: str
    field: str
    argument: bool


# --- what commands there are


def commands() -> dict[str, Any]:
    """Return every command or group of commands by name, as typer has it."""
    return dict(sorted(typer.main.get_command(make_app()).commands.items()))  # type: ignore[attr-defined]


def leaves(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Walk through a group: the words of each command (`data check`) and the command itself."""
    if hasattr(command, "commands"):
        for word, inner in command.commands.items():
            yield from leaves(f"{name} {word}", inner)
    else:
        yield name, command


def options_of(command: Any) -> list[Option]:
    """Return a command's arguments and options, in the order of its help."""
    declared = inspect.signature(command.callback).parameters
    found = []
    for param in command.params:
        kind, marker = typing.get_args(declared[param.name].annotation)[:2]
        value, many = value_of(kind)
        argument = param.param_type_name == "argument"
        names = (param.metavar or param.name.upper(),) if argument else (*param.opts, *param.secondary_opts)
        bounds = [f"{word} {limit:g}" for word, limit in (("at least", marker.min), ("at most", marker.max))
                  if limit is not None and limit < 2**63 - 1]  # fmt: skip
        text = (
            param.help
            + (f" ({', '.join(bounds)})" if bounds else "")
            + (" May be repeated." if many and "repeated" not in param.help else "")
        )
        shown = param.show_default if isinstance(param.show_default, str) else param.default
        default = "" if shown in (None, False, (), "") else str(shown)
        found.append(Option(names, "" if argument else param.metavar or value, text, default, param.name, argument))
    return found


def value_of(kind: Any) -> tuple[str, bool]:
    """Say what an option of a type takes, and whether it may be given several times."""
    kind = next((part for part in typing.get_args(kind) if type(None) in typing.get_args(kind)), kind)
    if typing.get_origin(kind) is list:
        return value_of(typing.get_args(kind)[0])[0], True
    if typing.get_origin(kind) is typing.Literal:
        return "|".join(map(str, typing.get_args(kind))), False
    return "" if kind is bool else TYPES[kind], False


# --- command lines in texts

FENCE = re.compile(r"^(?P<fence>```+)(?P<language>[\w-]*)[^\n]*\n(?P<body>.*?)^(?P=fence)`*\s*$", re.M | re.S)


def blocks(text: str, *languages: str) -> list[str]:
    """Return the fenced blocks of a Markdown text that name one of these languages; "" for those that name none."""
    return [match["body"] for match in FENCE.finditer(text) if match["language"] in languages]


def command_lines(text: str) -> list[str]:
    """Return the command lines of a Markdown text's blocks that run diffkit, without their comments."""
    joined = "\n".join(blocks(text, "", "sh", "bash", "console")).replace("\\\n", " ")
    return [line for line in map(str.strip, joined.splitlines()) if arguments(line) is not None]


def arguments(line: str) -> list[str] | None:
    """Return the words of a command line after `diffkit`; None where it runs something else."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:
        return None
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words.pop(0)
    if words and words[0].rsplit("/", 1)[-1] == "diffkit":
        return words[1:]
    if words and words[0].rsplit("/", 1)[-1] in ("python", "accelerate") and "-m" in words:
        where = words.index("-m")
        return words[where + 2 :] if words[where + 1] == "diffkit" else None
    return None


def documents() -> dict[str, str]:
    """Return the texts that are written by hand, by their path in the repository."""
    paths = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths if path.exists()}


def examples(name: str) -> list[str]:
    """Return the command lines of all texts that run a command, each once, the README's first."""
    lines = [line for text in documents().values() for line in command_lines(text)]
    found = [line for line in lines if line.startswith("diffkit ") and (arguments(line) or [""])[0] == name]
    return list({" ".join(shlex.split(line, comments=True)): line for line in found}.values())


# --- a command's page


def page(name: str, command: Any) -> str:
    """Return a command's page as Markdown."""
    each = list(leaves(name, command))
    parts = [f"# diffkit {name}"]
    if len(each) > 1:
        parts.append(linked(command.help))
    for words, leaf in each:
        if len(each) > 1:
            parts.append(f"## diffkit {words}")
        parts += section(words, leaf)
    if lines := examples(name):
        parts += ["## Examples", code("sh", *lines)]
    return "\n\n".join(parts) + "\n"


def section(words: str, command: Any) -> list[str]:
    """Return what a page says of one command: its sentence, its usage and its options."""
    job = job_class(words) if words in summaries() else None
    options = options_of(command)
    usage = " ".join(["diffkit", words, *(option.names[0] for option in options if option.argument), "[OPTIONS]"])
    parts = [linked(inspect.cleandoc((job.__doc__ if job else command.help) or "")), code("text", usage)]
    if job is not None:
        parts += about_job(job)
    for title, chosen in grouped(options, job):
        if chosen:
            parts += [f"{'##' if ' ' not in words else '###'} {title}", "\n\n".join(map(entry, chosen))]
    return parts


def about_job(job: type[Job]) -> list[str]:
    """Return what is said of picture commands alone: the model when none is named, and the Python function."""
    draw = function(job.name)
    named = [
        f"{param.name}={param.default!r}"
        for param in inspect.signature(draw).parameters.values()
        if param.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    ]
    signature = f"diffkit.{draw.__name__}({', '.join(named)}, ...)"
    parts = [
        "In Python, with every option below as an argument of its name; it returns PIL images and prints nothing:",
        code("python", signature),
    ]
    if issubclass(job, PictureJob):
        parts.insert(0, f"Without `--model`, and where the small model inside the package does not do: `{job.hub}`.")
    return parts


def grouped(options: list[Option], job: type[Job] | None) -> list[tuple[str, list[Option]]]:
    """Put options under the titles of a page."""

    def place(option: Option) -> int:
        if option.field in runner.COMMON:
            return 4
        if option.argument:
            return 0
        if job is not None and option.field in Run.model_fields:
            return 3
        shared = job is not None and issubclass(job, PictureJob) and option.field in PictureJob.__annotations__
        return 2 if shared and job is not None and option.field not in job.__annotations__ else 1

    titles = ("Arguments", "Options", "Options of all commands that draw", "Where it runs, and what it writes",
              "Options of every command")  # fmt: skip
    return [(title, [option for option in options if place(option) == k]) for k, title in enumerate(titles)]


def entry(option: Option) -> str:
    """Return an option as an entry of a definition list."""
    term = " ".join([f"`{name}`" for name in option.names] + ([f"*{option.value}*"] if option.value else []))
    told = [linked(option.text)]
    if option.default:
        told.append(f"Default: `{option.default}`.")
    plain = {name.lstrip("-").replace("-", "_") for name in option.names}
    if option.field not in plain and not option.argument and option.field not in runner.COMMON:
        told.append(f"In Python: `{option.field}`.")
    return f"{term}\n:   {' '.join(told)}"


def linked(text: str) -> str:
    """Return a text with its arXiv numbers as links, and options as code."""
    text = re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)
    return re.sub(r"(?<![\w`-])(--[a-z][\w-]*)(?![\w`-])", r"`\1`", text)


def code(language: str, *lines: str) -> str:
    """Return a fenced block."""
    return "\n".join([f"```{language}", *lines, "```"])


def pages() -> dict[str, str]:
    """Return the page of every command, by its path in the site, and a page that lists them."""
    every = commands()
    found = {f"{FOLDER}/{name}.md": page(name, command) for name, command in every.items()}
    rows = [f"[`diffkit {name}`]({name}.md)\n:   {first(command)}" for name, command in every.items()]
    told = "Every command takes `--help`. A picture command is a Python function, too, of the same options."
    found[f"{FOLDER}/index.md"] = "\n\n".join(["# Commands", told, *rows]) + "\n"
    return found


def first(command: Any) -> str:
    """Return the first sentence of a command's help."""
    return linked(" ".join(command.help.split("\n\n")[0].split()))


# --- what mkdocs calls


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages of the commands to the site, and to its navigation."""
    from mkdocs.structure.files import File

    made = pages()
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    listed = [f"{FOLDER}/index.md", *sorted(path for path in made if path != f"{FOLDER}/index.md")]
    config.nav = [{"Commands": listed} if part == {"Commands": FOLDER} else part for part in config.nav or []]
    return files
