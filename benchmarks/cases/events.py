"""What a callback that never fires costs: solves with it beside the same solve without.

At the ends of steps only, and at ten points inside every step too; Lotka-Volterra, and a network of
50 units, next to which a condition is nothing. Over fifty times the usual span: JAX runs a program
of few operations in the calling thread and hands a larger one to another, which in a solve of 20 us
would be most of what is seen.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from benchmarks.case import Row
from benchmarks.problems import lotka_volterra as lv
from benchmarks.timing import Call, interleaved

WIDTH = 50
TSPAN = (0.0, 500.0)
# How much longer the solve may take, by problem and `samples`.
WANTED = {("lv", 0): 1.3, ("lv", 10): 3.5, ("network", 10): 1.2}


def _network(u: Any, p: Any, t: Any) -> Any:
    inner, outer = p
    return outer @ jnp.tanh(inner @ u)


def _problems() -> dict[str, dj.ODEProblem]:
    # Turned by a right angle, the gradient of a convex function: the solution goes round for ever.
    inner = np.random.default_rng(0).normal(size=(WIDTH, 2))
    outer = np.array([[0.0, 1.0], [-1.0, 0.0]]) @ inner.T / WIDTH
    weights = (jnp.asarray(inner), jnp.asarray(outer))
    return {
        "lv": dj.ODEProblem(lv.field, jnp.asarray(lv.U0), TSPAN, jnp.asarray(lv.P)),
        "network": dj.ODEProblem(_network, jnp.asarray(lv.U0), TSPAN, weights),
    }


def _call(prob: dj.ODEProblem, **options: Any) -> Call:
    @jax.jit
    def solve(p: Any) -> Any:
        given: dict[str, Any] = {"rtol": lv.TOL, "atol": lv.TOL, "throw": False, **options}
        return dj.solve(prob, dj.Tsit5(), p=p, **given).u

    return lambda: jax.block_until_ready(solve(prob.p))


def _never(samples: int) -> dj.ContinuousCallback:
    condition: Callable[..., Any] = lambda u, p, t: u[0] + 1e3  # noqa: E731
    return dj.ContinuousCallback(condition, samples=samples)


def rows() -> list[Row]:
    found = []
    for name, prob in _problems().items():
        wanted = {samples: most for (of, samples), most in WANTED.items() if of == name}
        calls = {samples: _call(prob, callback=_never(samples)) for samples in wanted}
        times = interleaved({"without": _call(prob), **{str(k): c for k, c in calls.items()}})
        for samples, most in wanted.items():
            found.append(
                Row(
                    f"events {name} samples={samples}",
                    "without callback",
                    run_ours=times[str(samples)],
                    run_peer=times["without"],
                    wanted=1 / most,
                    note=f"{times[str(samples)] / times['without']:.2f} times, wanted {most}",
                )
            )
    return found
