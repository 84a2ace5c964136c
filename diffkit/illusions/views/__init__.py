"""Views: the linear, orthogonal maps under which an anagram changes its meaning (Geng et al., arXiv:2311.17919).

One row per view, a frozen dataclass whose fields are its command-line arguments (`skew:1.5`, `patch_permute:8,3`); the
last argument of a random one is its seed. Whole-picture views are in `rows.py`, those made of pieces in `pieces.py`,
the drawing of animations in `frames.py`, and the test of what makes a view in `laws.py`.
"""

from __future__ import annotations

from diffkit.errors import UsageError
from diffkit.illusions.views import rows as _rows  # noqa: F401  (registers its views)
from diffkit.illusions.views.base import VIEWS, Look, Moving
from diffkit.illusions.views.laws import ViewReport, check_view
from diffkit.illusions.views.pieces import Permutation

__all__ = ["VIEWS", "Look", "Moving", "Permutation", "ViewReport", "check_view", "parse_view"]


def parse_view(spec: str) -> Look:
    """Make a view from `name`, `name:arg1,arg2` or `permutation:FILE`; a file's name may hold commas.

    Raises:
        UsageError: Unknown name, or an argument that is wrong or missing.
        DataError: The file cannot be read, or is no permutation.
    """
    name, _, rest = spec.partition(":")
    if name.strip() != "permutation":
        return VIEWS.parse(spec)
    if not rest.strip():
        raise UsageError(f"view {spec!r} names no file", "Write permutation:FILE.npy, or permutation:FILE.png.")
    return Permutation(rest.strip())
