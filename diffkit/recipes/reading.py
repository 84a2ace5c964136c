"""Recipes by name or path: the layers that make one, and the errors of a wrong one.

The order is flags, environment, recipe file, defaults. What a recipe can say is `schema.py`; how YAML is read is
`strict_yaml.py`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from diffkit.errors import UsageError, did_you_mean
from diffkit.recipes import strict_yaml
from diffkit.recipes.schema import FREE_FIELDS, Recipe, with_dependent_defaults

__all__ = ["DEFAULT", "Recipe", "differences", "dump_yaml", "find_recipe", "load_recipe", "read_header", "recipe_names"]

DEFAULT = "digits"
_PREFIX = "DIFFKIT_"
_SECTIONS = [name for name, info in Recipe.model_fields.items() if isinstance(info.default_factory, type)]
# Of these pairs a recipe may give one; the layer that is nearer to the user wins over the other field, too.
_EXCLUSIVE = [(("training", "steps"), ("training", "epochs"))]

# What other trainers call these fields.
_HABITS = {
    "learning_rate": "training.lr", "max_train_steps": "training.steps", "num_epochs": "training.epochs",
    "num_train_epochs": "training.epochs", "train_batch_size": "training.batch_size", "use_ema": "training.ema",
    "lr_scheduler": "training.lr_schedule", "lr_warmup_steps": "training.warmup_steps",
    "gradient_accumulation_steps": "training.gradient_accumulation", "max_grad_norm": "training.clip",
    "num_train_timesteps": "noise.timesteps", "beta_schedule": "noise.schedule", "prediction_type": "noise.prediction",
    "dataset_name": "dataset.name", "output_dir": "output.dir", "image_size": "dataset.resolution",
    "caption_dropout": "training.class_dropout",
}  # fmt: skip

Path_ = tuple[str, ...]


@dataclass
class _Layers:
    """The values so far, and where each came from."""

    data: dict[str, Any] = field(default_factory=dict)
    origin: dict[Path_, str] = field(default_factory=dict)
    layer: dict[Path_, int] = field(default_factory=dict)
    shipped: bool = False  # the recipe file is one that comes with diffkit

    def put(self, path: Path_, value: Any, origin: str, layer: int) -> None:
        if isinstance(value, Mapping) and value and _is_section(path):
            for key, item in value.items():
                self.put((*path, key), item, origin, layer)
            return
        if path == ("model", "pretrained") and layer > _FILE and self.shipped:
            self._another_source(value)
        target = self.data
        for i, key in enumerate(path[:-1]):
            below = target.setdefault(key, {})
            if not isinstance(below, dict):
                raise UsageError(f"{origin}: {'.'.join(path[: i + 1])} is a value, not a section")
            target = below
        target[path[-1]] = value
        self.origin[path], self.layer[path] = origin, layer
        for pair in _EXCLUSIVE:
            if path in pair and value is not None:
                other = pair[1 - pair.index(path)]
                if self.layer.get(other, layer) < layer:
                    target.pop(other[-1], None)
        if path == ("model", "text") and value not in (None, "none"):  # the recipe below was for another network
            for name in ("preset", "class_conditioning"):
                if self.layer.get(("model", name), layer) < layer:
                    target.pop(name, None)

    def _another_source(self, value: Any) -> None:
        """Forget a recipe's size, which suits the network that it starts from itself."""
        size = ("dataset", "resolution")
        if self.layer.get(size) == _FILE and value not in (None, self.data.get("model", {}).get("pretrained")):
            del self.data[size[0]][size[1]], self.layer[size]


_FILE, _ENVIRONMENT, _FLAG = range(3)


def recipe_folder() -> Path:
    """Return the folder of the recipes that come with diffkit: inside the wheel, or the checkout's `recipes/`."""
    here = Path(__file__).resolve().parent.parent
    packaged = here / "_recipes"
    return packaged if packaged.is_dir() else here.parent / "recipes"


def recipe_names() -> list[str]:
    """Return the names that `load_recipe` takes, sorted, the default first."""
    names = sorted(path.stem for path in recipe_folder().glob("*.yaml"))
    return sorted(names, key=lambda name: name != DEFAULT)


def find_recipe(name_or_path: str | os.PathLike[str]) -> Path:
    """Return the file of a recipe name, or the path itself where it is one.

    Raises:
        UsageError: There is no recipe of that name.
    """
    text = os.fspath(name_or_path)
    if text.endswith((".yaml", ".yml")) or "/" in text or os.sep in text:
        return Path(text).expanduser()
    if text in recipe_names():
        return recipe_folder() / f"{text}.yaml"
    raise UsageError(f"unknown recipe {text!r}", did_you_mean(text, recipe_names()))


def load_recipe(
    name_or_path: str | os.PathLike[str] | None = None,
    *,
    sets: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Recipe:
    """Read a recipe and lay the environment and the flags over it.

    Where another network to start from is named than that of a recipe that comes with diffkit, the recipe's
    `dataset.resolution` does not count: it is left out, and training takes the size of that network.

    Args:
        name_or_path: A name of `recipe_names()`, a YAML file, or None for the default recipe.
        sets: `dotted.path=value` strings, the value a YAML scalar or list; they win over everything.
        flags: Values by dotted path, for example {"training.lr": 2e-4}; None means that the flag was not given.
        environ: Where `DIFFKIT_TRAINING__LR=2e-4` is looked up; the process's environment when left out.

    Raises:
        UsageError: An unknown recipe or field, a value of the wrong type, or fields that contradict each other.
    """
    path = find_recipe(DEFAULT if name_or_path is None else name_or_path)
    document = strict_yaml.read(path)
    layers = _Layers({"name": path.stem}, shipped=path.parent == recipe_folder())
    for key, value, line in _leaves(document):
        layers.put(key, value, f"{document.source}:{line}", _FILE)
    for name, text in sorted((os.environ if environ is None else environ).items()):
        key = tuple(name.removeprefix(_PREFIX).lower().split("__"))
        if name.startswith(_PREFIX) and len(key) > 1 and key[0] in _SECTIONS:
            layers.put(key, _typed(key, text, name), name, _ENVIRONMENT)
    for dotted, value in (flags or {}).items():
        if value is not None:
            layers.put(tuple(dotted.split(".")), _jsonable(value), f"`{dotted}`", _FLAG)
    for item in sets:
        dotted, equals, text = item.partition("=")
        if not equals or not dotted.strip():
            raise UsageError(f"`set` {item!r} is not of the form dotted.path=value", "For example: `training.lr=2e-4`.")
        key = tuple(part.strip() for part in dotted.split("."))
        layers.put(key, _typed(key, text, f"`set` {dotted}"), f"`set` {dotted}", _FLAG)
    return _validate(layers, document.source)


def dump_yaml(recipe: Recipe) -> str:
    """Return the whole recipe, defaults included, as YAML that `load_recipe` reads back equal."""
    return strict_yaml.dump(recipe.model_dump(mode="json"))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return what differs between two dumped recipes, as "field: old -> new", except for `schema.FREE_FIELDS`."""
    before, after = dict(_flat(old)), dict(_flat(new))
    # A field that one side does not know yet (an older version wrote it) has its default there.
    defaults = dict(_flat(Recipe().model_dump(mode="json")))
    lines = []
    for name in sorted({*before, *after} - FREE_FIELDS):
        a, b = before.get(name, defaults.get(name)), after.get(name, defaults.get(name))
        if a != b:
            lines.append(f"{name}: {a!r} -> {b!r}")
    return lines


def read_header(path: Path) -> dict[str, str]:
    """Return the `key: value` lines of the comment that a recipe file begins with (`run`, `expected`, `measured`)."""
    header: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        key, colon, value = line.lstrip("# ").partition(":")
        if colon and key.isidentifier():
            header[key] = value.strip()
    return header


def _leaves(document: strict_yaml.Document) -> Iterator[tuple[Path_, Any, int]]:
    def walk(path: Path_, value: Any) -> Iterator[tuple[Path_, Any, int]]:
        if isinstance(value, dict) and _is_section(path):
            for key, below in value.items():
                yield from walk((*path, key), below)
            # An empty section (or one given as null) says nothing.
        elif not (value is None and path and _is_section(path)):
            yield path, value, document.lines.get(path, 1)

    return walk((), document.data)


def _is_section(path: Path_) -> bool:
    return not path or (path[0] in _SECTIONS and (len(path) == 1 or _is_mapping(path)))


def _is_mapping(path: Path_) -> bool:
    """Whether the field takes any keys (`model.overrides`), so that one of them can be set alone."""
    info = _field(path)
    return len(path) == 2 and info is not None and info.annotation == dict[str, Any]


def _field(path: Path_) -> Any:
    model: type[BaseModel] = Recipe
    info = None
    for i, key in enumerate(path):
        info = model.model_fields.get(key)
        if info is None:
            return None
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            model = info.annotation
        elif i < len(path) - 1:
            return None
    return info


def _typed(path: Path_, text: str, origin: str) -> Any:
    """Parse a value from the command line; a field that takes text takes `2024` as text."""
    value = strict_yaml.value(text, origin)
    info = _field(path)
    kinds = get_args(info.annotation) or (info.annotation,) if info is not None else ()
    if str in kinds and isinstance(value, (int, float)):
        return text.strip()
    return value


def _jsonable(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return list(value) if isinstance(value, tuple) else value


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, Mapping) and f"{prefix}{key}" in _SECTIONS:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _validate(layers: _Layers, source: str) -> Recipe:
    try:
        # By JSON and strictly: "on" is then no boolean and "12" no number, while a list still makes a tuple.
        return Recipe.model_validate_json(json.dumps(with_dependent_defaults(layers.data), default=str), strict=True)
    except ValidationError as error:
        problems = [_explain(item, layers, source) for item in error.errors(include_url=False)]
        hint = next((hint for _, hint in problems if hint), "")
        raise UsageError("\n".join(message for message, _ in problems[:10]), hint) from None


def _explain(item: Any, layers: _Layers, source: str) -> tuple[str, str]:
    """Turn one of pydantic's errors into a line and a hint."""
    path = tuple(str(part) for part in item["loc"])
    dotted = ".".join(path)
    origin = next((layers.origin[path[:n]] for n in range(len(path), 0, -1) if path[:n] in layers.origin), source)
    if item["type"] == "extra_forbidden":
        parent = _field(path[:-1])
        model = Recipe if parent is None else parent.annotation
        hint = _elsewhere(path[-1]) or did_you_mean(path[-1], model.model_fields)
        return f"{origin}: unknown key {dotted!r}", hint
    if item["type"] == "value_error":
        return f"{source}: {item['ctx']['error']}", ""
    text = item["msg"][0].lower() + item["msg"][1:]
    text = text.replace("input should be", "must be").replace("valid boolean", "boolean: true or false")
    shown = repr(item["input"])
    return f"{origin}: {dotted} is {shown if len(shown) < 80 else shown[:77] + '...'}; it {text}", ""


def _elsewhere(key: str) -> str:
    """Name the field that has this key in another section, or by another name."""
    if key in _HABITS:
        return f"Did you mean {_HABITS[key]!r}?"
    for section in _SECTIONS:
        if key in _field((section,)).annotation.model_fields:
            return f"Did you mean {f'{section}.{key}'!r}?"
    return ""
