"""Robertson's reactions as a differential-algebraic equation, its rates recovered from data.

The third equation is no equation of motion but a balance: the three fractions add up to one. A row
of zeros in the mass matrix says so. The logarithms of the three rates, each wrong by a factor of up
to five, are fitted to noisy measurements by the method of Levenberg and Marquardt, whose Jacobian
is the derivative of the solve.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
from common import BLUE, GREEN, GREY, RED, options, plt, save

import diffjax as dj

jax.config.update("jax_enable_x64", True)

TRUE = jnp.log(jnp.array([0.04, 3e7, 1e4]))
START = TRUE + jnp.log(jnp.array([3.0, 0.2, 0.4]))
TIMES = jnp.logspace(-4.0, 6.0, 60)
NOISE = 0.03
SCALE = jnp.array([1.0, 3e4, 1.0])


def robertson(u, p, t):
    a, b, c = u
    k1, k2, k3 = jnp.exp(p)
    slow, fast, back = k1 * a, k2 * b**2, k3 * b * c
    return jnp.stack([back - slow, slow - fast - back, a + b + c - 1.0])


prob = dj.ODEProblem(
    robertson,
    jnp.array([1.0, 0.0, 0.0]),
    (0.0, float(TIMES[-1])),
    mass_matrix=np.array([1.0, 1.0, 0.0]),
)


def solution(p, times=TIMES):
    """The three fractions, the second times 30,000; (times, 3)."""
    tolerances = {"rtol": 1e-6, "atol": 1e-10}
    u = dj.solve(prob, dj.Rodas5P(), p=p, saveat=times, max_steps=512, **tolerances).u
    return SCALE * u


DATA = solution(TRUE) + NOISE * jax.random.normal(jax.random.key(0), (len(TIMES), 3))


def residuals(p):
    return (solution(p) - DATA).reshape(-1)


@jax.jit
def step(p, damping):
    """A damped Gauss-Newton step, taken back if it makes things worse."""
    r, jacobian = residuals(p), jax.jacfwd(residuals)(p)
    normal = jacobian.T @ jacobian
    change = jnp.linalg.solve(normal + damping * jnp.diag(jnp.diag(normal)), -jacobian.T @ r)
    better = jnp.sum(residuals(p + change) ** 2) < jnp.sum(r**2)
    return jnp.where(better, p + change, p), damping * jnp.where(better, 0.2, 5.0), normal


def picture(history):
    figure, (curves, rates) = plt.subplots(1, 2, figsize=(11, 3.8), width_ratios=(3, 2))
    times = jnp.logspace(-4.0, 6.0, 400)
    start, fit = solution(history[0], times), solution(history[-1], times)
    names = ("A", "B, times 30,000", "C")
    for column, color in enumerate((BLUE, RED, GREEN)):
        curves.plot(times, start[:, column], color=GREY, linewidth=1)
        curves.plot(times, fit[:, column], color=color, label=names[column])
        curves.plot(TIMES, DATA[:, column], ".", color=color, markersize=4)
    curves.set(xscale="log", xlabel="t")
    curves.set_title("the fit; grey: the start", loc="left")
    curves.legend()
    for k, color in enumerate((BLUE, RED, GREEN)):
        rates.plot(jnp.exp(history[:, k] - TRUE[k]), color=color, marker=".", label=f"k{k + 1}")
    rates.axhline(1.0, color="black", linewidth=0.8)
    rates.set(yscale="log", xlabel="iterations")
    rates.set_yticks([0.2, 0.5, 1, 2], ["0.2", "0.5", "1", "2"])
    rates.minorticks_off()
    rates.set_title("rate over the true rate", loc="left")
    rates.legend()
    return figure


if __name__ == "__main__":
    args = options(__doc__)
    iterations = 3 if args.quick else 8

    print("Fitting the three rates to 60 noisy measurements over ten decades of time")
    started = time.perf_counter()
    p, damping, history = START, jnp.array(1e-2), [START]
    for _ in range(iterations):
        p, damping, normal = step(p, damping)
        history.append(p)
    print(f"{iterations} iterations in {time.perf_counter() - started:.1f} s, compilation included")
    deviations = NOISE * jnp.sqrt(jnp.diag(jnp.linalg.inv(normal)))
    for k in range(3):
        found, true = jnp.exp(p[k]), jnp.exp(TRUE[k])
        print(f"  k{k + 1} = {found:.4g} +- {100 * deviations[k]:.1f} %, true {true:.4g}")
    save(picture(jnp.stack(history)), args.out, "09_robertson_dae.png")
