from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from diffkit.errors import UsageError
from diffkit.recipes.reading import (
    DEFAULT,
    Recipe,
    differences,
    dump_yaml,
    find_recipe,
    load_recipe,
    read_header,
    recipe_names,
)
from diffkit.recipes.schema import FREE_FIELDS

WANTED = {
    "digits",
    "mnist",
    "mnist-class",
    "mnist-one-step",
    "fashion-mnist-class",
    "butterflies",
    "celebahq-finetune",
    "cosine-ddim-1000",
}


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(text: str) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def fails(*args: Any, **kwargs: Any) -> UsageError:
    with pytest.raises(UsageError) as caught:
        load_recipe(*args, environ=kwargs.pop("environ", {}), **kwargs)
    return caught.value


class TestShipped:
    def test_all_are_there_and_the_default_comes_first(self) -> None:
        assert set(recipe_names()) >= WANTED
        assert recipe_names()[0] == DEFAULT

    @pytest.mark.parametrize("name", sorted(WANTED))
    def test_each_loads_and_says_how_to_run_it(self, name: str) -> None:
        recipe = load_recipe(name, environ={})
        assert recipe.name == name
        assert recipe.description.endswith(".")
        header = read_header(find_recipe(name))
        assert header["run"].startswith("diffkit train")
        assert header["expected"]
        assert header["measured"]

    @pytest.mark.parametrize("name", sorted(WANTED))
    def test_each_names_a_preset_an_objective_and_a_dataset_that_exist(self, name: str) -> None:
        from diffkit.data.datasets import DATASETS
        from diffkit.engine.schedules import SCHEDULES
        from diffkit.models.presets import unet_arguments
        from diffkit.training.objectives import OBJECTIVES

        recipe = load_recipe(name, environ={})
        unet_arguments(recipe.model.preset, recipe.model.overrides)
        assert recipe.noise.prediction in OBJECTIVES
        SCHEDULES.parse(recipe.noise.schedule)
        assert recipe.dataset.name in DATASETS or "/" in recipe.dataset.name

    @pytest.mark.parametrize("name", sorted(WANTED))
    def test_what_is_dumped_loads_equal(self, name: str, write: Any) -> None:
        recipe = load_recipe(name, environ={})
        assert load_recipe(write(dump_yaml(recipe)), environ={}) == recipe

    def test_no_name_is_the_default(self) -> None:
        assert load_recipe(environ={}) == load_recipe(DEFAULT, environ={})


class TestLayers:
    def test_flags_go_before_environment_before_file_before_defaults(self, write: Any) -> None:
        path = write("training: {lr: 1e-3, steps: 10}\n")
        environ = {
            "DIFFKIT_TRAINING__LR": "2e-3",
            "DIFFKIT_TRAINING__SEED": "7",
            "DIFFKIT_TEST_DATA": "/x",
            "HOME": "/",
        }
        assert load_recipe(path, environ={}).training.lr == 1e-3
        assert load_recipe(path, environ=environ).training.lr == 2e-3
        flagged = load_recipe(path, environ=environ, flags={"training.lr": 3e-3, "training.clip": None})
        assert (flagged.training.lr, flagged.training.seed, flagged.training.steps) == (3e-3, 7, 10)
        assert flagged.training.clip == 1.0
        assert (
            load_recipe(path, environ=environ, flags={"training.lr": 3e-3}, sets=["training.lr=4e-3"]).training.lr
            == 4e-3
        )

    def test_the_process_environment_is_the_default(self, write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DIFFKIT_TRAINING__BATCH_SIZE", "3")
        assert load_recipe(write("")).training.batch_size == 3

    def test_a_file_is_named_after_itself_unless_it_says_otherwise(self, write: Any) -> None:
        assert load_recipe(write(""), environ={}).name == "mine"
        assert load_recipe(write("name: other\n"), environ={}).name == "other"

    def test_a_nearer_layer_replaces_epochs_by_steps(self, write: Any) -> None:
        path = write("training: {epochs: 5}\n")
        training = load_recipe(path, environ={}, sets=["training.steps=9"]).training
        assert (training.steps, training.epochs) == (9, None)
        training = load_recipe(path, environ={"DIFFKIT_TRAINING__STEPS": "9"}, flags={"training.epochs": 2}).training
        assert (training.steps, training.epochs) == (None, 2)

    def test_one_layer_may_not_say_both(self, write: Any) -> None:
        assert "both set" in fails(write("training:\n  epochs: 5\n  steps: 2\n")).message
        assert "both set" in fails(write(""), sets=["training.steps=1", "training.epochs=1"]).message
        assert "both set" in fails(write(""), sets=["training.steps=1"], flags={"training.epochs": 1}).message

    def test_sets_take_lists_mappings_and_text_that_looks_like_something_else(self, write: Any) -> None:
        recipe = load_recipe(
            write("model: {overrides: {layers_per_block: 1}}\n"),
            environ={},
            sets=[
                "training.betas=[0.9, 0.95]",
                "output.report_to=[tensorboard]",
                "model.overrides.norm_num_groups=4",
                "dataset.background=#ff0000",
                "dataset.name=2024",
                "training.mixed_precision=no",
                "output.hub_id=null",
            ],
            flags={"output.dir": Path("runs") / "x"},
        )
        assert recipe.training.betas == (0.9, 0.95)
        assert recipe.output.report_to == ["tensorboard"]
        assert recipe.model.overrides == {"layers_per_block": 1, "norm_num_groups": 4}
        assert (recipe.dataset.background, recipe.dataset.name) == ("#ff0000", "2024")
        assert recipe.training.mixed_precision == "no"
        assert recipe.output.hub_id is None
        assert recipe.output.dir == str(Path("runs") / "x")

    def test_null_sections_say_nothing(self, write: Any) -> None:
        assert load_recipe(write("dataset:\ntraining:\n  steps: 3\n"), environ={}).training.steps == 3


class TestErrors:
    def test_an_unknown_key_has_its_line_and_the_nearest_key(self, write: Any) -> None:
        path = write("# head\ntraining:\n  steps: 3\n  batchsize: 4\n")
        error = fails(path)
        assert error.exit_code == 2
        assert error.message == f"{path}:4: unknown key 'training.batchsize'"
        assert error.hint == "Did you mean 'batch_size'?"

    @pytest.mark.parametrize(
        ("text", "hint"),
        [
            ("lr: 1e-4\n", "Did you mean 'training.lr'?"),
            ("training: {learning_rate: 1e-4}\n", "Did you mean 'training.lr'?"),
            ("model: {timesteps: 300}\n", "Did you mean 'noise.timesteps'?"),
            ("trainning: {lr: 1e-4}\n", "Did you mean 'training'?"),
        ],
    )
    def test_a_key_in_the_wrong_place_is_sent_to_the_right_one(self, write: Any, text: str, hint: str) -> None:
        error = fails(write(text))
        assert ":1: unknown key" in error.message
        assert error.hint == hint

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("training:\n  ema: on\n", ":2: training.ema is 'on'; it must be a boolean: true or false"),
            ("training:\n  ema: yes\n", ":2: training.ema is 'yes'; it must be a boolean"),
            ("training:\n  steps: ten\n", ":2: training.steps is 'ten'; it must be a valid integer"),
            ("training:\n  steps: 1.5\n", ":2: training.steps is 1.5; it must be a valid integer"),
            ("training:\n  steps: '10'\n", ":2: training.steps is '10'; it must be a valid integer"),
            ("training:\n  lr: -1\n", ":2: training.lr is -1; it must be greater than 0"),
            ("training:\n  betas: [0.9, 1]\n", ":2: training.betas.1 is 1; it must be less than 1"),
            (
                "training:\n  lr_schedule: cosin\n",
                ":2: training.lr_schedule is 'cosin'; it must be 'constant', 'linear'",
            ),
            ("dataset:\n  name: 7\n", ":2: dataset.name is 7; it must be a valid string"),
            ("dataset:\n  channels: 2\n", ":2: dataset.channels is 2; it must be 1 or 3"),
            ("dataset: 5\n", ":1: dataset is 5; it must be an object"),
        ],
    )
    def test_a_wrong_value_names_field_value_and_what_is_allowed(self, write: Any, text: str, message: str) -> None:
        assert message in fails(write(text)).message

    def test_every_problem_gets_its_own_line(self, write: Any) -> None:
        lines = fails(write("training:\n  lr: 0\n  clip: x\nextra: 1\n")).message.splitlines()
        assert [line.rpartition("mine.yaml:")[2].split(":")[0] for line in lines] == ["2", "3", "4"]

    def test_environment_and_sets_are_named_as_the_place(self, write: Any) -> None:
        error = fails(write(""), environ={"DIFFKIT_TRAINING__LRR": "1"})
        assert error.message == "DIFFKIT_TRAINING__LRR: unknown key 'training.lrr'"
        assert fails(write(""), sets=["training.lr=nan"]).message.startswith("`set` training.lr: training.lr is 'nan'")
        assert fails(write(""), sets=["training.lr=.nan"]).message == "`set` training.lr: .nan is not a finite number"
        assert fails(write(""), sets=["training.lr=[1"]).message.startswith("`set` training.lr:")
        assert "dotted.path=value" in fails(write(""), sets=["training.lr"]).message
        assert "is a value, not a section" in fails(write(""), sets=["training=1", "training.lr=1"]).message
        assert fails(write(""), flags={"training.batch_size": 0}).message.startswith(
            "`training.batch_size`: training.batch_size is 0"
        )

    def test_unknown_recipes_name_the_nearest(self) -> None:
        error = fails("digit")
        assert (error.message, error.hint) == ("unknown recipe 'digit'", "Did you mean 'digits'?")
        assert "does not exist" in fails("./digits.yaml").message

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("dataset: {streaming: true}\n", "give training.steps"),
            ("dataset: {streaming: true}\ntraining: {epochs: 1}\n", "give training.steps"),
            ("training: {lr_schedule: plateau}\n", "set dataset.validation"),
            ("noise: {zero_terminal_snr: true}\n", "divides by zero at T"),
            ("noise: {snr_gamma: 5, prediction: flow}\n", "snr_gamma holds for"),
        ],
    )
    def test_fields_that_contradict_each_other(self, write: Any, text: str, message: str) -> None:
        assert message in fails(write(text)).message


class TestDifferences:
    def test_only_fields_that_change_the_result_count(self) -> None:
        old = load_recipe("digits", environ={})
        new = load_recipe(
            "digits", environ={}, sets=["training.lr=0.5", "training.log_every=99", "output.dir=elsewhere"]
        )
        lines = differences(old.model_dump(mode="json"), new.model_dump(mode="json"))
        assert lines == [f"training.lr: {old.training.lr} -> 0.5"]
        assert differences(old.model_dump(), old.model_dump()) == []

    def test_a_field_an_older_version_did_not_know_has_its_default(self) -> None:
        old = Recipe().model_dump(mode="json")
        del old["training"]["clip"]
        assert differences(old, Recipe().model_dump(mode="json")) == []
        assert differences(old, load_recipe_with_clip(3.0)) == ["training.clip: 1.0 -> 3.0"]

    def test_overrides_are_compared_as_a_whole(self) -> None:
        old, new = Recipe().model_dump(mode="json"), Recipe().model_dump(mode="json")
        new["model"]["overrides"] = {"layers_per_block": 1}
        assert differences(old, new) == ["model.overrides: {} -> {'layers_per_block': 1}"]

    def test_every_free_field_exists(self) -> None:
        fields = {f"{s}.{k}" for s, part in Recipe().model_dump().items() if isinstance(part, dict) for k in part}
        assert fields | {"name", "description"} >= FREE_FIELDS


def load_recipe_with_clip(value: float) -> dict[str, Any]:
    data = Recipe().model_dump(mode="json")
    data["training"]["clip"] = value
    return data


def test_every_field_is_described() -> None:
    schema = Recipe.model_json_schema()
    for section in [schema, *schema["$defs"].values()]:
        for name, described in section["properties"].items():
            assert "$ref" in described or described.get("description"), name


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Recipe().training.lr = 1.0  # type: ignore[misc]


def test_a_flag_for_captions_overrules_the_recipe_of_another_network() -> None:
    recipe = load_recipe("digits", sets=["model.text=t5"])
    assert (recipe.model.preset, recipe.model.class_conditioning) == ("if32", "none")
    assert recipe.noise.variance == "learned"
    assert load_recipe("digits", sets=["model.preset=tiny_if", "model.text=t5"]).model.preset == "tiny_if"
    assert load_recipe("digits", sets=["model.text=none"]).model.class_conditioning == "embedding"
    with pytest.raises(UsageError, match="both set"):
        load_recipe("digits", sets=["model.text=t5", "model.class_conditioning=embedding"])
