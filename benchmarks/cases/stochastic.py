"""Stochastic equations: 10,000 paths of Euler-Maruyama, and adaptive steps at equal strong error.

Fixed steps are the same method everywhere, so there is no error to match: 100 steps of two
equations with diagonal noise, in single precision. The adaptive case is measured by the root mean
square, over 1,000 paths, of the error at the end against the closed form on each solver's own path.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from benchmarks.case import OURS, Case, Maker, Peer, Row
from benchmarks.jaxrun import jit_maker
from benchmarks.peers import diffrax_peer
from benchmarks.problems import stochastic as sde
from benchmarks.timing import Call, interleaved

PATHS, STEPS, DIM = 10_000, 100, 2
RATE, STRENGTH = np.float32(-1.0), np.float32(0.3)
DT = np.float32(1 / STEPS)
WANTED = {"Diffrax tree": 25.0, "Diffrax unsafe path": 2.5, "bare scan": 1 / 1.3}


def _euler_ours() -> Callable[[], Any]:
    prob = dj.SDEProblem(
        lambda u, p, t: RATE * u,
        lambda u, p, t: STRENGTH * u,
        jnp.ones(DIM, jnp.float32),
        sde.TSPAN,
    )

    def one(key: jax.Array) -> jax.Array:
        return dj.solve(prob, dj.EM(), steps=STEPS, key=key, throw=False).u[-1]

    return _bound(jax.vmap(one), jax.random.split(jax.random.key(0), PATHS))


def _bare() -> Callable[[], Any]:
    """One batched draw a step, which is the least that JAX can do with its own generator."""

    def run(key: jax.Array) -> jax.Array:
        def step(u: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
            dw = jax.random.normal(jax.random.fold_in(key, i), u.shape, u.dtype) * np.sqrt(DT)
            return u + DT * RATE * u + STRENGTH * u * dw, None

        start = jnp.ones((PATHS, DIM), jnp.float32)
        return jax.lax.scan(step, start, jnp.arange(STEPS))[0]

    return _bound(run, jax.random.key(0))


def _euler_diffrax(tree: bool) -> Callable[[], Any]:
    import diffrax
    import lineax

    times = jnp.linspace(0, 1, STEPS + 1, dtype=jnp.float32)
    shape = jax.ShapeDtypeStruct((DIM,), jnp.float32)

    def one(key: jax.Array) -> jax.Array:
        if tree:
            path = diffrax.VirtualBrownianTree(times[0], times[-1], DT / 2, shape, key)
        else:
            path = diffrax.UnsafeBrownianPath(shape, key)
        noise = diffrax.ControlTerm(
            lambda t, u, _: lineax.DiagonalLinearOperator(STRENGTH * u), path
        )
        terms = diffrax.MultiTerm(diffrax.ODETerm(lambda t, u, _: RATE * u), noise)
        return diffrax.diffeqsolve(
            terms,
            diffrax.Euler(),
            times[0],
            times[-1],
            None,
            jnp.ones(DIM, jnp.float32),
            stepsize_controller=diffrax.StepTo(times),
            adjoint=diffrax.ForwardMode(),
            max_steps=STEPS + 1,
            throw=False,
        ).ys[-1]

    return _bound(jax.vmap(one), jax.random.split(jax.random.key(0), PATHS))


def _bound(function: Callable[[Any], Any], argument: Any) -> Call:
    compiled = jax.jit(function)
    return lambda: jax.block_until_ready(compiled(argument))


def euler_rows() -> list[Row]:
    calls: dict[str, Call] = {OURS: _euler_ours(), "bare scan": _bare()}
    if Peer("Diffrax", {}, packages=diffrax_peer.PACKAGES).installed:
        calls |= {"Diffrax unsafe path": _euler_diffrax(tree=False)}
        calls |= {"Diffrax tree": _euler_diffrax(tree=True)}
    run = interleaved(calls)
    return [
        Row("sde_euler", name, run_ours=run[OURS], run_peer=run[name], wanted=WANTED[name])
        for name in calls
        if name != OURS
    ]


def _ours(alg: dj.Algorithm) -> Maker:
    prob = dj.SDEProblem(
        lambda u, p, t: sde.ito_drift(u),
        lambda u, p, t: sde.diffusion(u),
        jnp.array([sde.U0]),
        sde.TSPAN,
    )

    def errors(inputs: Any, tol: jax.Array) -> jax.Array:
        def one(key: jax.Array) -> jax.Array:
            path = dj.noise.VirtualBrownianTree(*sde.TSPAN, dim=1, key=key)
            settings: dict[str, Any] = {"rtol": tol, "atol": tol, "max_steps": 8_192}
            sol = dj.solve(prob, alg, path=path, throw=False, **settings)
            return sol.u[-1] - sde.exact(sde.TSPAN[1], path(sde.TSPAN[1]), jnp)

        return jax.vmap(one)(inputs[0])

    return jit_maker(errors, _inputs())


def _diffrax(solver: str, half: bool, ito: bool) -> Maker:
    import diffrax
    import lineax

    made = getattr(diffrax, solver)()
    made = diffrax.HalfSolver(made) if half else made
    drift = sde.ito_drift if ito else sde.stratonovich_drift
    area = None if ito else diffrax.SpaceTimeLevyArea
    # A `HalfSolver` of Diffrax 0.7.2 works with its default adjoint alone.
    adjoint = diffrax.RecursiveCheckpointAdjoint() if half else diffrax.ForwardMode()

    def errors(inputs: Any, tol: jax.Array) -> jax.Array:
        def one(key: jax.Array) -> jax.Array:
            shape = jax.ShapeDtypeStruct((1,), float)
            levy = {} if area is None else {"levy_area": area}
            path = diffrax.VirtualBrownianTree(*sde.TSPAN, 2.0**-14, shape, key, **levy)
            noise = diffrax.ControlTerm(
                lambda t, u, _: lineax.DiagonalLinearOperator(sde.diffusion(u)), path
            )
            terms = diffrax.MultiTerm(diffrax.ODETerm(lambda t, u, _: drift(u)), noise)
            sol = diffrax.diffeqsolve(
                terms,
                made,
                *sde.TSPAN,
                0.01,
                jnp.array([sde.U0]),
                stepsize_controller=diffrax.PIDController(
                    rtol=tol, atol=tol, pcoeff=0.1, icoeff=0.3, dtmin=2.0**-13
                ),
                adjoint=adjoint,
                max_steps=8_192,
                throw=False,
            )
            w = path.evaluate(sde.TSPAN[0], sde.TSPAN[1])
            return sol.ys[-1] - sde.exact(sde.TSPAN[1], w, jnp)

        return jax.vmap(one)(inputs[0])

    return jit_maker(errors, _inputs())


def _inputs() -> tuple[Any, Any]:
    """Keys, and a number that says in what precision the tolerance is."""
    keys = jax.vmap(jax.random.key_data)(jax.random.split(jax.random.key(1), sde.LANES))
    return keys, np.zeros(1)


def _strong(errors: jax.Array) -> float:
    return float(np.sqrt(np.mean(np.asarray(errors) ** 2)))


def sde_adaptive() -> Case:
    variants: dict[str, Maker] = (
        {
            "SPaRK": _diffrax("SPaRK", half=False, ito=False),
            "HalfSolver(GeneralShARK)": _diffrax("GeneralShARK", half=True, ito=False),
            "HalfSolver(ItoMilstein)": _diffrax("ItoMilstein", half=True, ito=True),
        }
        if Peer("Diffrax", {}, packages=diffrax_peer.PACKAGES).installed
        else {}
    )
    # A thousand paths make the error a smooth function of the tolerance.
    peer = Peer("Diffrax", variants, wanted=5.0, packages=diffrax_peer.PACKAGES, sweep_points=3)
    return Case("sde_adaptive", 1e-3, _ours(dj.SOSRI()), (peer,), _strong)


def sde_adaptive_em() -> Case:
    """At an error that adaptive Euler-Maruyama reaches in some thousand steps."""
    peer = Peer("ours, LambaEM", {"": _ours(dj.LambaEM())}, sweep_points=5)
    return Case("sde_adaptive_em", 3e-2, _ours(dj.SOSRI()), (peer,), _strong)
