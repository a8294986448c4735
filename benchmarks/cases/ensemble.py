"""10,000 Lotka-Volterra trajectories through an ensemble, and 10^2 to 10^6 of them."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from benchmarks.case import Case, Maker, Peer, Row
from benchmarks.cases.forward import ADJOINTS, first_dt
from benchmarks.jaxrun import forward, jit_maker, over_lanes
from benchmarks.peers import diffrax_peer
from benchmarks.problems import lotka_volterra as lv
from benchmarks.problems.errors import relative_error

TRAJECTORIES = 10_000
PEER_TILES = (500, TRAJECTORIES)
"""Diffrax in one vmap, and in tiles of its own by `jax.lax.map`; the faster counts."""

SCALES = (100, 1_000, 10_000, 100_000, 1_000_000)
REPEATS = 3


def _ours(inputs: Any, tol: Any) -> jax.Array:
    p, u0 = inputs
    prob = dj.ODEProblem(lv.field, u0, lv.TSPAN, p[0])
    ensemble = dj.EnsembleProblem(prob, lambda prob, i, key: dj.remake(prob, p=p[i]))
    options: dict[str, Any] = {"saveat": lv.SPACING, "rtol": tol, "atol": tol, "throw": False}
    return dj.solve(ensemble, dj.Tsit5(), trajectories=len(p), **options).u


def _diffrax(settings: diffrax_peer.Settings, tile: int) -> Maker:
    solve = diffrax_peer.solve_function(lv.field, lv.TSPAN, lv.SAVES, settings)
    lanes = over_lanes(forward(solve))

    def tiles(inputs: Any, tol: Any) -> jax.Array:
        p, u0 = inputs
        if tile == len(p):
            return lanes((p, u0), tol)
        rows = jax.lax.map(lambda p: lanes((p, u0), tol), p.reshape(-1, tile, p.shape[-1]))
        return rows.reshape(-1, *rows.shape[2:])

    return jit_maker(tiles, (lv.lane_parameters(TRAJECTORIES), lv.U0))


def lv_ensemble() -> Case:
    settings = diffrax_peer.best_settings(first_dt(), ADJOINTS, ("I",))
    best = {
        f"{name}, tiles of {tile}": _diffrax(setting, tile)
        for name, setting in settings.items()
        for tile in PEER_TILES
    }
    peer = Peer("Diffrax", best, wanted=5.0, packages=diffrax_peer.PACKAGES, sweep_points=5)
    ours = jit_maker(_ours, (lv.lane_parameters(TRAJECTORIES), lv.U0))
    error = relative_error(lambda: lv.reference(lv.LANES))
    # The first lanes are those of the smaller ensemble, whose reference is at hand.
    return Case("lv_ensemble", lv.TOL, ours, (peer,), lambda u: error(u[: lv.LANES]))


def _moments(count: int) -> Any:
    """Mean and variance of `count` trajectories whose rates are drawn from their keys."""

    def member(prob: dj.ODEProblem, i: jax.Array, key: jax.Array) -> dj.ODEProblem:
        spread = jax.random.uniform(key, (4,), minval=1 - lv.SPREAD, maxval=1 + lv.SPREAD)
        return dj.remake(prob, p=prob.p * spread)

    prob = dj.ODEProblem(lv.field, jnp.asarray(lv.U0), lv.TSPAN, jnp.asarray(lv.P))
    ensemble = dj.EnsembleProblem(prob, member, reduction=dj.EnsembleMoments())
    options: dict[str, Any] = {"saveat": lv.SPACING, "rtol": lv.TOL, "atol": lv.TOL}
    key = jax.random.key(0)
    solve = jax.jit(lambda: dj.solve(ensemble, dj.Tsit5(), trajectories=count, key=key, **options))
    program = solve.lower().compile()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(program())
        seconds.append(time.perf_counter() - start)
    return float(np.min(seconds)), program.memory_analysis().temp_size_in_bytes


def rows() -> list[Row]:
    """The time of ensembles of growing size, reduced to moments, and the memory of each."""
    found = []
    for count in SCALES:
        seconds, memory = _moments(count)
        note = f"{1e6 * seconds / count:.1f} us each, {memory / 2**20:.1f} MiB temporary"
        found.append(Row(f"ensemble_scaling {count:,}", "-", run_ours=seconds, note=note))
    return found
