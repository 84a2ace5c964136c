"""The report as one HTML page: pictures inlined, nothing fetched.

A picture's file is inlined as it is, with the recipe in it, so that one saved from the page can be replayed; only large
ones are reduced.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from PIL import Image

from diffkit.lab.pieces import Drawing, Made, Piece, Shown
from diffkit.lab.section import Lab, Table

if TYPE_CHECKING:
    from diffkit.lab.run import Outcome

_TEMPLATE = Path(__file__).with_name("report.html")
_SINGLE = 200  # pixels: a picture up to this size is one of a row, a larger one is a sheet of its own
_MOST = 1400  # pixels: what is larger is reduced
_PLOTS = ("loss.png", "schedule.png")  # of a phone's width they could not be read
_MANY = 10  # pictures: so many are laid out in rows of ten, on a phone of five: classes stand below one another
_LONG = 120  # characters: a note that an earlier section has said is not said at this length again
_COURSES = {
    "cs180": "CS180, parts A and B",
    "hf-course": "The Hugging Face diffusion course",
    "keras-ddim": "Keras' DDIM example",
}


def page(lab: Lab, outcomes: Sequence[Outcome]) -> str:
    """Return the report's HTML."""
    course, _, year = lab.course.partition("-2")
    titles: dict[str, str] = {one.section.name: one.section.title for one in outcomes}
    said: dict[str, str] = {}
    sections = [_section(one, titles, said) for one in outcomes]
    title = _COURSES[course] + (f", 2{year}" if year else "")
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(title), head=_head(lab, outcomes), contents="\n".join(map(_entry, outcomes)),
        sections="\n".join(sections),
    )  # fmt: skip


def text(line: str) -> str:
    """Return a sentence as HTML: what stands in backquotes is code, and letters are set as in formulas."""
    return _lowered(re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(line, quote=False)))


def formula(line: str) -> str:
    """Return a formula as HTML: `_{...}` is set below the line and `^{...}` above, `|` starts another line."""
    return _lowered(escape(line, quote=False)).replace(" | ", "<br>")


def _lowered(found: str) -> str:
    found = re.sub(r"_\{([^{}]*)\}", r"<sub>\1</sub>", found)
    return re.sub(r"\^\{([^{}]*)\}", r"<sup>\1</sup>", found)


def _head(lab: Lab, outcomes: Sequence[Outcome]) -> str:
    info = lab.info
    from diffkit import __version__

    made = sum(one.whole for one in outcomes)
    used = any(_draws(piece, lab.model) for one in outcomes if one.plan for piece in one.plan.pieces)
    kind = {"none": "unconditional", "class": "class-conditional", "text": "text-conditional"}[info.conditioning]
    numbers = "the numbers of the course" if lab.full else "reduced trainings"
    model = f"`{lab.model}` ({info.size[1]} × {info.size[0]} pixels, T = {info.timesteps}, {kind})"
    lines = [
        f"Drawn by {model if used else 'networks that are trained here'}; first seed {lab.seed}; diffkit"
        f" {__version__}.",
        f"{made} of {len(outcomes)} sections were made, with {numbers}. Every figure stands beside the command that"
        " makes it alone; a picture saved from this page can be drawn again by `diffkit replay`.",
    ]
    return "\n".join(f"<p>{text(line)}</p>" for line in lines)


def _draws(piece: Piece, model: str) -> bool:
    return isinstance(piece, Drawing) and piece.job.given().get("model") == model


def _entry(outcome: Outcome) -> str:
    title = escape(outcome.section.title)
    note = "" if outcome.whole else ' <span class="no">(not made)</span>'
    return f'<li><a href="#{outcome.section.name}">{title}</a>{note}</li>'


def _section(outcome: Outcome, titles: Mapping[str, str], said: dict[str, str]) -> str:
    """A section; `titles` are those of all by name, `said` are long notes with the section that they stand in."""
    section = outcome.section
    parts = [f'<section id="{section.name}">', f"<h2>{escape(section.title)}</h2>", f"<p>{text(section.asks)}</p>"]
    if section.formula:
        parts.append(f'<p class="formula">{formula(section.formula)}</p>')
    if not outcome.whole:
        parts.append(f'<p class="refused"><b>Not made.</b> {text(outcome.why)}</p>')
    elif outcome.plan is not None:
        parts += [_note(note, section.name, titles, said) for note in outcome.plan.notes]
        for piece, made in zip(outcome.plan.pieces, outcome.made, strict=True):
            where = outcome.shared.get(made.folder)
            parts.append(_piece(piece, made) if where is None else _elsewhere(piece, where, titles[where]))
        parts += [_measured(one) for one in outcome.measured]
        parts.append(f'<p class="faint">Made in {outcome.seconds:.1f} s.</p>')
    parts.append(f'<p class="source">Source: {text(section.source)}. <a class="top" href="#top">Contents</a></p>')
    return "\n".join([*parts, "</section>"])


def _note(note: str, name: str, titles: Mapping[str, str], said: dict[str, str]) -> str:
    """A note; of a long one that an earlier section has said, the first sentence and where it goes on."""
    first = said.setdefault(note, name)
    if first == name or len(note) < _LONG:
        return f"<p>{text(note)}</p>"
    begin = note.partition(". ")[0]
    return f'<p>{text(begin)}: see <a href="#{first}">{escape(titles[first])}</a>.</p>'


def _piece(piece: Piece, made: Made) -> str:
    parts = [f"<h3>{text(piece.caption)}</h3>"] if piece.caption else []
    small: list[tuple[Shown, Path, tuple[int, int]]] = []
    sheets: list[tuple[Shown, Path, tuple[int, int]]] = []
    for one in made.pictures:
        path = made.folder / one.file
        with Image.open(path) as image:
            size = image.size
        (small if max(size) <= min(_SINGLE, 1.5 * min(size)) else sheets).append((one, path, size))
    if small:
        many = " many" if len(small) >= _MANY else ""
        parts.append(f'<div class="pictures{many}">' + "".join(_figure(*row) for row in small) + "</div>")
    if sheets:
        parts.append('<div class="sheets">' + "".join(_sheet(*row) for row in sheets) + "</div>")
    return "\n".join([*parts, _command(piece)])


def _elsewhere(piece: Piece, name: str, title: str) -> str:
    """A piece that an earlier section shows: where, and on request the command once more."""
    link = f'Made and shown in <a href="#{name}">{escape(title)}</a>.'
    return f'<details class="faint"><summary>{link}</summary>{_command(piece)}</details>'


def _command(piece: Piece) -> str:
    """A command; no line of it breaks within an option's name."""
    line = re.sub(r"(?<= )(--[a-z0-9-]+)", r"<span>\1</span>", escape(piece.line, quote=False))
    return f'<div class="command"><pre>{line}</pre></div>'


def _figure(one: Shown, path: Path, size: tuple[int, int]) -> str:
    crisp = ' class="small"' if max(size) <= 64 else ""
    return f"<figure><img{crisp} {_image(path, size, one.label)}>{_caption(one.label)}</figure>"


def _sheet(one: Shown, path: Path, size: tuple[int, int]) -> str:
    wide = " wide" if size[0] > max(460, 3 * size[1]) else ""  # a long strip is scrolled on a phone
    wide = " plot" if path.name in _PLOTS else wide
    image = f'<div class="scroll"><img {_image(path, size, one.label)}></div>'
    return f'<figure class="sheet{wide}">{image}{_caption(one.label)}</figure>'


def _caption(label: str) -> str:
    return f"<figcaption>{text(label)}</figcaption>" if label else ""


def _image(path: Path, size: tuple[int, int], label: str) -> str:
    """The attributes of an image: its bytes, its size, what it shows."""
    kind, data = ("gif" if path.suffix == ".gif" else "png"), path.read_bytes()
    if kind == "png" and max(size) > _MOST:
        with Image.open(path) as image:
            image.thumbnail((_MOST, _MOST), Image.Resampling.LANCZOS)
            buffer = BytesIO()
            image.save(buffer, "PNG")
        data = buffer.getvalue()
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    shown = escape(label or path.stem)
    return f'src="{source}" alt="{shown}" width="{size[0]}" height="{size[1]}" loading="lazy"'


def _measured(one: Table | str) -> str:
    if isinstance(one, str):
        return f"<p>{text(one)}</p>"
    head = "".join(f"<th>{text(cell)}</th>" for cell in one.header)
    body = "".join(f"<tr>{_cells(row)}</tr>" for row in one.rows)
    return f'<div class="numbers"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cells(row: Iterable[str]) -> str:
    return "".join(f"<td>{text(cell)}</td>" for cell in row)
