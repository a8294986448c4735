"""One small trajectory is compiled as one native function on a CPU; it must be safe everywhere.

XLA's emitter of such functions aborts the whole process where an argument is left unused, which
surroundings decide: constants, control flow, gradients. So the cases run in a process of their own.
"""

import subprocess
import sys

import pytest

SCRIPT = """
import sys
import jax, jax.numpy as jnp
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_traceback_in_locations_limit", 0)
import diffjax as dj

P, U = jnp.array([1.1, 0.7, 0.3]), jnp.array([1.0, 0.5])

def again(p, s):
    def step(c):
        k, q = c
        return k + 1, jax.lax.cond(k > 1, lambda q: q + s(p, U), lambda q: q + 1.0, q)
    return jax.lax.while_loop(lambda c: c[0] < 3, step, (0, 0.0))[1]

SURROUNDINGS = {
    "top": lambda s: jax.jit(s)(P, U),
    "constants": lambda s: jax.jit(lambda: s(P, U))(),
    "gradient": lambda s: jax.jit(jax.grad(lambda p: s(p, U)))(P),
    "forward": lambda s: jax.jit(lambda p: jax.jvp(lambda p: s(p, U), (p,), (p,))[1])(P),
    "second": lambda s: jax.jit(lambda p: jax.jvp(
        jax.grad(lambda p: s(p, U)), (p,), (p,))[1])(P),
    "scan": lambda s: jax.jit(lambda p: jax.lax.scan(
        lambda c, _: (c - 1e-3 * jax.grad(s)(c, U), None), p, None, length=2)[0])(P),
    "branch": lambda s: jax.jit(lambda p: again(p, s))(P),
}
FIELDS = {
    "all used": lambda u, p, t: jnp.stack([p[0] * u[0] - u[0] * u[1], p[1] * u[0] * u[1] - u[1]]),
    "p unused": lambda u, p, t: -u,
    "u unused": lambda u, p, t: jnp.ones(2) * p[0] * jnp.cos(t),
}
OPTIONS = [
    (dj.RK4(), {"steps": 4}),
    (dj.BS3(), {"saveat": 0.25}),
    (dj.Heun(), {"saveat": 0.5, "adjoint": dj.DiscreteAdjoint(checkpoints=4), "max_steps": 256}),
    (dj.BS3(), {"saveat": 0.5, "adjoint": dj.ForwardMode()}),
    (dj.AutoTsit5(dj.Rosenbrock23()), {"saveat": 0.5, "max_steps": 256}),
]
for name in sys.argv[1:]:
    for field in FIELDS:
        # What is not used is found out ahead of the algorithm, so one will do; and the largest
        # program is one of these in two surroundings.
        most = 1 if field != "all used" else 5 if name in ("top", "gradient") else 4
        for alg, options in OPTIONS[:most]:
            print(name, field, alg.name, flush=True)
            def s(p, u):
                prob = dj.ODEProblem(FIELDS[field], u, (0.0, 1.0), p)
                return jnp.sum(dj.solve(prob, alg, throw=False, **options).u)
            assert bool(jnp.all(jnp.isfinite(SURROUNDINGS[name](s))))
print("done")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [("top", "constants", "gradient"), ("forward", "second"), ("scan", "branch")],
    ids="-".join,
)
def test_compiles_and_runs_in_every_surrounding(names: tuple[str, ...]) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, *names], capture_output=True, text=True)
    # The last line of the output is what was compiled last.
    assert done.returncode == 0, done.stdout[-200:] + done.stderr[-2000:]
    assert done.stdout.split()[-1] == "done"
