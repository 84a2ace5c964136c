"""What the documents say: every command has a page, and every command line and every Python example of them works.

Picture commands of the texts are tried by `--dry-run` on small stand-ins that bear the names of the real models.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from PIL import Image

from diffkit.jobs import job_class, summaries
from diffkit.jobs.base import PictureJob, build

ROOT = Path(__file__).resolve().parents[1]
CLIP = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
INPUTS = ROOT / "tests" / "fixtures" / "inputs"


def script(name: str) -> ModuleType:
    """A script that makes pages, beside which the others lie; mkdocs need not be there."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MADE, PARTS = script("commands"), script("parts")
COMMANDS = MADE.commands()
PAGES = MADE.pages()
DOCUMENTS = MADE.documents()
# Every command line of the texts, once, with the first text that has it.
LINES = {line: path for path, text in reversed(DOCUMENTS.items()) for line in reversed(MADE.command_lines(text))}
BLOCKS = [(path, k) for path, text in DOCUMENTS.items() for k in range(len(MADE.blocks(text, "python")))]


# --- the pages of the commands


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_a_page_with_all_its_options(name: str) -> None:
    page = PAGES[f"commands/{name}.md"]
    for words, command in MADE.leaves(name, COMMANDS[name]):
        for param in command.params:
            for flag in (*param.opts, *param.secondary_opts) if param.param_type_name == "option" else ():
                assert f"`{flag}`" in page, (words, flag)
            assert MADE.linked(param.help).rstrip(".") in page, (words, param.name)


@pytest.mark.parametrize("name", summaries())
def test_a_job_has_its_fields_on_its_page(name: str) -> None:
    page, job = PAGES[f"commands/{name}.md"], job_class(name)
    for key, field in job.model_fields.items():
        assert MADE.linked(field.description) in page, key
        if field.default not in (None, False, (), ""):
            assert f"Default: `{field.default}`." in page, key
    assert job.name in COMMANDS


def test_the_list_of_commands_is_whole() -> None:
    assert set(re.findall(r"\]\((\w[\w-]*)\.md\)", PAGES["commands/index.md"])) == set(COMMANDS)


def test_the_tables_are_filled_in() -> None:
    from diffkit.models import FAMILIES

    marked = {path: PARTS.filled(text) for path, text in DOCUMENTS.items() if "<!--" in text}
    assert set(marked) == {"docs/architecture.md", "docs/index.md", "docs/models.md"}
    for path, text in marked.items():
        assert "<!--" not in text, path
    for family, classes in FAMILIES.items():
        assert re.search(rf"\| `{family}` \| .+ \| .*`{classes[0]}`", marked["docs/models.md"])


@pytest.mark.parametrize("path", DOCUMENTS)
def test_what_a_text_points_to_is_there(path: str) -> None:
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[\w-]+)?\)", DOCUMENTS[path]):
        made = target.startswith("commands/") and target in PAGES
        assert made or ((ROOT / path).parent / target).exists(), target


def test_the_site_builds(tmp_path: Path) -> None:
    """Without a network, and nothing of what is written asks for one."""
    pytest.importorskip("material", reason="the extra `docs` is not installed")
    from mkdocs.commands.build import build as build_site
    from mkdocs.config import load_config

    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site"))
    config.plugins.on_startup(command="build", dirty=False)
    build_site(config)
    written = {file.relative_to(tmp_path / "site").as_posix(): file for file in (tmp_path / "site").rglob("*.html")}
    assert {f"commands/{name}.html" for name in COMMANDS} < set(written)
    for name, file in written.items():
        loaded = re.findall(r'<(?:script|link|img)[^>]* (?:src|href)="(https?:[^"]+)', file.read_text())
        assert not loaded, (name, loaded)


# --- command lines


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the texts name: pictures, a view, and small models under the names of real ones."""
    from transformers import CLIPConfig, CLIPModel

    from tests.models.conftest import clip_tokenizer, make_flat, make_if, make_sd, sd_parts, text_unet, write_index

    place = tmp_path_factory.mktemp("documents")
    for name in ("demo", "digits", "mnist-class"):
        shutil.copytree(ROOT / "tests" / "fixtures" / "models" / "digits", place / "runs" / name)
    make_flat(place / "google" / "ddpm-celebahq-256")
    make_sd(place / "stable-diffusion-v1-5" / "stable-diffusion-v1-5")
    make_flat(place / "models" / "network")
    shutil.copytree(place / "models" / "network", place / "ddpm-model-64" / "checkpoint-500" / "unet_ema")
    for stage, name in ((1, "IF-I-M-v1.0"), (2, "IF-II-M-v1.0")):
        make_if(place / "DeepFloyd" / name, stage)
        config = place / "DeepFloyd" / name / "unet" / "config.json"  # of the real sizes: weights are not read
        config.write_text(json.dumps(json.loads(config.read_text()) | {"sample_size": 4 ** (stage + 2)}))
    upscaler = place / "stabilityai" / "stable-diffusion-x4-upscaler"
    parts: dict[str, Any] = {**sd_parts(upscaler), "unet": text_unet(in_channels=7, num_class_embeds=50)}
    parts |= {"scheduler": DDIMScheduler(), "low_res_scheduler": DDPMScheduler()}
    write_index(upscaler, "StableDiffusionUpscalePipeline", parts)
    clip = place / "openai" / "clip-vit-large-patch14"
    clip_tokenizer(clip)
    CLIPModel(CLIPConfig(text_config=CLIP, vision_config=CLIP | {"image_size": 16, "patch_size": 8})).save_pretrained(
        clip
    )
    shutil.copytree(ROOT / "diffkit" / "assets" / "tiny", place / "runs" / "mine")
    shutil.copy(INPUTS / "drawing.png", place / "photo.png")
    shutil.copy(INPUTS / "mask.png", place / "mask.png")
    np.save(place / "mine.npy", np.arange(64 * 64)[::-1].reshape(64, 64))
    (place / "outputs").mkdir()
    for folder in ("pictures", "faces"):
        (place / folder).mkdir()
        Image.new("RGB", (32, 32)).save(place / folder / "one.png")
    return place


@pytest.fixture
def inside(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("DIFFKIT_CACHE", str(tmp_path / "cache"))
    return workplace


def parsed(words: list[str]) -> tuple[str, Any]:
    """The command that words name, and the values of its options."""
    name, command = words[0], COMMANDS[words[0]]
    words = words[1:]
    while hasattr(command, "commands"):
        name, command, words = f"{name} {words[0]}", command.commands[words[0]], words[1:]
    with command.make_context(name, words) as context:
        return name, context.params


@pytest.mark.parametrize("line", LINES)
def test_a_command_line_of_the_texts_is_right(line: str, inside: Path, run_cli: Callable[..., Any]) -> None:
    words = MADE.arguments(line)
    name, values = parsed(words)
    if name in ("train", "finetune"):
        from diffkit.recipes.reading import load_recipe

        load_recipe(values["recipe"], sets=values["set_"] or ())
    if name not in summaries():
        return
    job = job_class(name)
    if not issubclass(job, PictureJob):
        given = {key: value for key, value in values.items() if value is not None and key in job.model_fields}
        build(job, given)
        return
    ran = run_cli(*words, "--dry-run", "--json")
    assert ran.code == 0, ran.stdout
    assert json.loads(ran.stdout)["unet_calls"] > 0


@pytest.mark.parametrize("path", DOCUMENTS)
def test_commands_in_a_text_s_sentences_are_right(path: str) -> None:
    """Between backquotes; words in capitals stand for what a reader fills in."""
    prose = MADE.FENCE.sub("", DOCUMENTS[path])
    for said in re.findall(r"`diffkit ([^`]+)`", prose):
        words = said.split()
        assert words[0] in COMMANDS or words[0] in ("NAME", "COMMAND", "--help"), said
        if words[0] in COMMANDS and len(words) > 1 and "..." not in words:
            parsed(words)


# --- Python


@pytest.mark.parametrize(("path", "place"), [pair for pair in BLOCKS if pair[0] != "README.md"])
def test_a_python_example_runs(path: str, place: int, inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(MADE.blocks(DOCUMENTS[path], "python")[place], path, "exec"), {})


def test_the_first_example_draws_what_the_function_draws_and_changes_no_model(
    inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import diffkit

    loop, function = MADE.blocks(DOCUMENTS["README.md"], "python")
    assert sum(bool(line) for line in loop.splitlines()) <= 12
    assert "range(4)" in loop
    assert "n=4" in function
    # The first picture of four is the one that is drawn alone.
    loop, function = loop.replace("range(4)", "range(1)"), function.replace("n=4", "n=1")
    one: dict[str, Any] = {}
    other: dict[str, Any] = {}
    exec(loop, one)
    exec(function, other)
    used, fresh = one["model"].scheduler, diffkit.load("tiny").scheduler
    assert used.config == fresh.config
    assert used.timesteps.equal(fresh.timesteps)
    assert used.num_inference_steps is fresh.num_inference_steps is None
    assert [picture.tobytes() for picture in one["pictures"]] == [picture.tobytes() for picture in other["pictures"]]


# --- what the page on the architecture adds


def added(path: str) -> str:
    """The lines that a diff of the page adds to a file."""
    (block,) = (text for text in MADE.blocks(DOCUMENTS["docs/architecture.md"], "diff") if f"+++ b/{path}" in text)
    return "\n".join(line[1:] for line in block.splitlines() if line.startswith("+") and not line.startswith("+++"))


def test_the_view_of_the_page_is_a_view() -> None:
    from diffkit.illusions.views import VIEWS, check_view, rows

    names = set(VIEWS)
    try:
        exec(added("diffkit/illusions/views/rows.py"), vars(rows).copy())
        (name,) = set(VIEWS) - names
        view = VIEWS.parse(name)
        assert check_view(view, 16).ok
        assert view.frame(Image.open(INPUTS / "drawing.png"), 0.5).size == Image.open(INPUTS / "drawing.png").size
    finally:
        for name in set(VIEWS) - names:
            del VIEWS._rows[name]


def test_the_filter_of_the_page_sums_to_the_picture() -> None:
    from diffkit.illusions import filters

    names = set(filters.FILTERS)
    try:
        exec(added("diffkit/illusions/filters.py"), vars(filters).copy())
        (name,) = set(filters.FILTERS) - names
        split, x = filters.parse_filter(name), torch.randn(2, 3, 8, 8)
        parts = [split.part(x, k) for k in range(split.parts)]
        torch.testing.assert_close(sum(parts), x)
        assert all(part.any() for part in parts)
    finally:
        for name in set(filters.FILTERS) - names:
            del filters.FILTERS._rows[name]


def test_the_job_of_the_page_draws(tmp_path: Path) -> None:
    from diffkit.jobs.options import Run
    from diffkit.jobs.run import run

    module = sys.modules["diffkit.jobs.blend"] = ModuleType("diffkit.jobs.blend")
    try:
        exec(added("diffkit/jobs/blend.py"), vars(module))
        given = {"prompt": "the letter X", "other": "a red heart", "steps": 2, "share": 0.25, "model": "tiny"}
        one, other = (run(module.Blend, {**given, "share": share}, Run(files=False)) for share in (0.25, 1.0))
    finally:
        del sys.modules["diffkit.jobs.blend"]
    assert one.pictures[0].tobytes() != other.pictures[0].tobytes()
    assert one.pictures[0].info["diffkit"]["arguments"]["share"] == 0.25


def test_the_family_of_the_page_is_the_real_one() -> None:
    text = PARTS.family_diff()
    assert '+    "dit": ("DiTPipeline",),' in text.splitlines()
    real = (ROOT / "diffkit" / "models" / "dit.py").read_text().splitlines()
    for part in ("class DiT(BaseModel):", "def info(repo: Repo) -> ModelInfo:", "def load("):
        assert f"+{next(line for line in real if line.startswith(part))}" in text
