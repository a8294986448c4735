"""Exact simulation of an epidemic, 10,000 paths: the same method everywhere, so nothing to match.

A thousand people, 1,865 jumps a path, 26 times saved, in double precision.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from benchmarks.case import OURS, Peer, Row
from benchmarks.peers import native, numba_peer
from benchmarks.timing import Call, interleaved

PATHS, SPACING, TSPAN = 10_000, 10.0, (0.0, 250.0)
RATES, START = np.array([1e-4, 0.01]), np.array([999, 10, 0])
TIMES = np.arange(TSPAN[0], TSPAN[1] + SPACING, SPACING)
# How far two means of 10,000 paths may lie apart, in people: five standard errors.
CLOSE = 10.0


def _ours() -> Call:
    reactions = dj.MassActionJump(lambda p: p, [[1, 1, 0], [0, 1, 0]], [[-1, 1, 0], [0, -1, 1]])
    prob = dj.JumpProblem(dj.DiscreteProblem(START, TSPAN, RATES), reactions)
    ensemble = dj.EnsembleProblem(prob)
    solve = jax.jit(
        lambda key: dj.solve(ensemble, trajectories=PATHS, key=key, saveat=SPACING, throw=False).u
    )
    key = jax.random.key(0)
    return lambda: jax.block_until_ready(solve(key))


def _mean(paths: Any) -> np.ndarray:
    return np.asarray(jnp.mean(jnp.asarray(paths, float), axis=0))


def rows() -> list[Row]:
    calls: dict[str, Call] = {OURS: _ours()}
    inputs = (RATES, START, TIMES, PATHS)
    peers = (Peer("native C", {}, available=native.INSTALLED),)
    peers += (Peer("numba", {}, packages=numba_peer.PACKAGES),)
    makers = {"native C": native.sir_call, "numba": numba_peer.sir_call}
    calls |= {peer.name: makers[peer.name](*inputs) for peer in peers if peer.installed}
    means = {name: _mean(call()) for name, call in calls.items()}
    run = interleaved(calls)
    found = []
    for name in makers:
        if name not in calls:
            found.append(Row("jump_sir", name, note="not installed"))
            continue
        apart = float(np.abs(means[name] - means[OURS]).max())
        note = f"means at most {apart:.1f} people apart" + (": TOO FAR" if apart > CLOSE else "")
        found.append(Row("jump_sir", name, run_ours=run[OURS], run_peer=run[name], note=note))
    return found
