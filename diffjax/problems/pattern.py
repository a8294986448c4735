"""Where a Jacobian has entries, as a static part of a problem."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse


class Pattern:
    """A sparse boolean matrix that is compared by value, so that equal problems compile once."""

    def __init__(self, matrix: sparse.csr_array) -> None:
        matrix.sum_duplicates()
        self.matrix = matrix
        self._key = (matrix.shape, matrix.indptr.tobytes(), matrix.indices.tobytes())

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pattern) and self._key == other._key


def hold_sparsity(given: Any) -> tuple[int, int] | str | Pattern | None:
    """A bandwidth, `"detect"` or a pattern, judged as far as it can be without the state.

    **Raises:** `TypeError` or `ValueError` for anything else.
    """
    if given is None or isinstance(given, Pattern):
        return given
    if isinstance(given, str):
        if given != "detect":
            raise ValueError(f'jac_sparsity as a string must be "detect", got {given!r}.')
        return given
    if isinstance(given, Sequence) and len(given) == 2 and all(np.ndim(x) == 0 for x in given):
        return _bandwidths(given)
    matrix: Any = given if sparse.issparse(given) else _as_numpy(given)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(
            f"jac_sparsity as a pattern must be square, (n, n), got shape {matrix.shape}; "
            "for a band give the pair (lower, upper)."
        )
    entries = sparse.csr_array(matrix != 0)
    entries.eliminate_zeros()
    return Pattern(entries)


def _bandwidths(given: Sequence[Any]) -> tuple[int, int]:
    if not all(isinstance(x, int | np.integer) and not isinstance(x, bool) for x in given):
        raise TypeError(
            "jac_sparsity as a band must be a pair of integers (lower, upper), got "
            f"({', '.join(type(x).__name__ for x in given)})."
        )
    lower, upper = map(int, given)
    if lower < 0 or upper < 0:
        raise ValueError(
            "jac_sparsity as a band counts the diagonals below and above the main one, which is "
            f"not negative; got ({lower}, {upper})."
        )
    return lower, upper


def _as_numpy(given: Any) -> np.ndarray:
    try:
        return np.asarray(given)
    except Exception:
        raise TypeError(
            "jac_sparsity must be known while tracing: a pair (lower, upper), a boolean array of "
            f'NumPy or SciPy\'s sparse, or "detect"; got {type(given).__name__}.'
        ) from None
