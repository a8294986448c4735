"""Parameters of a differential equation, fitted by gradient descent through its solution.

Rabbits x and wolves y live by the Lotka-Volterra equations. Which birth and death rates keep the
number of rabbits at one? Start from rates that make it oscillate and go down the gradient of the
squared distance.
"""

import jax.numpy as jnp
import optax
from common import BLUE, GREY, RED, options, plt, save

import diffjax as dj


def lotka_volterra(u, p, t):
    x, y = u
    a, b, d, g = p
    return jnp.stack([a * x - b * x * y, -d * y + g * x * y])


prob = dj.ODEProblem(
    lotka_volterra, u0=jnp.array([1.0, 1.0]), tspan=(0.0, 10.0), p=jnp.array([2.2, 1.0, 2.0, 0.4])
)


def solution(p):
    return dj.solve(prob, dj.Tsit5(), p=p, saveat=0.1, rtol=1e-5, atol=1e-5)


def loss(p):
    return jnp.sum((solution(p).u[:, 0] - 1.0) ** 2)


if __name__ == "__main__":
    args = options(__doc__)
    steps = 10 if args.quick else 100

    print("Fitting the rates of Lotka-Volterra so that x(t) = 1")
    result = dj.train(loss, prob.p, optax.adam(0.1), steps)
    for name, p in (("before", prob.p), ("after", result.params)):
        rates = ", ".join(f"{rate:.3f}" for rate in p)
        print(f"{name:>6}: rates ({rates}), loss {loss(p):.4g}")

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), width_ratios=(3, 2))
    for p, when, look in ((prob.p, "before", "dotted"), (result.params, "fitted", "solid")):
        for var, name, color in ((0, "rabbits", BLUE), (1, "wolves", RED)):
            solution(p).plot(ax=left, vars=var, labels=[f"{name} {when}"], color=color, ls=look)
    left.axhline(1.0, color=GREY, linewidth=1, zorder=0)
    left.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize="small")
    left.set_ylabel("population")
    right.semilogy(result.losses, color=BLUE)
    right.set(xlabel="step of Adam", ylabel="loss")
    save(figure, args.out, "01_fit_lotka_volterra.png")
