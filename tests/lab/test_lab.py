"""Reports of courses: whole, self-contained, and made once; by tiny models, and by sections that the tests make."""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diffkit.errors import UsageError
from diffkit.lab import ROWS, rows, sections
from diffkit.lab import run as runs
from diffkit.lab.pieces import Bench, Drawing, digest, kept, make
from diffkit.lab.report import formula
from diffkit.lab.run import planned, report
from diffkit.lab.section import Cannot, Lab, Plan, Section, Table, section
from diffkit.lab.setup import Asked, set_up
from diffkit.lab.trainings import train
from tests.support.families import make_run

COURSES = [(course, year) for course, years in ROWS.items() for year in years]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DIFFKIT_MNIST", raising=False)
    monkeypatch.chdir(tmp_path)


def lab_of(course: str, year: int | None = None, **asked: Any) -> Lab:
    return set_up(Asked(course=course, year=year, data="digits", **asked))[0]


class _Page(HTMLParser):
    """The addresses that a page would fetch, the places it links to, and the ids it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.images = 0
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.images += tag == "img"
        self.fetched += [str(found[key]) for key in ("src", "srcset", "data") if key in found]
        self.fetched += [str(found["href"])] if tag == "link" else []
        self.links += [str(found["href"])] if tag == "a" else []
        self.ids |= {str(found["id"])} if "id" in found else set()
        if tag not in ("img", "meta", "br", "link", "hr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize(("course", "year"), COURSES)
def test_every_row_of_a_course_has_a_section_that_says_what_it_is(course: str, year: int | None) -> None:
    found = sections(course, year)
    assert tuple(one.name for one in found) == rows(course, year)
    for one in found:
        assert one.title
        assert one.asks[-1] in ".?"
        assert one.source
    assert len({one.title for one in found}) == len(found)


@pytest.mark.parametrize(("course", "year"), COURSES)
def test_a_section_is_planned_without_weights_or_says_why_not(course: str, year: int | None, monkeypatch: Any) -> None:
    monkeypatch.setattr("diffkit.jobs.run.load_opened", lambda *_: pytest.fail("weights were read"))
    outcomes = planned(lab_of(course, year), sections(course, year))
    assert len(outcomes) == len(rows(course, year))
    for one in outcomes:
        assert one.plan is not None or one.why
        for piece in one.plan.pieces if one.plan else ():
            assert piece.line.startswith("diffkit ")
            assert re.fullmatch("[0-9a-f]{16}", digest(piece))


@pytest.mark.parametrize(("course", "year"), COURSES)
def test_every_command_of_a_report_is_one(
    course: str, year: int | None, run_cli: Callable[..., Any], monkeypatch: Any
) -> None:
    """Each is parsed by the command line; what it would do is put aside."""
    heard: list[str] = []

    def listen(name: str) -> Callable[..., Any]:
        def did(*args: Any, **kwargs: Any) -> Any:
            heard.append(name)
            raise UsageError("heard")

        return did

    monkeypatch.setattr("diffkit.jobs.run.run", listen("job"))
    monkeypatch.setattr("diffkit.training.fit", listen("train"), raising=False)
    monkeypatch.setattr("diffkit.jobs.evaluate.evaluate", listen("evaluate"), raising=False)
    monkeypatch.setattr("diffkit.models.inspect.describe", listen("inspect"))
    monkeypatch.setattr("diffkit.pictures.plots.noise_schedules", listen("schedule"))
    lines = [piece.line for one in planned(lab_of(course, year), sections(course, year)) if one.plan
             for piece in one.plan.pieces]  # fmt: skip
    lines = [line for line in dict.fromkeys(lines) if _known(shlex.split(line)[1])]
    for line in lines:
        ran = run_cli(*shlex.split(line)[1:])
        assert "heard" in ran.stderr, (line, ran.stderr)
    assert len(heard) == len(lines)
    assert len(lines) > 3 or course != "cs180"


def _known(command: str) -> bool:
    from importlib.util import find_spec

    from diffkit.jobs import summaries

    return command in summaries() or find_spec(f"diffkit.cli.{command}") is not None


def test_a_page_fetches_nothing_and_is_for_light_and_dark_and_phones(
    tmp_path: Path, run_cli: Callable[..., Any]
) -> None:
    out = tmp_path / "r.html"
    names = ("forward", "classical", "guidance")
    ran = run_cli("lab", "cs180", "--year", "2024", "-o", out, "--json", *(w for n in names for w in ("--only", n)))
    assert ran.code == 0, ran.stderr
    done = json.loads(ran.stdout)
    assert done["report"] == str(out)
    assert [one["name"] for one in done["sections"]] == list(names)
    assert all(set(one) == {"name", "made", "why", "seconds"} and one["made"] for one in done["sections"])
    text = out.read_text(encoding="utf-8")
    page = _Page(text)
    assert page.images == len(page.fetched) > 10
    assert all(address.startswith("data:image/") for address in page.fetched)
    assert "http:" not in text
    assert "https:" not in text
    assert "url(" not in text
    assert "<script" not in text
    assert set(page.links) == {f"#{name}" for name in names} | {"#top"}
    assert {link[1:] for link in page.links} <= page.ids
    assert page.open == []
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text
    assert "arXiv:2006.11239" in text
    assert "diffkit noise" in text
    assert not list(tmp_path.glob(".*"))


def test_a_saved_picture_of_a_page_can_be_replayed(tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    import base64

    ran = run_cli("lab", "cs180", "--year", "2024", "-o", tmp_path / "r.html", "--only", "forward")
    assert ran.code == 0, ran.stderr
    data = re.findall(r"base64,([A-Za-z0-9+/=]+)", (tmp_path / "r.html").read_text())[0]
    (tmp_path / "saved.png").write_bytes(base64.b64decode(data))
    again = run_cli("replay", tmp_path / "saved.png", "--json")
    assert again.code == 0, again.stderr
    assert json.loads(again.stdout)["identical"] is True


def _strip(lab: Lab, **values: Any) -> Drawing:
    return lab.draw("noise", "", image=lab.images[0], times="0.5", model=None, **values)


def _made_up(name: str, seed: int, after: Callable[[], None] = lambda: None) -> Section:
    @section(name, name.title(), asks="A strip.", source="nobody", formula="x_{t}")
    def plan(lab: Lab) -> Plan:
        def measured(made: list[Any]) -> list[Table | str]:
            after()
            return [Table(("a", "b"), (("1", "`2`"),)), "A sentence."]

        return Plan([_strip(lab, size=16, num=seed + 1)], measured)

    return plan


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures each run of a job has drawn."""
    from diffkit.jobs import run as module

    found: list[int] = []
    real = module.run

    def counted(*args: Any, **kwargs: Any) -> Any:
        done = real(*args, **kwargs)
        found.append(len(done.pictures))
        time.sleep(0.02)  # seconds are told in hundredths
        return done

    monkeypatch.setattr(module, "run", counted)
    return found


def test_what_was_made_is_not_drawn_again_after_an_interruption(tmp_path: Path, drawn: list[int]) -> None:
    lab, out = lab_of("cs180", 2024), tmp_path / "r.html"

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        report(lab, [_made_up("one", 0), _made_up("two", 1, stop), _made_up("three", 2)], out, Bench())
    assert drawn == [1, 2]
    assert not out.exists()
    three = [_made_up("one", 0), _made_up("two", 1), _made_up("three", 2)]
    done, code = report(lab, three, out, Bench())
    assert (drawn, code) == ([1, 2, 3], 0)
    first = out.read_text()
    assert [one["made"] for one in done.payload["sections"]] == [True] * 3
    report(lab, three, out, Bench())
    assert drawn == [1, 2, 3]
    assert out.read_text() == first


def test_what_older_code_has_made_is_made_anew(tmp_path: Path, drawn: list[int], monkeypatch: Any) -> None:
    """Sources stand for the package's: a change where pieces are made counts, one where they are asked for does not."""
    from diffkit.lab import code

    source = tmp_path / "package"
    for name in ("engine/sampling.py", "lab/pieces.py", "lab/report.py", "cli/lab.py"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("x = 1\n")
    monkeypatch.setattr(code, "PACKAGE", source)
    lab, one = lab_of("cs180", 2024), [_made_up("one", 0)]
    folders = set()

    def again() -> int:
        code.code_digest.cache_clear()
        report(lab, one, tmp_path / "r.html", Bench())
        folders.add(train(lab, "cs180-one-step").folder)
        return len(drawn)

    try:
        assert [again(), again()] == [1, 1]
        for name, count in (("lab/report.py", 1), ("cli/lab.py", 1), ("engine/sampling.py", 2), ("lab/pieces.py", 3)):
            (source / name).write_text("x = 2\n")
            assert (name, again()) == (name, count)
        (source / "engine/sampling.py").rename(source / "engine/grids.py")
        assert again() == 4
        assert len(folders) == 4, "a training by other code has a folder of its own"
    finally:
        code.code_digest.cache_clear()


def test_a_half_made_piece_is_made_again(tmp_path: Path, drawn: list[int]) -> None:
    lab = lab_of("cs180", 2024)
    one = [_made_up("one", 0)]
    report(lab, one, tmp_path / "r.html", Bench())
    piece = planned(lab, one)[0].plan.pieces[0]  # type: ignore[union-attr]
    made = kept(piece, lab.folder / "pieces")
    assert made is not None
    (made.folder / made.pictures[0].file).unlink()
    report(lab, one, tmp_path / "r.html", Bench())
    assert drawn == [1, 1]


def test_an_error_of_one_section_stops_no_other_and_is_tried_again(tmp_path: Path, drawn: list[int]) -> None:
    lab, out = lab_of("cs180", 2024), tmp_path / "r.html"

    def fail() -> None:
        raise UsageError("it cannot", "Try `another`.")

    done, code = report(lab, [_made_up("one", 0, fail), _made_up("two", 1)], out, Bench())
    assert code == 2
    assert [one["made"] for one in done.payload["sections"]] == [False, True]
    assert done.payload["sections"][0]["why"] == "it cannot. Try `another`."
    assert "Not made." in out.read_text()
    done, code = report(lab, [_made_up("one", 0), _made_up("two", 1)], out, Bench())
    assert (code, drawn) == (0, [1, 2])


def test_a_piece_of_two_sections_is_shown_and_counted_once(tmp_path: Path, drawn: list[int]) -> None:
    done, _ = report(lab_of("cs180", 2024), [_made_up("one", 0), _made_up("two", 0)], tmp_path / "r.html", Bench())
    page = (tmp_path / "r.html").read_text()
    assert drawn == [1]
    assert _Page(page).images == 1
    assert 'shown in <a href="#one">One</a>' in page
    assert [one["seconds"] > 0 for one in done.payload["sections"]] == [True, False]


def test_a_long_note_is_said_in_full_once_and_then_named(tmp_path: Path) -> None:
    long = "It predicts x_{0}, and no velocity. " + "What follows from that is told here at some length. " * 3

    def noted(name: str) -> Section:
        @section(name, name.title(), asks="A strip.", source="nobody")
        def plan(lab: Lab) -> Plan:
            return Plan([_strip(lab, size=16)], notes=(long, "A short one."))

        return plan

    report(lab_of("cs180", 2024), [noted("one"), noted("two")], tmp_path / "r.html", Bench())
    page = (tmp_path / "r.html").read_text()
    assert page.count("It predicts x<sub>0</sub>, and no velocity") == 2
    assert page.count("at some length") == 3
    assert 'no velocity: see <a href="#one">One</a>.' in page
    assert page.count("A short one.") == 2


def test_states_of_a_picture_are_shown_as_laid_out(tmp_path: Path) -> None:
    lab = lab_of("hf-course")
    piece = lab.draw("sample", num=1, steps=4, states=2, prompt=("a red heart",))
    made = make(piece, lab.folder / "pieces", Bench())
    assert [one.file for one in made.pictures] == ["sample-grid.png"]


def test_another_picture_or_seed_is_another_piece(tmp_path: Path) -> None:
    for name, color in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (20, 20), color).save(tmp_path / f"{name}.png")
    labs = [lab_of("cs180", 2024, images=(tmp_path / "a.png",)), lab_of("cs180", 2024, images=(tmp_path / "b.png",)),
            lab_of("cs180", 2024, images=(tmp_path / "a.png",), seed=1)]  # fmt: skip
    assert len({digest(_strip(lab)) for lab in labs}) == 3
    before = digest(_strip(labs[0]))
    Image.new("RGB", (20, 20), "green").save(tmp_path / "a.png")  # the same path shows something else
    assert digest(_strip(lab_of("cs180", 2024, images=(tmp_path / "a.png",)))) != before


def test_a_report_is_never_there_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffkit.pictures import files

    path = tmp_path / "r.html"
    files.write_whole(path, b"before", durable=True)

    def torn(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", torn)
    with pytest.raises(OSError, match="No space"):
        files.write_whole(path, b"after", durable=True)
    assert path.read_text() == "before"
    assert [one.name for one in tmp_path.glob(".*")] == []


def test_a_model_that_cannot_says_why(tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    run = make_run(tmp_path / "run", kind="none", size=8)
    out = tmp_path / "r.html"
    names = ("guidance", "anagrams", "forward")
    ran = run_cli(
        "lab", "cs180", "--year", "2024", "-m", run, "-o", out, "--json", *(w for n in names for w in ("--only", n))
    )
    assert ran.code == 0, ran.stderr
    found = {one["name"]: one for one in json.loads(ran.stdout)["sections"]}
    assert [found[name]["made"] for name in names] == [False, False, True]
    assert "unconditional" in found["guidance"]["why"]
    assert "unconditional" in out.read_text()
    assert "(not made)" in out.read_text()


def test_a_flow_is_not_converted_and_a_model_of_pictures_is(folders: dict[str, Path]) -> None:
    for model, said in ((str(folders["flow"]), False), ("tiny", True)):
        outcomes = planned(lab_of("cs180", 2026, model=model), sections("cs180", 2026))
        notes = {one.section.name: " ".join(one.plan.notes) for one in outcomes if one.plan}
        assert ("and no velocity" in notes["velocity"]) is said
        assert ("and no velocity" in notes["sampling"]) is said


def test_guidance_of_2026_is_one_more_here() -> None:
    for year, scale in ((2025, "7.0"), (2026, "8.0")):
        found = [
            one for one in planned(lab_of("cs180", year), sections("cs180", year)) if one.section.name == "guidance"
        ]
        assert f"--guidance {scale}" in found[0].plan.pieces[1].line  # type: ignore[union-attr]


def _plans(year: int, **asked: Any) -> dict[str, Plan]:
    outcomes = planned(lab_of("cs180", year, **asked), sections("cs180", year))
    return {one.section.name: one.plan for one in outcomes if one.plan}


@pytest.mark.parametrize(("year", "scale"), [(2024, "7.0"), (2026, "8.0")])
def test_pictures_of_ones_own_are_changed_with_the_course_s_guidance(
    year: int, scale: str, folders: dict[str, Path]
) -> None:
    plans = _plans(year, model=str(folders["if"]))
    for name in ("sdedit", "text-sdedit"):
        lines = [piece.line for piece in plans[name].pieces]
        assert lines
        assert all(f"--guidance {scale}" in line for line in lines)


@pytest.mark.parametrize("family", ["if", "tiny"])
def test_six_different_pictures_are_changed(family: str, folders: dict[str, Path]) -> None:
    pieces = _plans(2026, model=str(folders.get(family, family)))["sdedit"].pieces
    assert len({piece.job.image for piece in pieces if isinstance(piece, Drawing)}) == len(pieces) == 6  # type: ignore[attr-defined]


def test_what_is_said_of_hybrids_and_seams_is_true_of_the_model(folders: dict[str, Path]) -> None:
    for model, small, mended in (("tiny", True, True), ("if", False, True), ("sd", False, False)):
        plans = _plans(2026, model=str(folders.get(model, model)))
        notes = {name: " ".join(plans[name].notes) for name in ("hybrids", "inpaint")}
        assert ("split is sigma 6" in notes["hybrids"]) is small
        assert ("resampling mends them" in notes["inpaint"]) is mended
        lines = [piece.line for piece in plans["inpaint"].pieces]
        assert all(("--resample" in line) is mended for line in lines)


def test_prompts_of_ones_own_are_drawn(tmp_path: Path) -> None:
    lab = lab_of("cs180", 2024, prompts=("a blue star", "the letter Q"))
    lines = " ".join(
        piece.line for one in planned(lab, sections("cs180", 2024)) if one.plan for piece in one.plan.pieces
    )
    assert "'a blue star'" in lines
    assert "'the letter Q'" in lines
    assert "a red heart" not in lines


BAD: list[tuple[list[str], int, str]] = [
    (["cs181"], 2, "unknown course"),
    (["cs180"], 2, "--year"),
    (["cs180", "--year", "2023"], 2, "2024, 2025, 2026"),
    (["hf-course", "--year", "2024"], 2, "has no years"),
    (["cs180", "--year", "2024", "--only", "forwards"], 2, "forward"),
    (["cs180", "--year", "2024", "--image", "none.png"], 3, "none.png"),
    (["cs180", "--year", "2024", "--image", "text.png"], 3, "text.png"),
    (["cs180", "--year", "2024", "--prompts", "a red heart"], 2, "--prompt"),
    (["cs180", "--year", "2024", "--out", "report.pdf"], 2, "HTML"),
    (["cs180", "--year", "2024", "--out", "file/report.html"], 2, "file"),
    (["cs180", "--year", "2024", "--device", "tpu"], 2, "tpu"),
    (["cs180", "--year", "2024", "--model", "./nowhere"], 4, "nowhere"),
    (["keras-ddim", "--data", "./nowhere", "--only", "train"], 3, "nowhere"),
]


@pytest.mark.parametrize(("words", "code", "said"), BAD)
def test_what_is_wrong_is_said_before_a_model_is_loaded(
    words: list[str], code: int, said: str, run_cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr("diffkit.jobs.run.load_opened", lambda *_: pytest.fail("weights were read"))
    ran = run_cli("lab", *words)
    assert ran.code == code, ran.stderr
    assert said in ran.stderr
    assert len(ran.stderr.strip().splitlines()) <= 3
    assert not list(tmp_path.rglob("*.html"))


def test_unhandled_errors_go_through(tmp_path: Path) -> None:
    def bug() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        report(lab_of("cs180", 2024), [_made_up("one", 0, bug)], tmp_path / "r.html", Bench())
    assert not (tmp_path / "r.html").exists()


def test_a_refusal_is_no_error(tmp_path: Path) -> None:
    @section("none", "None", asks="Nothing.", source="nobody")
    def plan(lab: Lab) -> Plan:
        raise Cannot("there is nothing to do")

    done, code = report(lab_of("cs180", 2024), [plan], tmp_path / "r.html", Bench())
    assert (code, done.payload["sections"][0]["why"]) == (0, "there is nothing to do")
    assert runs.chosen([plan], ()) == [plan]


def test_formulas_are_set_above_and_below_the_line() -> None:
    assert formula("x_{t'} < y^{−1} | z") == "x<sub>t'</sub> &lt; y<sup>−1</sup><br>z"


@pytest.mark.parametrize("family", ["plain", "classes", "flow", "sd", "if"])
@pytest.mark.parametrize(("course", "year"), [("cs180", 2025), ("cs180", 2026), ("hf-course", None)])
def test_every_family_is_planned(course: str, year: int | None, family: str, folders: dict[str, Path]) -> None:
    """What a model cannot do is said, and the rest is planned; the words are those it takes."""
    outcomes = planned(lab_of(course, year, model=str(folders[family])), sections(course, year))
    made = {one.section.name for one in outcomes if one.plan}
    assert made & {"forward", "1.1-noise"}
    if course == "cs180":
        told = {"guidance", "anagrams", "hybrids", "text-sdedit"}
        assert told <= made or family == "plain", [(one.section.name, one.why) for one in outcomes if one.why]
        assert ("velocity" in made) is (year == 2026 and family != "sd")
