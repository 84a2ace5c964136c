"""The Hugging Face diffusion course, units 3 and 4: what Stable Diffusion's notebooks do, on the report's model."""

from __future__ import annotations

from typing import Any

from diffkit.lab import measure
from diffkit.lab.pieces import Drawing, Made
from diffkit.lab.printed import Inspected
from diffkit.lab.section import Lab, Plan, Section, Table, section

ROMBACH = "Rombach et al., arXiv:2112.10752"


@section(
    "3-generate",
    "3 A picture from a prompt",
    asks="35 steps, guidance 8, seed 42.",
    formula="ε̂ = ε_{u} + 8 (ε_{c} − ε_{u})",
    source=ROMBACH,
)
def generate(lab: Lab) -> Plan:
    """Plan two pictures."""
    lab.needs_words()
    piece = lab.draw("sample", "", num=2, seed=42, steps=35, guidance=8.0, **lab.told_each(lab.words.several[0]))
    return Plan([piece], lambda made: [measure.cost_table([("two pictures", made[0])])])


@section(
    "3-guidance",
    "3 Guidance scales",
    asks="The same noise at guidance 1.1, 8 and 12.",
    formula="ε̂ = ε_{u} + γ (ε_{c} − ε_{u})",
    source="Ho and Salimans, arXiv:2207.12598",
)
def scales(lab: Lab) -> Plan:
    """Plan a sweep."""
    lab.needs_guidance()
    told = lab.told_each(lab.words.several[0])
    piece = lab.draw("sample", "", sweep=("guidance=1.1,8,12",), num=1, seed=42, steps=35, **told)

    def measured(made: list[Made]) -> list[Table | str]:
        contrasts = measure.contrasts(made[0])
        return [Table(("guidance", "1.1", "8", "12"), (("contrast", *(f"{value:.3f}" for value in contrasts)),))]

    return Plan([piece], measured)


@section(
    "3-parts",
    "3 What the pipeline is made of",
    asks="Tokens and shapes, the noise schedule, a picture through the VAE and back.",
    formula="z = 0.18215 E(x),  x ≈ D(z / 0.18215)",
    source=ROMBACH,
)
def parts(lab: Lab) -> Plan:
    """Plan the tables; the VAE is shown of models that have one."""
    word = lab.words.several[0] if lab.info.text else None
    image = lab.images[0] if lab.info.latent else None
    notes = () if lab.info.latent else (f"`{lab.model}` works on pixels: it has no VAE, and nothing of it is shown.",)

    def measured(made: list[Made]) -> list[Table | str]:
        facts = made[0].payload
        rows = [
            (name, part["class"], f"{part['parameters']:,}" if "parameters" in part else "")
            for name, part in facts["components"].items()
        ]
        found: list[Table | str] = [Table(("part", "class", "parameters"), tuple(rows))]
        if facts.get("tokens"):
            found.append("Tokens: " + " ".join(f"`{token}`" for token in facts["tokens"]))
        return found

    return Plan([Inspected(lab.model, word, image, lab.mark)], measured, notes)


@section(
    "3-loop",
    "3 The loop, step by step",
    asks="A loop by hand, 30 steps.",
    formula="x_{t'} = √ᾱ_{t'} x̂ + √(1 − ᾱ_{t'}) ε̂",
    source="Song et al., arXiv:2010.02502, eq. 12",
)
def loop(lab: Lab) -> Plan:
    """Plan the states of one picture."""
    told = lab.told_each(lab.words.several[0])
    piece = lab.draw("sample", "The state, and the estimate below it", num=1, seed=42, steps=30, states=6, **told)
    note = "In Python the loop is `for step in diffkit.denoise(...)`: each step holds the state and the estimate."
    return Plan([piece], notes=(note,))


def _edit(lab: Lab) -> str | None:
    return lab.words.edits[0] if lab.info.conditioning != "none" else None


@section(
    "3-img2img",
    "3 Image to image",
    asks="A picture drawn anew by a prompt, strength 0.6.",
    formula="x_{t} = √ᾱ_{t} x + √(1 − ᾱ_{t}) ε,  t = 0.6 T",
    source="Meng et al., arXiv:2108.01073",
)
def img2img(lab: Lab) -> Plan:
    """Plan four variants."""
    piece = lab.draw("sdedit", "", image=lab.images[0], strength=0.6, num=4, before=True, **lab.told(_edit(lab)))

    def measured(made: list[Made]) -> list[Table | str]:
        far = measure.apart(made[0], lab.images[0])
        return [f"From the picture: {min(far):.3f} to {max(far):.3f}, RMS of pixels from 0 to 1."]

    return Plan([piece], measured)


@section(
    "3-inpaint",
    "3 Inpainting",
    asks="A part of a picture painted anew by a prompt.",
    formula="x_{t} ← m x_{t} + (1 − m) noised(x, t)",
    source="Lugmayr et al., arXiv:2201.09865",
)
def inpaint(lab: Lab) -> Plan:
    """Plan four variants of the right half."""
    from diffkit.lab.setup import write_input
    from diffkit.pictures.examples import example_mask
    from diffkit.pictures.images import open_image

    image = lab.images[0]
    path = write_input(lab.folder / "inputs", f"half-{image.stem}", example_mask(*open_image(image).size))
    told = lab.told(lab.words.several[0])
    piece = lab.draw("inpaint", "", image=image, mask=path, num=4, before=True, steps=30, **told)

    def measured(made: list[Made]) -> list[Table | str]:
        most = measure.changed_outside(made[0], image, path)
        return [f"Kept pixels changed by {most} of 255 at most; {made[0].payload['unet_calls']} network calls."]

    return Plan([piece], measured)


def _invert(lab: Lab, caption: str, **values: Any) -> Drawing:
    return lab.draw("invert", caption, image=lab.images[0], steps=50, refine=1, **values)


@section(
    "4.1-round-trip",
    "4.1 DDIM inversion: there and back",
    asks="Inversion in 50 steps, and the same picture again.",
    formula="x_{t'} from x_{t} by DDIM's step, upwards",
    source="Song et al., arXiv:2010.02502, eq. 13",
)
def round_trip(lab: Lab) -> Plan:
    """Plan the way there and back."""
    piece = _invert(lab, "The picture, and what came back")

    def measured(made: list[Made]) -> list[Table | str]:
        scores = made[0].payload["scores"]
        return [
            f"Round trip {scores['round_trip_psnr']:.1f} dB; the noise has a deviation of {scores['latent_std']:.3f}."
        ]

    note = "Each step up is solved a second time at the level that it reaches (AIDI): the notebook's own has no such."
    return Plan([piece], measured, (note,))


@section(
    "4.1-edit",
    "4.1 An edit by inversion",
    asks="Back by another prompt, guidance 3.5, beside image to image.",
    formula="x_{t'} by DDIM's step, ε̂ = ε_{u} + 3.5 (ε_{c} − ε_{u})",
    source="Song et al., arXiv:2010.02502; Meng et al., arXiv:2108.01073",
)
def edit(lab: Lab) -> Plan:
    """Plan the edit and its neighbour."""
    lab.needs_words()
    word = lab.words.edits[0]
    key = "edit_prompt" if lab.info.text else "edit_class"
    pieces = [
        _invert(lab, f"By inversion: {word}", guidance=3.5, **{key: word}),
        lab.draw(
            "sdedit",
            f"Image to image, strength 0.8: {word}",
            image=lab.images[0],
            strength=0.8,
            steps=50,
            guidance=3.5,
            **lab.told(word),
        ),
    ]
    return Plan(pieces, lambda made: [measure.cost_table([("by inversion", made[0]), ("image to image", made[1])])])


def sections(year: int | None) -> dict[str, Section]:
    """Return these sections by name."""
    made = (generate, scales, parts, loop, img2img, inpaint, round_trip, edit)
    return {one.name: one for one in made}
