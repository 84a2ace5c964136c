"""Names of classes as a pipeline's model_index.json has them (`id2label`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffkit.models.configuration import wrong


def class_names(id2label: Any, count: int, where: str) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return one name per class, no two alike, and all further names, as the stock pipeline reads them.

    Args:
        id2label: Of model_index.json: by number, names with commas between them. Of a name that several classes have,
            the last one is meant.
        count: Number of classes; one without a name is called by its number.
        where: The model, for the error.

    Raises:
        ModelError: It is no such mapping, or has a number that is no class.
    """
    where = f"{where}: model_index.json"
    if not isinstance(id2label or {}, Mapping):
        raise wrong(where, "id2label", id2label, "names by number")
    given: dict[int, list[str]] = {}
    for key, text in (id2label or {}).items():
        if not str(key).isdecimal() or int(key) >= count or not isinstance(text, str):
            raise wrong(where, f"id2label[{key!r}]", text, f"a name, and a number below {count}")
        given[int(key)] = [name.strip() for name in text.split(",") if name.strip()]
    meant = {name: number for number, names in given.items() for name in names}
    first = []
    for number in range(count):
        names = given.get(number) or [str(number)]
        own = [name for name in names if meant.get(name, number) == number]
        first.append(own[0] if own else f"{names[0]} ({number})")
    return tuple(first), {name: number for name, number in meant.items() if name not in first}
