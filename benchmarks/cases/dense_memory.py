"""Memory of the dense output: Tsit5, 4,096 steps at most, Lotka-Volterra, in float64.

Two counts: what the compiled program returns by `memory_analysis`, and the bytes of the arrays in
the solution object it returned. They differ where an array is returned twice.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from benchmarks import ours
from benchmarks.case import Peer, Row
from benchmarks.peers import diffrax_peer
from benchmarks.problems import lotka_volterra as lv

MAX_STEPS = 4096
WANTED = 2.0


def _bytes(solution: Callable[[Any], Any]) -> dict[str, int]:
    p = jnp.asarray(lv.P)
    # Only the arrays of a solution leave the jit: an object may hold what is no array.
    compiled = jax.jit(lambda p: eqx.filter(solution(p), eqx.is_array)).lower(p).compile()
    memory = compiled.memory_analysis()
    arrays = [x for x in jax.tree.leaves(compiled(p)) if eqx.is_array(x)]
    return {
        "output": memory.output_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "arrays": sum(x.nbytes for x in arrays),
    }


def rows() -> list[Row]:
    peer = Peer("Diffrax", {}, packages=diffrax_peer.PACKAGES)
    if not peer.installed:
        return [Row("dense_memory", peer.name, wanted=WANTED, note="not installed")]
    arguments = (lv.field, lv.U0, lv.TSPAN, lv.TOL, MAX_STEPS)
    mine = _bytes(ours.dense_solution(*arguments))
    theirs = _bytes(diffrax_peer.dense_solution(*arguments))
    return [
        Row(
            f"dense_memory {kind}",
            peer.name,
            run_ours=mine[kind],
            run_peer=theirs[kind],
            wanted=None if kind == "temporary" else WANTED,
            unit="B",
        )
        for kind in mine
    ]
