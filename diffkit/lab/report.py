"""The report as one HTML page: pictures inlined, nothing fetched.

A picture's file is inlined as it is, with the recipe in it, so that one saved from the page can be replayed; only large
ones are reduced.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from PIL import Image

from diffkit.lab.pieces import Made, Piece, Shown
from diffkit.lab.section import Lab, Table

if TYPE_CHECKING:
    from diffkit.lab.run import Outcome

_TEMPLATE = Path(__file__).with_name("report.html")
_SINGLE = 200  # pixels: a picture up to this size is one of a row, a larger one is a sheet of its own
_MOST = 1400  # pixels: what is larger is reduced
_COURSES = {
    "cs180": "CS180, part A and B",
    "hf-course": "The Hugging Face diffusion course",
    "keras-ddim": "Keras' DDIM example",
}


def page(lab: Lab, outcomes: Sequence[Outcome]) -> str:
    """Return the report's HTML."""
    course, _, year = lab.course.partition("-2")
    title = _COURSES[course] + (f", 2{year}" if year else "")
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(title), head=_head(lab, outcomes), contents="\n".join(map(_entry, outcomes)),
        sections="\n".join(map(_section, outcomes)),
    )  # fmt: skip


def text(line: str) -> str:
    """Return a sentence as HTML: what stands in backquotes is code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(line, quote=False))


def formula(line: str) -> str:
    """Return a formula as HTML: `_{...}` is set below the line and `^{...}` above, `|` starts another line."""
    found = escape(line, quote=False)
    found = re.sub(r"_\{([^{}]*)\}", r"<sub>\1</sub>", found)
    found = re.sub(r"\^\{([^{}]*)\}", r"<sup>\1</sup>", found)
    return found.replace(" | ", "<br>")


def _head(lab: Lab, outcomes: Sequence[Outcome]) -> str:
    info = lab.info
    from diffkit import __version__

    made = sum(one.whole for one in outcomes)
    kind = {"none": "unconditional", "class": "told a class", "text": "told a prompt"}[info.conditioning]
    numbers = "the numbers of the course" if lab.full else "reduced trainings"
    lines = [
        f"Drawn by `{lab.model}` ({info.size[1]} × {info.size[0]} pixels, T = {info.timesteps}, {kind}); first seed"
        f" {lab.seed}; diffkit {__version__}.",
        f"{made} of {len(outcomes)} sections were made, with {numbers}. Every figure stands beside the command that"
        " makes it alone; a picture saved from this page can be drawn again by `diffkit replay`.",
    ]
    return "\n".join(f"<p>{text(line)}</p>" for line in lines)


def _entry(outcome: Outcome) -> str:
    title = escape(outcome.section.title)
    note = "" if outcome.whole else ' <span class="no">(not made)</span>'
    return f'<li><a href="#{outcome.section.name}">{title}</a>{note}</li>'


def _section(outcome: Outcome) -> str:
    section = outcome.section
    parts = [f'<section id="{section.name}">', f"<h2>{escape(section.title)}</h2>", f"<p>{text(section.asks)}</p>"]
    if section.formula:
        parts.append(f'<p class="formula">{formula(section.formula)}</p>')
    if not outcome.whole:
        parts.append(f'<p class="refused"><b>Not made.</b> {text(outcome.why)}</p>')
    elif outcome.plan is not None:
        parts += [f"<p>{text(note)}</p>" for note in outcome.plan.notes]
        for piece, made in zip(outcome.plan.pieces, outcome.made, strict=True):
            where = outcome.shared.get(made.folder)
            parts.append(_piece(piece, made) if where is None else _elsewhere(piece, where))
        parts += [_measured(one) for one in outcome.measured]
        parts.append(f'<p class="faint">Made in {outcome.seconds:.1f} s.</p>')
    parts.append(f'<p class="source">Source: {text(section.source)}. <a class="top" href="#top">Contents</a></p>')
    return "\n".join([*parts, "</section>"])


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
        parts.append('<div class="pictures">' + "".join(_figure(*row) for row in small) + "</div>")
    if sheets:
        parts.append('<div class="sheets">' + "".join(_sheet(*row) for row in sheets) + "</div>")
    parts.append(f'<div class="command"><pre>{escape(piece.line, quote=False)}</pre></div>')
    return "\n".join(parts)


def _elsewhere(piece: Piece, name: str) -> str:
    """A piece that an earlier section shows."""
    link = f'<p class="faint">Made and shown in <a href="#{name}">{escape(name)}</a>:</p>'
    return f'{link}<div class="command"><pre>{escape(piece.line, quote=False)}</pre></div>'


def _figure(one: Shown, path: Path, size: tuple[int, int]) -> str:
    crisp = ' class="small"' if max(size) <= 64 else ""
    return f"<figure><img{crisp} {_image(path, size, one.label)}>{_caption(one.label)}</figure>"


def _sheet(one: Shown, path: Path, size: tuple[int, int]) -> str:
    wide = " wide" if size[0] > max(460, 3 * size[1]) else ""  # a long strip is scrolled on a phone
    image = f'<div class="scroll"><img {_image(path, size, one.label)}></div>'
    return f'<figure class="sheet{wide}">{image}{_caption(one.label)}</figure>'


def _caption(label: str) -> str:
    return f"<figcaption>{escape(label)}</figcaption>" if label else ""


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
