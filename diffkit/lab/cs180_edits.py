"""CS180, part A, the second half: pictures drawn anew, repainted, and seen in two ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from diffkit.engine.levels import flow_grid, flow_time, timestep_at
from diffkit.engine.samplers import is_flow
from diffkit.jobs.sdedit import SDEdit
from diffkit.lab import measure
from diffkit.lab.cs180_times import converted, flows, scale
from diffkit.lab.pieces import Drawing, Made
from diffkit.lab.section import Lab, Plan, Section, Table, numbers, section
from diffkit.models.bundled import BUNDLED

MENG = "Meng et al., arXiv:2108.01073"
_INDICES = (1, 3, 5, 7, 10, 20)  # of the grid 990, 960, ..., 0
_TIMES = (0.02, 0.04, 0.06, 0.10, 0.14, 0.25, 0.5)


def strengths(lab: Lab, year: int | None) -> tuple[dict[str, Any], list[float], list[str]]:
    """Return how SDEdit walks, the strengths of the course's starts, and what these are called.

    A strength is a share of the steps; it is chosen so that the first step is at the course's level.
    """
    base = lab.info.scheduler
    if is_flow(base):
        way: dict[str, Any] = {"steps": lab.steps(50)}
    elif flows(year):  # from t = 0.02 on by 0.02, wherever these lie among the model's timesteps
        way = {"timesteps": ",".join(map(str, _euler_grid(lab))), "scheduler": "ddim"}
    else:
        way = {"steps": lab.steps(33), "scheduler": "ddpm"}  # 960, 930, ..., 0 of 1000
    job = SDEdit.model_validate({"model": lab.model, "strength": 0.999, **way}).fitted(lab.info)
    grid = job.sampling_timesteps(lab.info)
    count = len(grid)
    if flows(year):
        wanted = [min(range(count), key=lambda k: abs(flow_time(base, grid[k]) - t)) for t in _TIMES]
        names = [f"t = {t:g}" for t in _TIMES]
    else:
        wanted = [min(range(count), key=lambda k: abs(grid[k] - lab.at(990 - 30 * i))) for i in _INDICES]
        names = [f"i_start = {i}" for i in _INDICES]
    # Strength 1 is pure noise; the first step of the grid with the picture in it is just below.
    return way, [round(min((count - k) / count, 0.999), 3) for k in wanted], names


def _euler_grid(lab: Lab) -> list[int]:
    """Return the timesteps of Euler's steps from the first of the course's times on."""
    return flow_grid(lab.info.scheduler, timestep_at(lab.info.scheduler, _TIMES[0]), 0.02)


def _by_strength(values: Sequence[float], names: Sequence[str]) -> dict[float, str]:
    """What strengths are called; of a model with few levels some are the same."""
    return {value: ", ".join(n for v, n in zip(values, names, strict=True) if v == value) for value in values}


def _edits(lab: Lab, year: int | None, images: Sequence[Path], words: Sequence[str | None]) -> list[Drawing]:
    """One strip of all strengths per picture."""
    way, values, names = strengths(lab, year)
    labels = list(_by_strength(values, names).values())
    sweep = "strength=" + ",".join(f"{value:g}" for value in dict.fromkeys(values))
    # The course is guided from here on; a small model and one of classes by what suits it.
    guided: dict[str, Any] = {"guidance": scale(year)} if lab.words.plain is not None and lab.info.null else {}
    found = []
    for image, word in zip(images, words, strict=True):
        caption = image.stem if word is None else f"{image.stem}: {word}"
        told = {**way, **guided, **lab.told(word)}
        found.append(lab.draw("sdedit", caption, image=image, sweep=(sweep,), labels=labels, before=True, **told))
    return found


def _distances(lab: Lab, year: int | None, images: Sequence[Path]) -> Callable[[list[Made]], list[Table | str]]:
    """How far every result lies from its picture."""
    _, values, names = strengths(lab, year)
    kept = _by_strength(values, names)

    def measured(made: list[Made]) -> list[Table | str]:
        header = ("RMS from the picture", *kept.values())
        rows = [(image.stem, *numbers(measure.apart(one, image), 3)) for image, one in zip(images, made, strict=True)]
        steps = [str(cell["steps"]) for cell in made[0].payload.get("sweep", [])]
        return [Table(header, (*rows, ("strength", *(f"{v:g}" for v in kept)), ("steps", *steps))), measure.UNITS]

    return measured


def sdedit(year: int | None) -> Section:
    """Plan SDEdit of photos and drawings."""

    @section(
        "sdedit", "A.1.8 Image to image" if flows(year) else "A.1.7 Image to image",
        asks="The photo and two pictures of one's own, then one from elsewhere and two drawings, from "
        + ("t = 0.02 to 0.5." if flows(year) else "i_start = 1, 3, 5, 7, 10, 20."),
        formula="x_{t} = (1 − t) ε + t x, and on from there" if flows(year)
        else "x_{t} = √ᾱ_{t} x + √(1 − ᾱ_{t}) ε, and on from there", source=f"{MENG}, algorithm 1",
    )  # fmt: skip
    def plan(lab: Lab) -> Plan:
        images = [*lab.images, *lab.drawings]
        pieces = _edits(lab, year, images, [lab.words.plain] * len(images))
        return Plan(pieces, _distances(lab, year, images), _edit_notes(lab, year))

    return plan


def _edit_notes(lab: Lab, year: int | None) -> tuple[str, ...]:
    notes: tuple[str, ...] = (
        "The less noise, the nearer the picture: left nearly everything is new, right nearly nothing.",
    )
    from diffkit.lab.setup import DRAWINGS

    if any(path.stem not in DRAWINGS for path in (*lab.images, *lab.drawings)) and lab.info.vocabulary is not None:
        notes = (*notes, f"`{lab.model}` has never seen a photograph: of one it makes what it knows.")
    return (*notes, *converted(lab)) if flows(year) else notes


def text_sdedit(year: int | None) -> Section:
    """Plan SDEdit under other prompts."""

    @section(
        "text-sdedit", "A.1.9 Image to image by a prompt" if flows(year) else "A.1.7.3 Image to image by a prompt",
        asks="The same starts with other prompts: the picture becomes something else.",
        formula="v = v_{u} + γ (v_{c} − v_{u})" if flows(year) else "ε̂ = ε_{u} + γ (ε_{c} − ε_{u})", source=MENG,
    )  # fmt: skip
    def plan(lab: Lab) -> Plan:
        lab.needs_words()
        images = list(lab.images)
        words = [lab.words.edits[k % len(lab.words.edits)] for k in range(len(images))]
        pieces = _edits(lab, year, images, words)
        return Plan(pieces, _distances(lab, year, images), converted(lab) if flows(year) else ())

    return plan


def _masks(lab: Lab) -> list[Path]:
    """Masks of the pictures' own sizes, white is repainted: the right half, the lower half, a box in the middle."""
    from diffkit.lab.setup import write_input
    from diffkit.pictures.images import open_image

    boxes = ((0.5, 0.0, 1.0, 1.0), (0.0, 0.5, 1.0, 1.0), (0.25, 0.25, 0.75, 0.75))
    found = []
    for image, (left, top, right, bottom) in zip(lab.images, boxes, strict=False):
        width, height = open_image(image).size
        mask = Image.new("L", (width, height), 0)
        box = (round(left * width), round(top * height), round(right * width) - 1, round(bottom * height) - 1)
        ImageDraw.Draw(mask).rectangle(box, fill=255)
        found.append(write_input(lab.folder / "inputs", f"mask-{image.stem}", mask))
    return found


def inpaint(year: int | None) -> Section:
    """Plan inpainting."""

    @section(
        "inpaint", "A.1.10 Inpainting" if flows(year) else "A.1.7.2 Inpainting",
        asks="The photo and two of one's own; the white of the mask is new.",
        formula="x_{t} ← m x_{t} + (1 − m) noised(x, t)", source="Lugmayr et al., arXiv:2201.09865 (RePaint)",
    )  # fmt: skip
    def plan(lab: Lab) -> Plan:
        masks = _masks(lab)
        often: dict[str, Any] = {"resample": 3, "jump": 5} if not lab.info.latent else {}
        way: dict[str, Any] = {} if is_flow(lab.info.scheduler) else {"scheduler": "ddpm", "steps": 30}
        told = lab.told(lab.words.plain)
        pieces = [
            lab.draw("inpaint", image.stem, image=image, mask=mask, num=4, before=True, **often, **way, **told)
            for image, mask in zip(lab.images, masks, strict=True)
        ]

        def measured(made: list[Made]) -> list[Table | str]:
            rows = [(image.stem, str(measure.changed_outside(one, image, mask)), str(one.payload["unet_calls"]))
                    for one, image, mask in zip(made, lab.images, masks, strict=True)]  # fmt: skip
            return [Table(("", "largest change of a kept pixel, of 255", "network calls"), tuple(rows))]

        dropped = "The course of 2026 dropped this exercise, for seams were never mended"
        dropped += "; RePaint's resampling mends them." if often else ". They are not mended on latents here, either."
        return Plan(pieces, measured, (dropped,) if flows(year) else ())

    return plan


def anagrams(year: int | None) -> Section:
    """Plan visual anagrams."""
    flow = flows(year)

    @section(
        "anagrams", "A.1.11 Visual anagrams" if flow else "A.1.8 Visual anagrams",
        asks="Two pictures that change their meaning when turned by 180 degrees, and two by further views."
        if flow else "Pictures that change their meaning when turned upside down in a mirror.",
        formula="v = (v(x_{t}, p_{1}) + view^{−1} v(view x_{t}, p_{2})) / 2" if flow
        else "ε̂ = (ε(x_{t}, p_{1}) + flip ε(flip x_{t}, p_{2})) / 2", source="Geng et al., arXiv:2311.17919",
    )  # fmt: skip
    def plan(lab: Lab) -> Plan:
        lab.needs_words()
        turns = [("rotate_180", pair) for pair in lab.words.turns]
        pairs = [*turns, *lab.words.others] if flow else [("flip", pair) for pair in lab.words.flips]
        pieces = [
            lab.draw("anagram", f"{a} / {b}: {view}", views=("identity", view), num=2, **_pair(lab, a, b))
            for view, (a, b) in pairs
        ]
        return Plan(pieces, measure.costs(pieces), converted(lab) if flow else ())

    return plan


def hybrids(year: int | None) -> Section:
    """Plan hybrid pictures."""
    out, net = ("v", "v") if flows(year) else ("ε̂", "ε")
    kernel = "kernel 265, sigma 16 at 512 pixels" if flows(year) else "kernel 33, sigma 2 at 64 pixels"

    @section(
        "hybrids", "A.1.12 Hybrid images" if flows(year) else "A.1.9 Hybrid images",
        asks=f"Pictures that show one thing from afar and another from near ({kernel}).",
        formula=f"{out} = G_{{σ}} ∗ {net}(x_{{t}}, p_{{1}}) + (1 − G_{{σ}}) ∗ {net}(x_{{t}}, p_{{2}})",
        source="Geng et al., arXiv:2404.11615",
    )  # fmt: skip
    def plan(lab: Lab) -> Plan:
        lab.needs_words()
        pairs = lab.words.hybrids[: 2 if flows(year) else 3]
        pieces = [lab.draw("hybrid", f"{a} from afar, {b} from near", num=2, **_pair(lab, a, b)) for a, b in pairs]
        notes: tuple[str, ...] = ("The staff of 2026 call these unreliable.",) if flows(year) else ()
        if lab.info.id == BUNDLED:
            notes = (*notes, "A letter's strokes are a large part of 32 pixels: the small model's split is sigma 6.")
        return Plan(pieces, measure.costs(pieces), (*notes, *(converted(lab) if flows(year) else ())))

    return plan


def _pair(lab: Lab, one: str, other: str) -> dict[str, Any]:
    return {"prompts" if lab.info.text else "classes": (one, other)}


def extras(year: int | None) -> Section:
    """Plan a logo, with its way out of the noise."""

    @section("extras", "A.2 A logo, and the way to it", asks="A logo for the course, or any idea of one's own.",
             source="Ho and Salimans, arXiv:2207.12598")  # fmt: skip
    def plan(lab: Lab) -> Plan:
        word = lab.words.logo if lab.info.conditioning != "none" else None
        piece = lab.draw("sample", word or "Unconditional", num=4, gif=True, **lab.told_each(word))
        return Plan([piece], measure.costs([piece]))

    return plan


def sections(year: int | None) -> dict[str, Section]:
    """Return these sections as a year has them, by name."""
    made = [maker(year) for maker in (sdedit, text_sdedit, inpaint, anagrams, hybrids, extras)]
    return {one.name: one for one in made}
