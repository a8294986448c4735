"""Robertson's reactions over eleven decades of time, and what becomes of an explicit method there.

Three substances, A -> B, B + B -> C + B, B + C -> A + C, at rates nine orders of magnitude apart.
After the first instant nothing fast happens any more, so an implicit method lengthens its steps
until they span years. An explicit one must resolve the fast reaction for ever, or it blows up: its
step stays where its stability ends, whatever the tolerance.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
from common import BLUE, GREEN, GREY, RED, options, plt, save

import diffjax as dj

# The smallest concentration that matters is 1e-13.
jax.config.update("jax_enable_x64", True)
TOLERANCES = {"rtol": 1e-6, "atol": 1e-14}


def robertson(u, p, t):
    a, b, c = u
    k1, k2, k3 = p
    slow, fast, back = k1 * a, k2 * b**2, k3 * b * c
    return jnp.stack([back - slow, slow - fast - back, fast])


prob = dj.ODEProblem(
    robertson, jnp.array([1.0, 0.0, 0.0]), (0.0, 1e11), jnp.array([0.04, 3e7, 1e4])
)


def steps(alg, most):
    """Times and states of the steps that were accepted, until `most` were tried."""
    sol = dj.solve(prob, alg, saveat="steps", max_steps=most, throw=False, **TOLERANCES)
    n = int(sol.n)
    return sol, np.asarray(sol.t[:n]), np.asarray(sol.u[:n])


def milliseconds(alg):
    """Of a warm solve for the final state."""
    end = jax.jit(lambda prob: dj.solve(prob, alg, max_steps=4096, **TOLERANCES).u_end)
    end(prob).block_until_ready()
    started = time.perf_counter()
    end(prob).block_until_ready()
    return 1e3 * (time.perf_counter() - started)


def picture(implicit, explicit):
    figure, (curves, sizes) = plt.subplots(1, 2, figsize=(11, 3.8))
    _, t, u = implicit
    names = ("A", "B, times 30,000", "C")
    for column, (scale, color) in enumerate(((1, BLUE), (3e4, RED), (1, GREEN))):
        curves.plot(t[1:], scale * u[1:, column], color=color, label=names[column])
    _, reached, v = explicit
    for column, scale in enumerate((1, 3e4, 1)):
        curves.plot(reached[1:], scale * v[1:, column], color="black", linewidth=0.8, dashes=(2, 2))
    curves.axvspan(reached[-1], t[-1], color=GREY, alpha=0.25, linewidth=0)
    curves.text(3 * reached[-1], 1.07, "never reached by Tsit5", fontsize="small")
    curves.set(xscale="log", xlim=(1e-6, t[-1]), ylim=(-0.03, 1.15), xlabel="t")
    curves.set_title("concentrations; dashed: Tsit5", loc="left")
    curves.legend(loc="center right")
    for (_, times, _), color, name in ((implicit, BLUE, "Rodas5P"), (explicit, RED, "Tsit5")):
        label = f"{name}, {len(times) - 1:,} steps"
        sizes.loglog(times[1:], np.diff(times), color=color, label=label)
    sizes.set(xlabel="t", xlim=(1e-6, t[-1]))
    sizes.set_title("length of a step", loc="left")
    sizes.legend()
    return figure


if __name__ == "__main__":
    args = options(__doc__)
    most = 10_000 if args.quick else 100_000

    implicit, explicit = steps(dj.Rodas5P(), 4096), steps(dj.Tsit5(), most)
    sol, t, u = implicit
    print(f"Rodas5P: {sol.retcode.name} at t = {t[-1]:.0e} after {len(t) - 1} steps")
    print(f"         {milliseconds(dj.Rodas5P()):.2f} ms, once compiled")
    print(f"         A, B, C = {u[-1, 0]:.6e}, {u[-1, 1]:.6e}, {u[-1, 2]:.6f}")
    stuck, reached, _ = explicit
    step = np.median(np.diff(reached)[-1000:])
    print(f"Tsit5:   {stuck.retcode.name} at t = {reached[-1]:.1f} after {most} steps")
    print(f"         at {step:.0e} a step {1e11 / step:.0e} are left to t = 1e11")
    save(picture(implicit, explicit), args.out, "07_robertson.png")
