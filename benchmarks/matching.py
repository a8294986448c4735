"""Equal error: the tolerance at which a peer is as wrong as we are at the nominal one.

The error of one trajectory at one tolerance is partly luck (steps fall here or there, errors
cancel), so two solvers are not compared point by point: a straight line through log error over log
tolerance is fitted to a sweep of each, and the peer's tolerance is read off where its line reaches
ours.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.timing import Call

SWEEP_DECADES = 1.0
"""A sweep spans half of this on either side of its centre."""

MAX_RECENTRES = 4
MIN_SLOPE = 0.2
"""Flatter than this, the error does not follow the tolerance and no tolerance can be read off."""


class NoMatch(Exception):
    """The contender reaches the wanted error at no tolerance near the nominal one."""


@dataclass(frozen=True)
class ErrorLine:
    """`log10(error) = offset + slope * log10(tol)`."""

    offset: float
    slope: float

    def error(self, tol: float) -> float:
        return 10.0 ** (self.offset + self.slope * math.log10(tol))

    def tolerance(self, error: float) -> float:
        return 10.0 ** ((math.log10(error) - self.offset) / self.slope)


def error_line(
    at: Callable[[float], Call], error: Callable[[Any], float], centre: float, points: int
) -> ErrorLine:
    """Fits the errors of a sweep of tolerances around `centre`; failed runs are left out."""
    half = SWEEP_DECADES / 2
    tols = centre * 10.0 ** np.linspace(-half, half, points)
    errors = np.array([error(at(float(tol))()) for tol in tols])
    good = np.isfinite(errors) & (errors > 0)
    if good.sum() < min(3, points):
        raise NoMatch(f"{int(good.sum())} of {points} runs near tolerance {centre:.1e} succeeded")
    slope, offset = np.polyfit(np.log10(tols[good]), np.log10(errors[good]), 1)
    if slope < MIN_SLOPE:
        raise NoMatch(f"error does not follow the tolerance near {centre:.1e}")
    return ErrorLine(float(offset), float(slope))


def matched_tolerance(
    at: Callable[[float], Call],
    error: Callable[[Any], float],
    target: float,
    start: float,
    points: int,
) -> float:
    """The tolerance at which the fitted error equals `target`, within the last sweep made."""
    centre = start
    for _ in range(MAX_RECENTRES):
        wanted = error_line(at, error, centre, points).tolerance(target)
        if abs(math.log10(wanted / centre)) <= SWEEP_DECADES / 2:
            return wanted
        # One sweep is no ground for a long extrapolation: go a decade at most, and look again.
        centre *= 10.0 ** float(np.clip(math.log10(wanted / centre), -1.0, 1.0))
    raise NoMatch(f"error {target:.1e} not reached down to tolerance {centre:.1e}")
