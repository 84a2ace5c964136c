"""CS180, part A, the first half: from noise to pictures by a pretrained model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffkit.engine.levels import timestep_at
from diffkit.engine.samplers import is_flow
from diffkit.lab import measure
from diffkit.lab.cs180_times import TIMES, converted, counted, flows, named, sampler, scale, starts
from diffkit.lab.pieces import Drawing, Made
from diffkit.lab.section import Lab, Plan, Section, Table, numbers, section

HO = "Ho et al., arXiv:2006.11239"
FLOW = "Liu et al., arXiv:2209.03003, eq. 1"


def setup(year: int | None) -> Section:
    """Plan the first pictures."""

    @section(
        "setup", "A.0 Setting up", 
        asks="Three prompts, drawn with at least two numbers of steps; the seed is reported.",
        source="Song et al., arXiv:2010.02502 (fewer steps than the model was trained with)",
    )  # fmt: skip
    def plan(lab: Lab) -> Plan:
        words = lab.words.several if lab.info.conditioning != "none" else ()
        told = {"prompt" if lab.info.text else "classes": words} if words else {"num": 3}
        counts = ", ".join(str(count) for count in dict.fromkeys(map(lab.steps, (5, 20, 50))))
        sweep = f"steps={counts.replace(' ', '')}"
        labels = [f"{word or f'seed {lab.seed + k}'}, {count} steps" for count in counts.split(", ")
                  for k, word in enumerate(words or ("",) * 3)]  # fmt: skip
        piece = lab.draw("sample", "", sweep=(sweep,), labels=labels, **told)

        def measured(made: list[Made]) -> list[Table | str]:
            encode = made[0].payload["seconds"].get("encode")
            said = " Prompts are encoded before the network is loaded, and kept" if encode is not None else ""
            said += f" ({encode:.2f} s)." if encode and encode >= 0.01 else "." if said else ""
            return [f"First seed {lab.seed}; {made[0].payload['unet_calls']} network calls in all.{said}"]

        return Plan([piece], measured)

    return plan


def forward(year: int | None) -> Section:
    """Plan the forward process."""
    flow = flows(year)

    @section(
        "forward", "A.1.1 The forward process",
        asks="The picture at "
        + ("t = 0.25, 0.5, 0.75, with one noise." if flow else "t = 250, 500, 750, and a strip."),
        formula="x_{t} = (1 − t) ε + t x" if flow else "x_{t} = √ᾱ_{t} x + √(1 − ᾱ_{t}) ε,  ε ~ N(0, I)",
        source=FLOW if flow else f"{HO}, eq. 4",
    )  # fmt: skip
    def plan(lab: Lab) -> Plan:
        if flow:
            pieces = [lab.draw("noise", "", image=lab.images[0], times=list(TIMES), size=96, model=None)]
        else:
            strip = [lab.at(t) for t in (*range(0, 1000, 125), 999)]
            pieces = [
                lab.draw("noise", caption, image=lab.images[0], timesteps=levels, size=96)
                for caption, levels in (("", starts(lab, year)), ("From the picture to noise", strip))
            ]

        def measured(made: list[Made]) -> list[Table | str]:
            signal, noise = made[-1].payload["signal"], made[-1].payload["noise"]
            header = ("t", *signal)
            return [Table(header, (("share of the picture", *numbers(list(signal.values()), 3)),
                                   ("share of noise", *numbers(list(noise.values()), 3))))]  # fmt: skip

        return Plan(pieces, measured)

    return plan


def _denoised(
    year: int | None, name: str, title: str, asks: str, formula: str, source: str, methods: tuple[str, ...]
) -> Section:
    """A section that denoises the three noisy pictures by some methods."""

    @section(name, title, asks=asks, formula=formula, source=source)
    def plan(lab: Lab) -> Plan:
        piece = lab.draw(
            "denoise", "", image=lab.images[0], timesteps=starts(lab, year), methods=methods, guidance=_plain(lab),
            **lab.told(lab.words.plain),
        )  # fmt: skip

        def measured(made: list[Made]) -> list[Table | str]:
            return [measure.psnr_table([("", made[0].payload["psnr"])], named=named(lab, year))]

        notes = converted(lab) if flows(year) and "one_step" in methods else ()
        return Plan([piece], measured, (*notes, *counted(lab, year)))

    return plan


def _plain(lab: Lab) -> float | None:
    """No guidance, of models that would be guided."""
    return 1.0 if lab.info.conditioning != "none" and lab.words.plain is not None else None


def classical(year: int | None) -> Section:
    """Plan the blur."""
    return _denoised(
        year, "classical", "A.1.2 Classical denoising",
        "The best Gaussian blur beside each noisy picture." + (" Here x_{t} / t is blurred." if flows(year) else ""),
        "x̂ = G_{σ} ∗ (x_{t} / t)" if flows(year) else "x̂ = G_{σ} ∗ (x_{t} / √ᾱ_{t}),  σ the best of nine",
        "the baseline: a linear filter", ("blur",),
    )  # fmt: skip


def one_step(year: int | None) -> Section:
    """Plan the denoising in one step."""
    return _denoised(
        year, "one-step", "A.1.3 One-step denoising",
        "The picture as the model estimates it at once, at the same three t.",
        "x̂ = x_{t} + (1 − t) v(x_{t}, t)" if flows(year) else "x̂ = (x_{t} − √(1 − ᾱ_{t}) ε̂(x_{t}, t)) / √ᾱ_{t}",
        FLOW if flows(year) else f"{HO}, eq. 15", ("blur", "one_step"),
    )  # fmt: skip


def velocity(year: int | None) -> Section:
    """Plan the velocities."""

    @section(
        "velocity", "A.1.4 The velocity field",
        asks="At each t the noisy picture, the way that is predicted, the true one, and a heat map of the difference;"
        " one scale of colours for all.",
        formula="v = x − ε;   (1 − t) v(x_{t}, t) beside x − x_{t}", source=FLOW,
    )  # fmt: skip
    def plan(lab: Lab) -> Plan:
        piece = lab.draw("velocity", "", image=lab.images[0], times=list(TIMES), guidance=_plain(lab),
                         **lab.told(lab.words.plain))  # fmt: skip

        def measured(made: list[Made]) -> list[Table | str]:
            scores = made[0].payload["scores"]
            table = Table(("t", *scores["velocity_rms"]),
                          (("RMS of the difference", *numbers(list(scores["velocity_rms"].values()), 4)),))  # fmt: skip
            return [
                table,
                f"Of pixels from 0 to 1; white in the heat maps is a difference of {scores['heat_scale']:.2f}.",
            ]

        notes = ("Grey is no way to go. The difference is that of x̂ from x: both ways begin at x_{t}.",)
        return Plan([piece], measured, (*notes, *converted(lab)))

    return plan


def iterative(year: int | None) -> Section:
    """Plan the denoising in many steps."""
    flow = flows(year)

    @section(
        "iterative", "A.1.5 Iterative denoising" if flow else "A.1.4 Iterative denoising",
        asks="Many steps from " + ("t = 0.5, h = 0.02" if flow else "i_start = 10 of the grid 990, 960, ..., 0")
        + ", every fifth picture; compared with one step and with the blur.",
        formula="x_{t+h} = x_{t} + h v(x_{t}, t)" if flow
        else "x_{t'} = √ᾱ_{t'} β x̂ / (1 − ᾱ_{t}) + √α (1 − ᾱ_{t'}) x_{t} / (1 − ᾱ_{t}) + σ z"
        " | α = ᾱ_{t} / ᾱ_{t'},  β = 1 − α",
        source=FLOW if flow else f"{HO}, algorithm 2 between grid points",
    )  # fmt: skip
    def plan(lab: Lab) -> Plan:
        begin = timestep_at(lab.info.scheduler, 0.5) if flow else lab.at(690)
        way: dict[str, Any] = {"stride": lab.at(30) or 1}
        if flow:
            way = (
                {"stride": lab.at(20) or 1} if is_flow(lab.info.scheduler) else {"flow_step": 0.02, "scheduler": "ddim"}
            )
        piece = lab.draw("denoise", "", image=lab.images[0], timesteps=[begin], every=5, guidance=_plain(lab),
                         **way, **lab.told(lab.words.plain))  # fmt: skip

        def measured(made: list[Made]) -> list[Table | str]:
            steps = made[0].payload["steps"] - 1
            return [measure.psnr_table([("", made[0].payload["psnr"])], named=named(lab, year)),
                    f"{steps} steps. Many steps look sharper, and need not be nearer in pixels: one step estimates the"
                    " mean of what the picture may be, many choose one of these."]  # fmt: skip

        return Plan([piece], measured, (*converted(lab), *counted(lab, year, begin)) if flow else ())

    return plan


def sampling(year: int | None) -> Section:
    """Plan five pictures from noise."""

    @section(
        "sampling", "A.1.6 Sampling" if flows(year) else "A.1.5 Sampling",
        asks="Five pictures from pure noise, not guided.",
        formula="x_{0} ~ N(0, I)" if flows(year) else "x_{T} ~ N(0, I),  i_start = 0",
        source=FLOW if flows(year) else HO,
    )  # fmt: skip
    def plan(lab: Lab) -> Plan:
        return Plan(
            [_five(lab, year, lab.words.plain, _plain(lab))], _five_measured, converted(lab) if flows(year) else ()
        )

    return plan


def _five(lab: Lab, year: int | None, word: str | None, guidance: float | None, caption: str = "") -> Drawing:
    way = sampler(lab, year)
    return lab.draw("sample", caption, num=5, guidance=guidance, **way, **lab.told_each(word))


def _five_measured(made: list[Made]) -> list[Table | str]:
    rows = [
        (
            f"{measure.variety(one):.3f}",
            f"{measure.contrast(one):.3f}",
            str(one.payload["unet_calls"]),
            f"{one.seconds:.1f}",
        )
        for one in made
    ]
    return [Table(("RMS between two pictures", "contrast", "network calls", "seconds"), tuple(rows)), measure.UNITS]


def guidance(year: int | None) -> Section:
    """Plan five guided pictures."""
    flow = flows(year)

    @section(
        "guidance", "A.1.7 Classifier-free guidance" if flow else "A.1.6 Classifier-free guidance",
        asks="Five pictures with guidance 7, from the same noises; not guided beside them.",
        formula="v = v_{c} + w (v_{c} − v_{u}),  w = 7" if flow else "ε̂ = ε_{u} + γ (ε_{c} − ε_{u}),  γ = 7",
        source="Ho and Salimans, arXiv:2207.12598",
    )  # fmt: skip
    def plan(lab: Lab) -> Plan:
        lab.needs_guidance()
        word = lab.words.plain or lab.words.several[0]
        pieces = [
            _five(lab, year, word, 1.0, f"Not guided: {word}"),
            _five(lab, year, word, scale(year), f"Guided: {word}"),
        ]

        def measured(made: list[Made]) -> list[Table | str]:
            rows = [(name, f"{measure.variety(one):.3f}", f"{measure.contrast(one):.3f}")
                    for name, one in zip(("not guided", "guided"), made, strict=True)]  # fmt: skip
            return [Table(("", "RMS between two pictures", "contrast"), tuple(rows)), measure.UNITS]

        other = "This formula's w = 7 is the scale w + 1 = 8 of diffkit's `guidance` (0 unconditional, 1 conditional)."
        notes = (other,) if flow else ("`guidance` is this γ: 0 unconditional, 1 conditional, above 1 guided.",)
        return Plan(pieces, measured, (*notes, *(converted(lab) if flow else ())))

    return plan


def sections(year: int | None) -> dict[str, Section]:
    """Return these sections as a year has them, by name."""
    makers: tuple[Callable[[int | None], Section], ...] = (
        setup, forward, classical, one_step, velocity, iterative, sampling, guidance,
    )  # fmt: skip
    made = [maker(year) for maker in makers]
    return {one.name: one for one in made}
