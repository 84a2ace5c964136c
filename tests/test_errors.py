from __future__ import annotations

import pytest

from diffkit import errors
from diffkit.errors import DiffkitError, did_you_mean


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("DiffkitError", 1),
        ("UsageError", 2),
        ("DataError", 3),
        ("ModelError", 4),
        ("ResourceError", 5),
        ("NumericalError", 6),
        ("BusyError", 7),
    ],
)
def test_exit_codes_are_the_documented_ones(name: str, code: int) -> None:
    error = getattr(errors, name)("what", "then")
    assert isinstance(error, DiffkitError)
    assert (error.exit_code, error.message, error.hint, str(error)) == (code, "what", "then", "what")


def test_terminated_carries_the_signals_code() -> None:
    assert errors.Terminated("stopped", 143).exit_code == 143
    assert errors.Terminated("stopped", 130).exit_code == 130


def test_did_you_mean_names_the_nearest_or_all() -> None:
    assert did_you_mean("cosin", ["linear", "cosine"]) == "Did you mean 'cosine'?"
    assert did_you_mean("zzz", ["linear", "cosine"]) == "Choose one of: cosine, linear."
