"""Weights of continuous extensions from the conditions that they have to meet."""

from collections.abc import Sequence

import numpy as np

# What weights meet: their sum with the first is the third times theta to the power of the second.
Condition = tuple[np.ndarray, int, float]
Equations = tuple[np.ndarray, np.ndarray]


def fitted(
    conditions: Sequence[Condition],
    ends: np.ndarray,
    degree: int,
    wanted: Sequence[Condition] = (),
) -> np.ndarray:
    """Weights that meet the conditions, of shape (stages, degree): coefficients of theta, theta^2,
    ..., which sum to `ends`. Of all such the smallest, or those that nearly meet what is `wanted`.
    """
    rows, targets = [], []
    for power in range(1, degree + 1):
        for functional, at, value in conditions:
            rows.append(np.kron(np.eye(degree)[power - 1], functional))
            targets.append(value if at == power else 0.0)
    matrix = np.vstack([*rows, np.kron(np.ones((1, degree)), np.eye(len(ends)))])
    nearly = _between(wanted, degree) if wanted else None
    weights = least(matrix, np.concatenate([targets, ends]), nearly).reshape(degree, len(ends))
    # Coefficients of 15 digits meet all conditions to some 1e-13 only, and how that is shared out
    # depends on the machine: the end is where it may not be.
    weights[-1] += ends - weights.sum(axis=0)
    return weights.T


def _between(conditions: Sequence[Condition], degree: int) -> Equations:
    """Conditions on polynomials, whose squares sum to the mean over the step."""
    nodes, weights = np.polynomial.legendre.leggauss(8)
    rows, targets = [], []
    for theta, weight in zip((nodes + 1) / 2, np.sqrt(weights / 2), strict=True):
        powers = theta ** np.arange(1, degree + 1)
        rows.extend(weight * np.kron(powers, functional) for functional, _, _ in conditions)
        targets.extend(weight * value * theta**at for _, at, value in conditions)
    return np.array(rows), np.array(targets)


def least(matrix: np.ndarray, right: np.ndarray, nearly: Equations | None = None) -> np.ndarray:
    """Of all solutions the smallest, or that which nearly solves other equations as well."""
    x = np.linalg.lstsq(matrix, right, rcond=1e-10)[0]
    if nearly is None:
        return x
    _, size, basis = np.linalg.svd(matrix)
    free = basis[np.sum(size > 1e-10 * size[0]) :].T
    other, wanted = nearly
    return x + free @ np.linalg.lstsq(other @ free, wanted - other @ x, rcond=1e-6)[0]
