"""One small trajectory is compiled as one native function on a CPU; it must be safe everywhere.

XLA's emitter of such functions aborts the whole process where an argument is left unused, which
surroundings decide: constants, control flow, gradients. So the cases run in a process of their own.
"""

import subprocess
import sys

import pytest

SURROUNDINGS = {
    "top": "jax.jit(s)(P, U)",
    "constants": "jax.jit(lambda: s(P, U))()",
    "gradient": "jax.jit(jax.grad(lambda p: s(p, U)))(P)",
    "forward": "jax.jit(lambda p: jax.jvp(lambda p: s(p, U), (p,), (p,))[1])(P)",
    "second": "jax.jit(jax.hessian(lambda p: s(p, U)))(P)",
    "scan": "jax.jit(lambda p: jax.lax.scan("
    "lambda c, _: (c - 1e-3 * jax.grad(s)(c, U), None), p, None, length=2)[0])(P)",
    "branch": "jax.jit(lambda p: jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, "
    "jax.lax.cond(c[0] > 1, lambda q: q + s(p, U), lambda q: q + 1.0, c[1])), (0, 0.0))[1])(P)",
}

SCRIPT = """
import jax, jax.numpy as jnp
jax.config.update("jax_enable_x64", True)
import diffjax as dj
P, U = jnp.array([1.1, 0.7, 0.3]), jnp.array([1.0, 0.5])
FIELDS = {{
    "all used": lambda u, p, t: jnp.stack([p[0] * u[0] - u[0] * u[1], p[1] * u[0] * u[1] - u[1]]),
    "p unused": lambda u, p, t: -u,
    "u unused": lambda u, p, t: jnp.ones(2) * p[0] * jnp.cos(t),
}}
OPTIONS = [
    (dj.RK4(), {{"steps": 4}}),
    (dj.BS3(), {{"saveat": 0.25}}),
    (dj.AutoTsit5(dj.Rosenbrock23()), {{"saveat": 0.5, "max_steps": 256}}),
    (dj.Heun(), {{"saveat": 0.5, "adjoint": dj.DiscreteAdjoint(checkpoints=4), "max_steps": 256}}),
]
for name, field in FIELDS.items():
    # What is not used is found out ahead of the algorithm, so one will do.
    for alg, options in OPTIONS if name == "all used" else OPTIONS[1:2]:
        def s(p, u):
            sol = dj.solve(dj.ODEProblem(field, u, (0.0, 1.0), p), alg, throw=False, **options)
            return jnp.sum(sol.u)
        out = {surroundings}
        assert bool(jnp.all(jnp.isfinite(out))), (name, alg.name, options)
print("done")
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", SURROUNDINGS)
def test_compiles_and_runs_in_every_surrounding(name: str) -> None:
    script = SCRIPT.format(surroundings=SURROUNDINGS[name])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "done"
