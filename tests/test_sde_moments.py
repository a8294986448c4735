"""Means and variances of the public stochastic problems, against their closed forms."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array
from scipy.linalg import expm

import diffjax as dj

from .problems import DATA
from .stochastic_methods import (
    ROESSLER_COLUMN,
    ROESSLER_DRIFT,
    ROESSLER_START,
    additive_equation,
    asinh_equation,
    linear_equation,
    linear_system,
    ornstein_uhlenbeck,
    stiff_quadratic,
    two_by_four,
)

KEY = jax.random.key(29)


@dataclass(frozen=True)
class Moments:
    """Of what a function of the end should have the given mean and variance.

    `kurtosis` is its fourth central moment over the squared variance, which says how well a sample
    tells the variance: with `paths` of them one standard error is at most 2 % of it.
    """

    problem: dj.SDEProblem
    alg: dj.Algorithm
    steps: int
    mean: Any
    var: Any
    paths: int = 10_000
    kurtosis: float = 3.0
    of: Callable[[Array], Array] = lambda u: u


def _normal_nodes() -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights for the expectation of a function of a standard normal number."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    return nodes, weights / weights.sum()


def linear_ito() -> Moments:
    reference = DATA["sde_linear_ito"]["reference"]
    mean = reference["mean_end"]
    var = reference["second_moment_end"] - mean**2
    # A lognormal number with s^2 = 0.87^2.
    q = np.exp(0.87**2)
    kurtosis = q**4 + 2 * q**3 + 3 * q**2 - 3
    problem = linear_equation("ito").problem
    return Moments(problem, dj.SRIW1(), 16, mean, var, 130_000, kurtosis)


def linear_stratonovich() -> Moments:
    mean = DATA["sde_linear_stratonovich"]["reference"]["mean_end"]
    q = np.exp(0.87**2)
    kurtosis = q**4 + 2 * q**3 + 3 * q**2 - 3
    problem = linear_equation("stratonovich").problem
    return Moments(problem, dj.RKMil(), 256, mean, mean**2 * (q - 1), 130_000, kurtosis)


def additive() -> Moments:
    a, b = (DATA["sde_additive"]["parameters"][name] for name in "ab")
    return Moments(additive_equation().problem, dj.SOSRA(), 8, (1 + b) / 2**0.5, (a * b) ** 2 / 2)


def mean_reverting() -> Moments:
    reference = DATA["sde_ou"]["reference"]
    return Moments(ornstein_uhlenbeck(), dj.SRA1(), 8, reference["mean"], reference["variance"])


def quadratic() -> Moments:
    x, weights = _normal_nodes()
    e = np.exp(-2 * 3.0 + 2 * 3**0.5 * x)
    u = (1.5 * e - 0.5) / (1.5 * e + 0.5)
    mean = weights @ u
    var = weights @ (u - mean) ** 2
    kurtosis = weights @ (u - mean) ** 4 / var**2
    problem = stiff_quadratic().problem
    paths = int((kurtosis - 1) / 0.02**2) + 1
    return Moments(problem, dj.SOSRI2(), 96, mean, var, paths, kurtosis)


def four_noises() -> Moments:
    """The sum of the components, which is an eigenvector of the drift, is lognormal with a spread
    of 1.74; of its logarithm the variance can be told from a sample."""
    rate = -1.0 + 1.01
    mean, var = np.log(0.9) + rate - 2 * 0.87**2, 4 * 0.87**2
    return Moments(
        two_by_four().problem,
        dj.RKMilCommute(),
        512,
        mean,
        var,
        of=lambda u: jnp.log(jnp.sum(u)),
    )


def ten_noises() -> Moments:
    """Roessler 2010, equation 7.4: d = 4 and m = 10 equal matrices, so that one normal number of
    variance 10 drives it."""
    drift, column, start = ROESSLER_DRIFT, ROESSLER_COLUMN, ROESSLER_START
    x, weights = _normal_nodes()
    ends = np.stack([expm(drift - 5 * column @ column + 10**0.5 * z * column) @ start for z in x])
    mean = weights @ ends
    var = weights @ (ends - mean) ** 2
    kurtosis = np.max(weights @ (ends - mean) ** 4 / var**2)
    paths = int((kurtosis - 1) / 0.02**2) + 1
    problem = linear_system("general", "ito", [column] * 10).problem
    return Moments(problem, dj.DRI1(), 12, mean, var, paths, kurtosis)


def functional() -> Moments:
    """z = asinh u is a Brownian motion with a drift of one; E[z^3 - 6 z^2 + 8 z] = 0 at t = 2, of
    which the variance follows from the moments of z."""
    x, weights = _normal_nodes()
    z = 2.0 + 2**0.5 * x
    values = z**3 - 6 * z**2 + 8 * z
    mean, var = DATA["sde_weak_scalar"]["reference"]["end"], weights @ values**2

    def of(u: Array) -> Array:
        z = jnp.arcsinh(u[0])
        return z**3 - 6 * z**2 + 8 * z

    kurtosis = weights @ values**4 / var**2
    paths = int((kurtosis - 1) / 0.02**2) + 1
    return Moments(asinh_equation(), dj.DRI1(), 48, mean, var, paths, kurtosis, of)


CASES = [
    linear_ito,
    linear_stratonovich,
    additive,
    mean_reverting,
    quadratic,
    four_noises,
    ten_noises,
    functional,
]


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_moments(case: Callable[[], Moments]) -> None:
    """Within four standard errors, of which one is at most 2 % of the variance."""
    wanted = case()
    ensemble = dj.EnsembleProblem(
        wanted.problem,
        output_func=lambda sol, i: wanted.of(sol.u[-1]),
        reduction=dj.EnsembleMoments(),
    )
    options: dict[str, Any] = {"steps": wanted.steps, "adaptive": False, "key": KEY}
    got = dj.solve(ensemble, wanted.alg, trajectories=wanted.paths, **options).u
    of_variance = np.sqrt((wanted.kurtosis - 1) / wanted.paths)
    assert of_variance <= 0.02
    of_mean = np.sqrt(wanted.var / wanted.paths)
    assert np.all(np.abs(got.mean - wanted.mean) < 4 * of_mean), (got.mean, wanted.mean, of_mean)
    assert np.all(np.abs(got.var / wanted.var - 1) < 4 * of_variance), (got.var, wanted.var)
