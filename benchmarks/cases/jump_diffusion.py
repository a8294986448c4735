"""A jump diffusion, 1,000 paths to their ends: Euler-Maruyama that ends a step on each jump.

The same scheme everywhere, 500 steps and one more for each jump, so nothing to match; each
contender has paths of its own. The bare loop in JAX is what one would write by hand for this
equation alone; no peer in Python takes such equations.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from benchmarks.case import OURS, Row
from benchmarks.peers import native
from benchmarks.problems import jump_diffusion as jd
from benchmarks.timing import Call, interleaved

# How far two means of 1,000 paths may lie apart, in standard errors of the difference.
CLOSE = 4.0
DT = (jd.TSPAN[1] - jd.TSPAN[0]) / jd.STEPS


def _ours() -> Call:
    between = dj.SDEProblem(
        lambda u, p, t: jd.drift(u), lambda u, p, t: jd.diffusion(u), jnp.asarray(jd.U0), jd.TSPAN
    )
    halves = dj.ConstantRateJump(lambda u, p, t: jd.RATE, lambda u, p, t: u * jd.FACTORS)
    ensemble = dj.EnsembleProblem(dj.JumpProblem(between, halves))
    solve = jax.jit(
        lambda key: dj.solve(
            ensemble, dj.EM(), trajectories=jd.PATHS, key=key, steps=jd.STEPS, throw=False
        ).u[:, -1]
    )
    return _with_a_key(solve)


def _bare() -> Call:
    """A `while` over steps and jumps of one path, vmapped."""

    def path(key: jax.Array) -> jax.Array:
        def waits(number: jax.Array) -> jax.Array:
            return jax.random.exponential(jax.random.fold_in(key, number)) / jd.RATE

        def turn(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            t, u, alarm, step, turns = state
            stop = (step + 1) * DT
            jumps = alarm < stop
            h = jnp.where(jumps, alarm, stop) - t
            dw = jnp.sqrt(h) * jax.random.normal(jax.random.fold_in(key, 2 * turns + 1), (2,))
            u = u + h * jd.drift(u) + jd.diffusion(u) * dw
            later = alarm + waits(2 * turns + 2)
            return (
                t + h,
                jnp.where(jumps, u * jd.FACTORS, u),
                jnp.where(jumps, later, alarm),
                step + ~jumps,
                turns + 1,
            )

        zero = jnp.zeros((), int)
        start = (jnp.zeros(()), jnp.asarray(jd.U0), waits(zero), zero, zero)
        return jax.lax.while_loop(lambda state: state[3] < jd.STEPS, turn, start)[1]

    return _with_a_key(jax.jit(lambda key: jax.vmap(path)(jax.random.split(key, jd.PATHS))))


def _with_a_key(solve: Any) -> Call:
    key = jax.random.key(0)
    return lambda: jax.block_until_ready(solve(key))


def _apart(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference of the means, in its standard errors."""
    errors = np.sqrt((one.var(0) + other.var(0)) / jd.PATHS)
    return float(np.max(np.abs(one.mean(0) - other.mean(0)) / errors))


def rows() -> list[Row]:
    calls = {OURS: _ours(), "bare loop": _bare()}
    if native.INSTALLED:
        calls["native C"] = native.jump_diffusion_call(
            jd.A, jd.U0, jd.TSPAN[1], jd.STEPS, jd.RATE, jd.NOISE, jd.PATHS
        )
    ends = {name: np.array(call()) for name, call in calls.items()}
    run = interleaved(calls)
    found = []
    for name in ("bare loop", "native C"):
        if name not in calls:
            found.append(Row("jump_diffusion", name, note="not installed"))
            continue
        apart = _apart(ends[OURS], ends[name])
        note = f"means {apart:.1f} standard errors apart" + (": TOO FAR" if apart > CLOSE else "")
        found.append(Row("jump_diffusion", name, run_ours=run[OURS], run_peer=run[name], note=note))
    return found
