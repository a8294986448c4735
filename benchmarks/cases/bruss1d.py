"""A reaction and diffusion on a line: a band Jacobian, and the growth of the cost with its size.

Diffrax has no band matrices. It is timed with the explicit method that is fastest for it here, held
back by stability, so that its error does not follow the tolerance and no equal error can be set.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy import sparse

import diffjax as dj
from benchmarks.case import OURS, Case, Maker, Peer, Row, measure
from benchmarks.jaxrun import Solve, forward, jit_maker
from benchmarks.peers import diffrax_peer
from benchmarks.problems import brusselator
from benchmarks.problems.errors import relative_error
from benchmarks.timing import Call, interleaved

SIZES = (250, 500, 1000, 2000, 4000)
LINEAR = 0.5
"""Linear within a factor of two: the number of steps and what the caches hold vary with N."""

SCIPY: dict[str, tuple[float, dict[str, Any]]] = {
    "BDF": (2.0, {"jac_sparsity": None}),
    "LSODA": (1.0, {"lband": brusselator.BAND[0], "uband": brusselator.BAND[1]}),
}


def _ours(alg: dj.Algorithm) -> Solve:
    def solve(u0: Any, p: Any, tol: Any) -> Any:
        problem = dj.ODEProblem(
            brusselator.field, jnp.asarray(u0), brusselator.TSPAN, p, jac_sparsity=brusselator.BAND
        )
        solution = dj.solve(problem, alg, rtol=tol, atol=tol)
        return solution.u, solution.retcode == dj.ReturnCode.success

    return solve


def _maker(solve: Solve, n: int = brusselator.N) -> Maker:
    return jit_maker(forward(solve), (brusselator.P, brusselator.start(n)))


def _scipy(method: str, options: dict[str, Any]) -> Maker:
    def make() -> Callable[[float], Call]:
        from scipy.integrate import solve_ivp

        start = brusselator.start()
        given = dict(options)
        if "jac_sparsity" in given:
            offsets = list(range(-brusselator.BAND[0], brusselator.BAND[1] + 1))
            diagonals = [np.ones(start.size - abs(k)) for k in offsets]
            given["jac_sparsity"] = sparse.diags_array(diagonals, offsets=offsets)

        def at(tol: float) -> Call:
            def call() -> np.ndarray:
                given.update(rtol=tol, atol=tol, method=method)
                end = brusselator.TSPAN[1:]
                return solve_ivp(
                    lambda t, w: brusselator.rates(w), brusselator.TSPAN, start, t_eval=end, **given
                ).y.T

            return call

        return at

    return make


def bruss1d() -> Case:
    peers = tuple(
        Peer(f"SciPy {name}", {"": _scipy(name, options)}, wanted=ratio)
        for name, (ratio, options) in SCIPY.items()
    )
    error = relative_error(brusselator.reference)
    return Case("bruss1d", brusselator.TOL, _maker(_ours(dj.Rodas5P())), peers, error)


def _diffrax(ours: Call, error: Callable[[Any], float]) -> Row:
    peer = Peer("Diffrax", {}, wanted=50.0, packages=diffrax_peer.PACKAGES)
    if not peer.installed:
        return Row("bruss1d", peer.name, wanted=peer.wanted, note="not installed")
    settings = diffrax_peer.Settings(
        "PI(0.3,0.4)", "Bosh3", dt0=1e-5, max_steps=None, adjoint="forward", throw=False
    )
    solve = diffrax_peer.solve_function(brusselator.field, brusselator.TSPAN, None, settings)
    theirs = _maker(solve)()(1e-3)
    run = interleaved({OURS: ours, peer.name: theirs})
    return Row(
        "bruss1d",
        peer.name,
        variant="Bosh3, explicit",
        error_ours=error(ours()),
        error_peer=error(theirs()),
        run_ours=run[OURS],
        run_peer=run[peer.name],
        wanted=peer.wanted,
        note=f"tol {brusselator.TOL:.1e} / 1.0e-03, at the limit of stability",
    )


def rows() -> list[Row]:
    """Against SciPy at equal error, against Diffrax, and how the time of a point grows with N."""
    case = bruss1d()
    calls = {n: _maker(_ours(dj.Rodas5P()), n)()(brusselator.TOL) for n in SIZES}
    run = interleaved({str(n): call for n, call in calls.items()})
    points = {n: run[str(n)] / n for n in SIZES}
    growth = [
        Row(
            "bruss1d time of a point",
            f"N={SIZES[0]}",
            variant=f"N={n}",
            run_ours=points[n],
            run_peer=points[SIZES[0]],
            wanted=LINEAR,
        )
        for n in SIZES[1:]
    ]
    return [*measure(case), _diffrax(calls[brusselator.N], case.error), *growth]
