"""What holds for every command: no heavy import for help, the common options, exit codes, secrets."""

from __future__ import annotations

import errno
import json
import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from diffkit import errors
from diffkit.cli import make_app, runner
from diffkit.cli.foreign import translate
from diffkit.jobs import summaries

# Not pydantic: typer itself brings it, from some version on.
HEAVY = ["torch", "diffusers", "transformers", "accelerate", "datasets", "huggingface_hub", "numpy", "PIL"]
HEAVY += ["matplotlib", "sklearn", "safetensors", "yaml"]

HELP_OF_EVERYTHING = """
import contextlib, io, json, sys
from diffkit.cli import main, make_app
import typer

def words(group, path):
    for name, command in group.commands.items():
        yield [*path, name]
        if hasattr(command, "commands"):
            yield from words(command, [*path, name])

count = 0
for path in [[], *words(typer.main.get_command(make_app()), [])]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            main([*path, "--help"])
        except SystemExit as left:
            assert left.code == 0, (path, left.code)
    assert "Usage" in out.getvalue(), path
    count += 1
print(json.dumps({"count": count, "modules": sorted({name.partition(".")[0] for name in sys.modules})}))
"""


def test_help_of_every_command_imports_nothing_heavy() -> None:
    ran = subprocess.run([sys.executable, "-c", HELP_OF_EVERYTHING], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    seen = json.loads(ran.stdout.splitlines()[-1])
    assert seen["count"] > 4
    assert not set(HEAVY) & set(seen["modules"])


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, diffkit; dir(diffkit); print(sorted({m.partition('.')[0] for m in sys.modules}))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(HEAVY) & set(eval(ran.stdout))


def test_python_m_diffkit_is_the_same_program() -> None:
    ran = subprocess.run([sys.executable, "-m", "diffkit", "--version"], capture_output=True, text=True, check=True)
    from diffkit import __version__

    assert ran.stdout.strip() == f"diffkit {__version__}"


def test_every_command_has_the_common_options_and_a_help_text(words: tuple[str, ...], registered: Any) -> None:
    names = {option for param in registered.params for option in param.opts}
    assert names >= {"--json", "--quiet", "-q", "--debug", "--offline"}
    assert registered.help
    for param in registered.params:
        if param.param_type_name == "option":
            assert param.help, param.name


def test_every_command_refuses_an_unknown_option_as_json(words: tuple[str, ...], registered: Any, run_cli: Any) -> None:
    ran = run_cli(*words, "--no-such-option", "--json")
    assert ran.code == 2
    error = json.loads(ran.stdout)["error"]
    assert error["code"] == 2
    assert "--no-such-option" in error["message"]
    assert ran.stderr == ""


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch, run_cli: Any) -> Any:
    """`probe(body, *args)` runs a body as a command, through the whole of `main`."""

    def run(body: Any, *args: str) -> Any:
        small = typer.Typer(pretty_exceptions_enable=False)
        runner.command(small, "probe")(body)
        small.callback()(lambda: None)
        monkeypatch.setattr("diffkit.cli.app.make_app", lambda *_: small)
        return run_cli("probe", *args)

    return run


def raising(error: BaseException) -> Any:
    def body() -> runner.Output:
        raise error

    return body


class TestOutput:
    def test_lines_for_people_and_one_object_for_machines(self, probe: Any) -> None:
        def body() -> runner.Output:
            print("a library's chatter")  # must not spoil the object
            return runner.Output({"loss": float("nan"), "paths": (Path("é"),), "n": {1: float("inf")}}, ["done"])

        assert probe(body).stdout == "a library's chatter\ndone\n"
        ran = probe(body, "--json")
        assert json.loads(ran.stdout) == {"loss": None, "paths": ["é"], "n": {"1": None}}
        assert ran.stderr == "a library's chatter\n"
        assert ran.code == 0

    def test_notices_go_to_stderr_and_quiet_silences_them(self, probe: Any) -> None:
        def body() -> runner.Output:
            logging.getLogger("diffkit.data").info("a notice")
            logging.getLogger("diffkit.data").warning("a warning")
            return runner.Output({}, ["result"])

        assert probe(body) == (0, "result\n", "a notice\na warning\n")
        assert probe(body, "--quiet") == (0, "result\n", "a warning\n")

    def test_of_a_launchers_processes_the_first_speaks(self, probe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        def body() -> runner.Output:
            logging.getLogger("diffkit").info("a notice")
            return runner.Output({}, ["result"])

        monkeypatch.setenv("RANK", "1")
        assert probe(body) == (0, "", "")
        failed = probe(raising(errors.DataError("bad")), "--json")
        assert (failed.code, failed.stdout, failed.stderr) == (3, "", "error: bad\n")

    def test_offline_is_set_before_the_body_runs(self, probe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        import os

        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")

        def body() -> runner.Output:
            return runner.Output({name: os.environ.get(name) for name in names})

        assert json.loads(probe(body, "--offline", "--json").stdout) == dict.fromkeys(names, "1")

    def test_a_reader_that_leaves_is_no_error(self) -> None:
        code = "import sys; from diffkit.cli import main; main(['recipe', 'schema'])"
        ran = subprocess.run(
            ["bash", "-c", f'set -o pipefail; {sys.executable} -c "{code}" | head -1'],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, "{\n", "")


class TestErrors:
    @pytest.mark.parametrize(
        ("error", "code", "message"),
        [
            (errors.UsageError("wrong", "Do this."), 2, "error: wrong\n  Do this.\n"),
            (errors.DataError("bad"), 3, "error: bad\n"),
            (errors.BusyError("held"), 7, "error: held\n"),
            (errors.Terminated("stopped by SIGTERM", 143), 143, "error: stopped by SIGTERM\n"),
            (KeyboardInterrupt(), 130, "error: stopped by Ctrl-C\n"),
            (MemoryError(), 5, "error: out of memory: MemoryError"),
            (
                RuntimeError("[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory"),
                5,
                "out of memory",
            ),
            (OSError(errno.ENOSPC, "No space left on device", "/x"), 5, "the disk is full"),
            (OSError(errno.EDQUOT, "Disk quota exceeded"), 5, "the disk is full"),
            (RuntimeError("PytorchStreamWriter failed: No space left on device"), 5, "the disk is full"),
            (NotADirectoryError(errno.ENOTDIR, "Not a directory", "a/b"), 2, "cannot use 'a/b': Not a directory"),
            (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 300), 2, "File name too long"),
            (OSError(errno.EROFS, "Read-only file system", "/ro"), 2, "cannot use '/ro': Read-only file system"),
            (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), 4, "Connection refused"),
            (ZeroDivisionError("division by zero"), 1, "error: ZeroDivisionError: division by zero"),
            (ValueError("line one\nline two"), 1, "error: ValueError: line one line two\n"),
        ],
    )
    def test_every_error_is_one_line_with_its_exit_code(
        self, probe: Any, error: BaseException, code: int, message: str
    ) -> None:
        ran = probe(raising(error))
        assert ran.code == code
        assert message in ran.stderr
        assert "Traceback" not in ran.stderr
        assert ran.stdout == ""
        as_json = probe(raising(error), "--json")
        assert as_json.code == code
        assert json.loads(as_json.stdout)["error"]["code"] == code
        assert "Traceback" in probe(raising(error), "--debug").stderr

    def test_arguments_in_backquotes_are_printed_as_flags(self, probe: Any) -> None:
        error = errors.UsageError("`max_batch` 0 is below 1", "Leave `noise_level` out, or `hf download X`.")
        said = "error: --max-batch 0 is below 1\n  Leave --noise-level out, or `hf download X`.\n"
        assert probe(raising(error)) == (2, "", said)
        told = json.loads(probe(raising(error), "--json").stdout)["error"]
        assert (told["message"], told["hint"]) == tuple(line.strip() for line in said[7:].splitlines())

        def body() -> runner.Output:
            logging.getLogger("diffkit.engine").warning("`%s` has no effect", "guidance_interval")
            raise ValueError("`mu` must be passed")  # another library's argument is no flag of ours

        ran = probe(body)
        assert ran.stderr.startswith("--guidance-interval has no effect\n")
        assert "`mu` must be passed" in ran.stderr

    @pytest.mark.parametrize(
        ("text", "printed"),
        [
            ("`classes` and `label`", "--class and --class"),
            ("`weights`, `views`, `prompts`", "--weight, --view, --prompt"),
            ("`image` with `mask` and `num` 3", "IMAGE with MASK and --num 3"),
            ("`dataset.on_error=skip`, or `dataset.channels=3`", "--set dataset.on_error=skip, or --channels 3"),
            ("`output.dir` or `force_resume`", "--out or --force-resume"),
            ("`set` training.lr: no", "--set training.lr: no"),
            ("`training.batch_size`: it is 0", "--batch-size: it is 0"),
            *[(text, text) for text in ("run `make check`", "read `~/.cache`", "use `GridDDIM`")],
        ],
    )  # fmt: skip
    def test_flags_that_are_not_spelled_like_their_argument(self, text: str, printed: str) -> None:
        assert runner.flags(text) == printed

    @pytest.mark.parametrize(
        ("name", "hint"),
        [
            ("GatedRepoError", "licence"),
            ("RepositoryNotFoundError", "Check the name"),
            ("RevisionNotFoundError", "--revision"),
            ("LocalEntryNotFoundError", "hf download"),
            ("OfflineModeIsEnabled", "--offline"),
            ("RemoteEntryNotFoundError", "no such file"),
            ("HfHubHTTPError", "network"),
        ],
    )
    def test_the_hubs_errors_are_model_errors(self, name: str, hint: str) -> None:
        from huggingface_hub import errors as hub

        kind = getattr(hub, name)
        if issubclass(kind, hub.HfHubHTTPError):
            response: Any = SimpleNamespace(headers={}, status_code=403, request=SimpleNamespace(url="x"))
            error = kind("403 Client Error.\n\nCannot go on.", response=response)
        else:
            error = kind("cannot find it")
        known = translate(error)
        assert (type(known), known.exit_code) == (errors.ModelError, 4)
        assert hint in known.hint
        assert "\n" not in known.message
        wrapped = OSError("We could not load it")
        wrapped.__cause__ = error
        assert translate(wrapped).exit_code == 4

    def test_torch_and_safetensors_errors(self) -> None:
        import torch
        from safetensors import SafetensorError

        assert translate(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")).exit_code == 5
        full = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        assert translate(full).exit_code == 5
        assert translate(SafetensorError("invalid header")).exit_code == 1

    def test_a_real_full_disk(self, probe: Any) -> None:
        if not Path("/dev/full").exists():
            pytest.skip("no /dev/full here")

        def body() -> runner.Output:
            with open("/dev/full", "wb") as file:
                file.write(b"x" * 100_000)
            return runner.Output()

        assert probe(body).code == 5

    def test_usage_errors_of_the_parser(self, run_cli: Any) -> None:
        ran = run_cli("recipe", "shwo")
        assert (ran.code, ran.stdout) == (2, "")
        assert ran.stderr.startswith("error: No such command 'shwo'. Did you mean 'show'?\n")
        assert "`diffkit recipe --help`" in ran.stderr
        assert json.loads(run_cli("recipe", "--json").stdout)["error"]["code"] == 2
        assert run_cli("env", "--", "--json").stdout == ""  # after --, it is no option

    def test_no_arguments_show_the_help(self, run_cli: Any) -> None:
        ran = run_cli()
        assert "Usage" in ran.stderr + ran.stdout


TOKEN = "hf_" + "Sup3rS3cr3tT0kenValue" * 2
OTHER = "not-of-any-known-form-1234"


class TestSecrets:
    @pytest.fixture(autouse=True)
    def _secrets(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("WANDB_API_KEY", OTHER)
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", "sometimes")

    @pytest.mark.parametrize("flags", [[], ["--json"], ["--debug"], ["--json", "--debug"]])
    def test_they_are_nowhere(self, probe: Any, flags: list[str]) -> None:
        text = f"https://user:{OTHER}@host/x?token={TOKEN} Authorization: Bearer {TOKEN} {OTHER}"

        def noisy() -> runner.Output:
            logging.getLogger("diffkit.models").warning("asking with %s", text)
            return runner.Output({"note": text}, [text])

        def failing() -> runner.Output:
            try:
                raise OSError(text)
            except OSError as error:
                raise errors.ModelError(text, text) from error

        def broken() -> runner.Output:
            raise ValueError(text)

        for body in (noisy, failing, broken):
            ran = probe(body, *flags)
            assert TOKEN not in ran.stdout + ran.stderr
            assert OTHER not in ran.stdout + ran.stderr
            assert "[token]" in ran.stdout + ran.stderr

    def test_not_in_usage_errors_either(self, run_cli: Any) -> None:
        for args in (
            ["recipe", "show", TOKEN],
            ["recipe", "show", "--set", f"output.{TOKEN}=1"],
            ["recipe", f"--{TOKEN}"],
        ):
            for flags in ([], ["--json"], ["--debug"]):
                ran = run_cli(*args, *flags)
                assert ran.code == 2
                assert TOKEN not in ran.stdout + ran.stderr

    def test_a_token_of_the_hub_is_known_without_the_environment(self) -> None:
        assert runner.redact("x hf_abcdefghijklmnopqrstuv y") == "x [token] y"
        assert runner.redact("Bearer abcdefgh12345678") == "Bearer [token]"
        assert runner.redact("sometimes hf_hub_download fails") == "sometimes hf_hub_download fails"


def test_the_app_is_whole() -> None:
    app = make_app()
    names = {command.name for command in app.registered_commands} | {group.name for group in app.registered_groups}
    assert names >= {"env", "recipe", "replay", "schema", *summaries()}
