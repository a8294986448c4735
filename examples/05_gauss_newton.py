"""Second-order fitting without a matrix: Gauss-Newton and Newton-CG beside Adam.

The four rates of Lotka-Volterra are fitted to noisy counts of rabbits and wolves. Both Newton
methods find their steps by conjugate gradients, which ask only for products with a curvature:
J^T J v is a tangent through the solve and a cotangent back, H v the tangent of a gradient. A step
that makes things worse is taken back, and the damping of Levenberg and Marquardt raised. Both want
a start that is not too far away, Newton-CG more so: far from the answer H need not be positive
definite.
"""

import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import BLUE, GREEN, GREY, RED, options, plt, save
from jax.scipy.sparse.linalg import cg

import diffjax as dj

TRUE = jnp.log(jnp.array([1.5, 1.0, 3.0, 1.0]))
START = jnp.log(jnp.array([1.2, 0.8, 3.5, 1.2]))
TIMES = jnp.linspace(0.0, 10.0, 41)
NOISE = 0.2
# As many iterations as there are rates solve for a step exactly.
CG_ITERATIONS = 4
DAMPING = 100.0


def lotka_volterra(u, p, t):
    x, y = u
    a, b, d, g = jnp.exp(p)  # logarithms keep the rates positive
    return jnp.stack([a * x - b * x * y, -d * y + g * x * y])


prob = dj.ODEProblem(lotka_volterra, jnp.array([1.0, 1.0]), (0.0, 10.0), TRUE)


def solution(p, times=TIMES):
    return dj.solve(prob, dj.Tsit5(), p=p, saveat=times, rtol=1e-5, atol=1e-5, max_steps=256).u


DATA = solution(TRUE) + NOISE * jax.random.normal(jax.random.key(1), (len(TIMES), 2))


def residuals(p):
    return (solution(p) - DATA).reshape(-1)


def loss(p):
    return jnp.sum(residuals(p) ** 2) / 2


def gauss_newton(p):
    """v -> J^T J v, where J is the Jacobian of the residuals: a jvp, then a vjp."""
    _, push = jax.linearize(residuals, p)
    pull = jax.linear_transpose(push, p)
    return lambda v: pull(push(v))[0]


def hessian(p):
    """v -> H v, where H is the Hessian of the loss: a jvp of the gradient."""
    _, product = jax.linearize(jax.grad(loss), p)
    return product


@partial(jax.jit, static_argnums=0)
def damped_step(curvature, p, value, damping):
    """A step to where the quadratic model is least, taken back if the loss grows."""
    product = curvature(p)
    step, _ = cg(lambda v: product(v) + damping * v, -jax.grad(loss)(p), maxiter=CG_ITERATIONS)
    tried = loss(p + step)
    better = tried < value
    return (
        jnp.where(better, p + step, p),
        jnp.where(better, tried, value),
        damping * jnp.where(better, 0.1, 5.0),
    )


def by_steps_of_newton(curvature, steps):
    """The rates that `steps` damped steps lead to, and the loss along the way."""
    state = START, loss(START), jnp.array(DAMPING)
    losses = [state[1]]
    for _ in range(steps):
        state = damped_step(curvature, *state)
        losses.append(state[1])
    return state[0], np.asarray(losses)


def by_adam(steps):
    rate = optax.cosine_decay_schedule(0.05, steps)
    result = dj.train(loss, START, optax.adam(rate), steps, progress=False)
    return result.params, result.losses


def picture(fits, solves, lowest):
    figure, (descent, curves) = plt.subplots(1, 2, figsize=(11, 3.8), width_ratios=(2, 3))
    times = jnp.linspace(0.0, 10.0, 501)
    curves.plot(times, solution(START, times), color=GREY, linewidth=1)
    looks = (BLUE, "solid"), (RED, (0, (5, 4))), (GREEN, "dotted")
    for (name, (p, losses)), (color, look) in zip(fits.items(), looks, strict=True):
        spent = 1 + solves[name] * np.arange(len(losses))
        descent.loglog(spent, losses - lowest, color=color, label=name, marker=".", markersize=4)
        curves.plot(times, solution(p, times), color=color, linestyle=look)
    # Below, the tolerance of the solves and single precision make it noise.
    descent.set_ylim(bottom=3e-4)
    descent.set(xlabel="solves, tangents and cotangents counted", ylabel="loss above the lowest")
    descent.legend(fontsize="small")
    for species, marker, name in ((0, "o", "rabbits"), (1, "s", "wolves")):
        curves.plot(TIMES, DATA[:, species], marker, color="black", markersize=3.5, label=name)
    curves.set(xlabel="t", ylabel="population")
    curves.set_title("all three fits; grey: the start", loc="left")
    curves.legend(ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    return figure


if __name__ == "__main__":
    args = options(__doc__)
    few, many = (3, 10) if args.quick else (15, 1000)

    print("Fitting the rates of Lotka-Volterra to noisy data, thrice from the same start")
    methods = {
        "Gauss-Newton": (partial(by_steps_of_newton, gauss_newton), few),
        "Newton-CG": (partial(by_steps_of_newton, hessian), few),
        "Adam": (by_adam, many),
    }
    fits = {}
    for name, (method, steps) in methods.items():
        started = time.perf_counter()
        fits[name] = method(steps)
        seconds = time.perf_counter() - started
        print(f"{name:>12}: {steps} steps in {seconds:.1f} s, compilation included")

    # A solve, a tangent through it and a cotangent back count one each. A gradient takes two. A
    # damped step takes one, a product for each iteration of CG and one more, the loss at its end,
    # and first what is linearized: the residuals, or the gradient.
    damped = 2 + 2 * (CG_ITERATIONS + 1) + 1
    solves = {"Gauss-Newton": 1 + damped, "Newton-CG": 2 + damped, "Adam": 2}
    lowest = min(losses.min() for _, losses in fits.values())
    print(f"  true rates: (1.500, 1.000, 3.000, 1.000), loss {loss(TRUE):.4f}")
    for name, (p, losses) in fits.items():
        rates = ", ".join(f"{rate:.3f}" for rate in jnp.exp(p))
        near = np.flatnonzero(losses < 1.001 * lowest)
        when = f"{near[0]} steps, {solves[name] * near[0]} solves" if len(near) else "not"
        print(f"{name:>12}: rates ({rates}), loss {losses[-1]:.4f}, lowest + 0.1 % after {when}")
    save(picture(fits, solves, lowest), args.out, "05_gauss_newton.png")
