"""Statistics of an ensemble, by the names of DifferentialEquations.jl's `EnsembleAnalysis`.

`timestep_*` are those at a saved step `i` (an index, a slice, or an array of them), `timepoint_*`
at a time `t`; `timeseries_steps_*` at every saved step and `timeseries_point_*` at times `ts`, with
a time axis in front. Every one is taken component by component, on pytrees leaf by leaf. A time
must be one that was saved, unless the ensemble was solved with `dense=True`.

What is NaN, because a trajectory did not reach it, is left out; `sim.failed` says how many
trajectories failed. Variances, covariances and correlations are the unbiased ones (n - 1).
Quantiles interpolate linearly between order statistics, as in Julia and NumPy.
"""

from typing import Any

from jaxtyping import PyTree

from .solution import EnsembleSolution
from .statistics import (
    mean,
    meancor,
    meancov,
    meanvar,
    of_two,
    points,
    quantile,
    steps,
)


def timestep_mean(sim: EnsembleSolution, i: Any) -> PyTree:
    """The mean at saved step i."""
    return mean(steps(sim, i))


def timestep_median(sim: EnsembleSolution, i: Any) -> PyTree:
    """The median at saved step i."""
    return quantile(steps(sim, i), 0.5)


def timestep_quantile(sim: EnsembleSolution, q: Any, i: Any) -> PyTree:
    """The quantile q, 0 to 1, at saved step i."""
    return quantile(steps(sim, i), q)


def timestep_meanvar(sim: EnsembleSolution, i: Any) -> tuple[PyTree, PyTree]:
    """Mean and variance at saved step i."""
    return meanvar(steps(sim, i))


def timestep_meancov(sim: EnsembleSolution, i: int, j: int) -> tuple[PyTree, PyTree, PyTree]:
    """The means at saved steps i and j, and the covariance between the two."""
    return of_two(meancov, steps(sim, [i]), steps(sim, [j]))


def timestep_meancor(sim: EnsembleSolution, i: int, j: int) -> tuple[PyTree, PyTree, PyTree]:
    """The means at saved steps i and j, and the correlation between the two."""
    return of_two(meancor, steps(sim, [i]), steps(sim, [j]))


def timeseries_steps_mean(sim: EnsembleSolution) -> PyTree:
    """The mean at every saved step, (T, ...)."""
    return mean(sim.u)


def timeseries_steps_median(sim: EnsembleSolution) -> PyTree:
    """The median at every saved step, (T, ...)."""
    return quantile(sim.u, 0.5)


def timeseries_steps_quantile(sim: EnsembleSolution, q: Any) -> PyTree:
    """The quantile q at every saved step, (T, ...)."""
    return quantile(sim.u, q)


def timeseries_steps_meanvar(sim: EnsembleSolution) -> tuple[PyTree, PyTree]:
    """Mean and variance at every saved step, (T, ...) each."""
    return meanvar(sim.u)


def timeseries_steps_meancov(sim: EnsembleSolution) -> tuple[PyTree, PyTree, PyTree]:
    """Means (T, ...) twice, and the covariance between every two saved steps, (T, T, ...)."""
    return meancov(sim.u, sim.u)


def timeseries_steps_meancor(sim: EnsembleSolution) -> tuple[PyTree, PyTree, PyTree]:
    """Means (T, ...) twice, and the correlation between every two saved steps, (T, T, ...)."""
    return meancor(sim.u, sim.u)


def timepoint_mean(sim: EnsembleSolution, t: Any) -> PyTree:
    """The mean at time t."""
    return mean(points(sim, t))


def timepoint_median(sim: EnsembleSolution, t: Any) -> PyTree:
    """The median at time t."""
    return quantile(points(sim, t), 0.5)


def timepoint_quantile(sim: EnsembleSolution, q: Any, t: Any) -> PyTree:
    """The quantile q at time t."""
    return quantile(points(sim, t), q)


def timepoint_meanvar(sim: EnsembleSolution, t: Any) -> tuple[PyTree, PyTree]:
    """Mean and variance at time t."""
    return meanvar(points(sim, t))


def timepoint_meancov(sim: EnsembleSolution, t1: Any, t2: Any) -> tuple[PyTree, PyTree, PyTree]:
    """The means at times t1 and t2, and the covariance between the two."""
    return of_two(meancov, points(sim, [t1]), points(sim, [t2]))


def timepoint_meancor(sim: EnsembleSolution, t1: Any, t2: Any) -> tuple[PyTree, PyTree, PyTree]:
    """The means at times t1 and t2, and the correlation between the two."""
    return of_two(meancor, points(sim, [t1]), points(sim, [t2]))


def timeseries_point_mean(sim: EnsembleSolution, ts: Any) -> PyTree:
    """The mean at times ts, (T, ...)."""
    return mean(points(sim, ts))


def timeseries_point_median(sim: EnsembleSolution, ts: Any) -> PyTree:
    """The median at times ts, (T, ...)."""
    return quantile(points(sim, ts), 0.5)


def timeseries_point_quantile(sim: EnsembleSolution, q: Any, ts: Any) -> PyTree:
    """The quantile q at times ts, (T, ...)."""
    return quantile(points(sim, ts), q)


def timeseries_point_meanvar(sim: EnsembleSolution, ts: Any) -> tuple[PyTree, PyTree]:
    """Mean and variance at times ts, (T, ...) each."""
    return meanvar(points(sim, ts))


def timeseries_point_meancov(
    sim: EnsembleSolution, ts1: Any, ts2: Any = None
) -> tuple[PyTree, PyTree, PyTree]:
    """Means (T1, ...) and (T2, ...), and the covariance between every two times (T1, T2, ...).

    Of one sequence: between all but its last and all but its first times.
    """
    return meancov(*(points(sim, ts) for ts in _two(ts1, ts2)))


def timeseries_point_meancor(
    sim: EnsembleSolution, ts1: Any, ts2: Any = None
) -> tuple[PyTree, PyTree, PyTree]:
    """Means (T1, ...) and (T2, ...), and the correlation between every two times (T1, T2, ...).

    Of one sequence: between all but its last and all but its first times.
    """
    return meancor(*(points(sim, ts) for ts in _two(ts1, ts2)))


def _two(ts1: Any, ts2: Any) -> tuple[Any, Any]:
    return (ts1[:-1], ts1[1:]) if ts2 is None else (ts1, ts2)
