"""Statistics of an ensemble against NumPy, on exponentials from random starts."""

from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest

import diffjax as dj

N = 60
RATES = jnp.linspace(0.5, 1.5, N)
STARTS = 1.0 + jax.random.uniform(jax.random.key(0), (N, 2))
PROB = dj.ODEProblem(lambda u, p, t: -p * u, STARTS[0], (0.0, 2.0), RATES[0])


def ensemble(**made: Any) -> dj.EnsembleProblem:
    def member(prob: dj.ODEProblem, i: jax.Array, key: None) -> dj.ODEProblem:
        return dj.remake(prob, u0=STARTS[i], p=RATES[i])

    return dj.EnsembleProblem(PROB, member, **made)


def solve(prob: dj.EnsembleProblem | None = None, **options: Any) -> Any:
    options = {"saveat": 0.5, "rtol": 1e-8, "atol": 1e-8, **options}
    return dj.solve(prob or ensemble(), dj.Tsit5(), trajectories=N, **options)


@pytest.fixture(scope="module")
def sim() -> Any:
    return solve()


def exact(ts: Any) -> np.ndarray:
    """(N, T, 2)."""
    return np.asarray(STARTS)[:, None] * np.exp(-np.outer(RATES, ts))[:, :, None]


def close(got: Any, wanted: Any, rtol: float = 1e-7) -> None:
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-9)


def test_every_statistic(sim: Any) -> None:
    """At steps and at times, alone and as series; Julia's names and order of arguments."""
    ts = np.arange(5) * 0.5
    u = exact(ts)
    mean, var = u.mean(0), u.var(0, ddof=1)
    close([dj.timestep_mean(sim, 2), dj.timepoint_mean(sim, 1.0)], [mean[2]] * 2)
    close(
        [dj.timeseries_steps_mean(sim), dj.timeseries_point_mean(sim, ts[1:3])], [mean, mean[1:3]]
    )
    median = np.median(u, 0)
    close([dj.timestep_median(sim, 2), dj.timepoint_median(sim, 1.0)], [median[2]] * 2)
    close([dj.timeseries_steps_median(sim), dj.timeseries_point_median(sim, ts)], [median] * 2)
    high = np.quantile(u, 0.9, axis=0)
    close([dj.timestep_quantile(sim, 0.9, 2), dj.timepoint_quantile(sim, 0.9, 1.0)], [high[2]] * 2)
    close(
        [dj.timeseries_steps_quantile(sim, 0.9), dj.timeseries_point_quantile(sim, 0.9, ts)],
        [high] * 2,
    )
    close(dj.timestep_meanvar(sim, 2), (mean[2], var[2]))
    close(dj.timepoint_meanvar(sim, 1.0), (mean[2], var[2]))
    close(dj.timeseries_steps_meanvar(sim), (mean, var))
    close(dj.timeseries_point_meanvar(sim, ts), (mean, var))


def test_covariances(sim: Any) -> None:
    ts = np.arange(5) * 0.5
    u = exact(ts)
    mean = u.mean(0)
    cov = np.stack([np.cov(u[:, :, c], rowvar=False) for c in range(2)], axis=-1)
    cor = np.stack([np.corrcoef(u[:, :, c], rowvar=False) for c in range(2)], axis=-1)
    close(dj.timestep_meancov(sim, 1, 3), (mean[1], mean[3], cov[1, 3]))
    close(dj.timestep_meancor(sim, 1, 3), (mean[1], mean[3], cor[1, 3]))
    close(dj.timepoint_meancov(sim, 0.5, 1.5), (mean[1], mean[3], cov[1, 3]))
    close(dj.timepoint_meancor(sim, 0.5, 1.5), (mean[1], mean[3], cor[1, 3]))
    close(dj.timeseries_steps_meancov(sim), (mean, mean, cov))
    close(dj.timeseries_steps_meancor(sim), (mean, mean, cor))
    close(dj.timeseries_point_meancov(sim, ts[:2], ts), (mean[:2], mean, cov[:2]))
    close(dj.timeseries_point_meancor(sim, ts), (mean[:-1], mean[1:], cor[:-1, 1:]))


def test_summary_and_plot(sim: Any) -> None:
    u = exact(np.arange(5) * 0.5)
    summary = dj.EnsembleSummary(sim, quantiles=(0.1, 0.9))
    close(
        [summary.mean, summary.median, summary.var], [u.mean(0), np.median(u, 0), u.var(0, ddof=1)]
    )
    close([summary.qlow, summary.qhigh], np.quantile(u, [0.1, 0.9], axis=0))
    close(summary.cov, [np.cov(u[:, k], rowvar=False) for k in range(5)])
    assert (summary.trajectories, int(summary.failed)) == (N, 0)
    axes = sim.plot(paths=3, vars=1, quantiles=(0.1, 0.9))
    np.testing.assert_allclose(axes.lines[0].get_ydata(), u[:, :, 1].mean(0), rtol=1e-7)
    assert (len(axes.lines), len(axes.collections)) == (4, 1)
    assert axes.get_ylabel() == "u[1]"
    assert len(summary.plot().get_legend().get_texts()) == 2
    plt.close("all")
    with pytest.raises(ValueError, match="paths"):
        summary.plot(paths=2)


def test_any_time_of_a_dense_ensemble(sim: Any) -> None:
    dense = solve(saveat=None, dense=True, max_steps=64)
    ts = np.asarray([0.3, 1.7])
    close(dj.timeseries_point_meanvar(dense, ts), (exact(ts).mean(0), exact(ts).var(0, ddof=1)))
    summary = dj.EnsembleSummary(dense, ts, covariance=False)
    close([summary.mean], [exact(ts).mean(0)])
    with pytest.raises(ValueError, match=r"t=0\.3 is not among the saved times"):
        dj.timepoint_mean(sim, 0.3)
    with pytest.raises(ValueError, match="saved at the same times"):
        dj.EnsembleSummary(dense)


def test_failed_trajectories_are_left_out() -> None:
    """Two of five blow up at t = 1: counted, and no part of any statistic after that."""
    ensemble = dj.EnsembleProblem(
        dj.ODEProblem(lambda u, p, t: p * u**2, jnp.ones(1), (0.0, 2.0)),
        lambda prob, i, key: dj.remake(prob, p=jnp.asarray([-1.0, 1.0, -2.0, 1.0, -0.5])[i]),
    )
    options: dict[str, Any] = {"trajectories": 5, "saveat": 0.4, "max_steps": 400, "rtol": 1e-6}
    with pytest.raises(dj.SolveError, match="2 of 5 trajectories") as caught:
        dj.solve(ensemble, dj.Tsit5(), **options)
    sol = caught.value.solution
    assert int(sol.failed) == 2
    np.testing.assert_array_equal(np.asarray(sol.retcode) > 1, [0, 1, 0, 1, 0])
    late = np.mean([1 / (1 + 2 * p) for p in (1.0, 2.0, 0.5)])
    np.testing.assert_allclose(dj.timepoint_mean(sol, 2.0)[0], late, rtol=1e-3)
    assert int(dj.EnsembleSummary(sol).failed) == 2
    both = dj.remake(ensemble, reduction=(dj.EnsembleMoments(), dj.HistogramSketch(0.0, 4.0)))
    sol = dj.solve(both, dj.Tsit5(), throw=False, batch_size=2, **options)
    moments, histogram = sol.u
    np.testing.assert_array_equal(moments.count[:, 0], [5, 5, 5, 3, 3, 3])
    np.testing.assert_allclose(moments.mean[-1, 0], late, rtol=1e-3)
    np.testing.assert_array_equal(histogram.count[:, 0], [5, 5, 5, 3, 3, 3])
    assert int(sol.failed) == 2


def test_moments_and_quantiles_of_a_reduction(sim: Any) -> None:
    reduction = (dj.EnsembleMoments(), dj.HistogramSketch(0.0, 2.0, 400))
    reduced = solve(ensemble(reduction=reduction), batch_size=7)
    moments, histogram = reduced.u
    close([moments.mean, moments.var], dj.timeseries_steps_meanvar(sim), 1e-12)
    np.testing.assert_allclose(histogram.error, 0.005, rtol=1e-12)
    u = np.asarray(sim.u)
    for q in (0.0, 0.05, 0.5, 0.95, 1.0):
        wanted = np.quantile(u, q, axis=0, method="inverted_cdf")
        assert np.max(np.abs(histogram.quantile(q) - wanted)) <= 0.005
    narrow = solve(ensemble(reduction=dj.HistogramSketch(0.5, 1.5, 10))).u
    assert np.isinf(narrow.quantile(0.99)[0]).all()
    with pytest.raises(ValueError, match="low must be less"):
        dj.HistogramSketch(1.0, 1.0)
