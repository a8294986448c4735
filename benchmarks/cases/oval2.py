"""Oval2 to T = 1, 1,000 paths: every method against the moments it should have.

The network is stiff, so explicit steps are bounded by stability and not by a tolerance, and there
is no error to match: adaptive methods run at one tolerance, Euler-Maruyama at the largest power of
two at which no path fails (at twice that step all do), SROCK1 at a step its stages are stable for.
What can be compared is the distance of the 19 means from those of our SOSRI, in standard errors of
the difference: each row has paths of its own, so that about three is the largest of 19 to be
expected. A run takes seconds, Diffrax's minutes, so runs are few. Of Diffrax's adaptive methods two
were tried, on 100 paths: SPaRK, and a `HalfSolver` of GeneralShARK, which took 20 times as long and
lost 12 paths.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from benchmarks.case import Peer, Row
from benchmarks.peers import diffrax_peer
from benchmarks.problems import oval2

RTOL, ATOL = 1e-2, 1e-3
EM_STEPS = 2**13
FINEST = 2.0**-15
"""Below Diffrax's smallest steps, as its tree asks for."""
WANTED = 5.0

Paths = Callable[[jax.Array], tuple[jax.Array, jax.Array]]
"""Ends of all paths, (paths, 19), and which of them succeeded, by a key."""


@dataclass(frozen=True)
class _Measured:
    seconds: float
    first: float
    ends: np.ndarray
    failed: int

    def distance(self, other: "_Measured") -> float:
        """The largest difference of the means, in its standard errors."""
        squares = self.ends.var(0) / len(self.ends) + other.ends.var(0) / len(other.ends)
        return float(np.max(np.abs(self.ends.mean(0) - other.ends.mean(0)) / np.sqrt(squares)))


def _ours(alg: dj.Algorithm, **options: Any) -> Paths:
    prob = dj.SDEProblem(oval2.drift, oval2.diffusion, jnp.asarray(oval2.U0), oval2.TSPAN)

    def paths(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        sol = dj.solve(
            dj.EnsembleProblem(prob),
            alg,
            trajectories=oval2.PATHS,
            key=key,
            throw=False,
            **options,
        )
        assert sol.retcode is not None
        return sol.u[:, -1], jnp.equal(sol.retcode, dj.ReturnCode.success)

    return paths


def _adaptive(alg: dj.Algorithm) -> Paths:
    return _ours(alg, rtol=RTOL, atol=ATOL, max_steps=100_000)


def _bare(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Euler-Maruyama in a scan over all paths: diagonal noise, as everybody has it here."""
    dt = 1 / EM_STEPS
    drift = jax.vmap(lambda u: oval2.drift(u, None, 0.0))

    def step(u: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        dw = jax.random.normal(jax.random.fold_in(key, i), u.shape) * dt**0.5
        return u + dt * drift(u) + oval2.diffusion(u, None, 0.0) * dw, None

    start = jnp.broadcast_to(jnp.asarray(oval2.U0), (oval2.PATHS, len(oval2.U0)))
    ends = jax.lax.scan(step, start, jnp.arange(EM_STEPS))[0]
    return ends, jnp.isfinite(ends).all(1)


def _diffrax(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    import diffrax
    import lineax

    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        shape = jax.ShapeDtypeStruct(oval2.U0.shape, float)
        path = diffrax.VirtualBrownianTree(
            *oval2.TSPAN, FINEST, shape, key, levy_area=diffrax.SpaceTimeLevyArea
        )
        noise = diffrax.ControlTerm(
            lambda t, u, _: lineax.DiagonalLinearOperator(oval2.diffusion(u, None, t)), path
        )
        drift = diffrax.ODETerm(lambda t, u, _: oval2.stratonovich_drift(u, None, t))
        sol = diffrax.diffeqsolve(
            diffrax.MultiTerm(drift, noise),
            diffrax.SPaRK(),
            *oval2.TSPAN,
            1e-4,
            jnp.asarray(oval2.U0),
            stepsize_controller=diffrax.PIDController(
                rtol=RTOL, atol=ATOL, pcoeff=0.1, icoeff=0.3, dtmin=2 * FINEST
            ),
            adjoint=diffrax.ForwardMode(),
            max_steps=40_000,
            throw=False,
        )
        assert sol.ys is not None
        return sol.ys[-1], sol.result == diffrax.RESULTS.successful

    return jax.vmap(one)(jax.random.split(key, oval2.PATHS))


def _measured(paths: Paths, seed: int, runs: int) -> _Measured:
    """The fastest of some runs, and the compilation with it for a first one."""
    key = jax.random.key(seed)
    start = time.perf_counter()
    program = jax.jit(paths).lower(key).compile()
    compiled = time.perf_counter() - start
    seconds, ends, succeeded = [], None, None
    for _ in range(runs):
        start = time.perf_counter()
        ends, succeeded = jax.block_until_ready(program(key))
        seconds.append(time.perf_counter() - start)
    fine = np.asarray(succeeded)
    return _Measured(
        min(seconds), compiled + seconds[0], np.asarray(ends)[fine], int(np.sum(~fine))
    )


def rows() -> list[Row]:
    """Our SOSRI against every other way, and our Euler-Maruyama against a bare scan of it, which
    draws all 19 numbers of a diagonal noise too."""
    sosri = _measured(_adaptive(dj.SOSRI()), 0, runs=2)
    euler = _measured(_ours(dj.EM(), steps=EM_STEPS), 1, runs=2)
    bare = _measured(_bare, 2, runs=2)
    found = [
        _row("SOSRI", sosri, "ours, EM", euler, sosri),
        _row("SOSRI", sosri, "bare scan, EM", bare, sosri),
        _row("EM", euler, "bare scan, EM", bare, sosri),
    ]
    for name, paths in {
        "ours, ImplicitRKMil": _adaptive(dj.ImplicitRKMil()),
        "ours, SROCK1": _ours(dj.SROCK1(stages=40), steps=64),
    }.items():
        found.append(_row("SOSRI", sosri, name, _measured(paths, 3, runs=2), sosri))
    if Peer("Diffrax", {}, packages=diffrax_peer.PACKAGES).installed:
        spark = _measured(_diffrax, 4, runs=1)
        found.append(_row("SOSRI", sosri, "Diffrax, SPaRK", spark, sosri, WANTED))
    return found


def _row(
    method: str,
    ours: _Measured,
    name: str,
    peer: _Measured,
    standard: _Measured,
    wanted: float | None = None,
) -> Row:
    return Row(
        f"sde_oval2, {method}",
        name,
        run_ours=ours.seconds,
        run_peer=peer.seconds,
        first_ours=ours.first,
        first_peer=peer.first,
        wanted=wanted,
        note=(
            f"{ours.failed} / {peer.failed} of {oval2.PATHS} failed, means within "
            f"{peer.distance(standard):.1f} standard errors of SOSRI's"
        ),
    )
