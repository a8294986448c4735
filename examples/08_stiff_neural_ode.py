"""A stiff neural ODE: known kinetics, and a network for what is not known of them.

An enzyme binds its substrate within microseconds and turns it over within minutes. How the binding
goes is known, and that is what makes the equations stiff; how the product slows the enzyme down is
not, and a network of the product's concentration stands in its place. It is trained on noisy
measurements of substrate and product alone, through an implicit solver: an explicit one would take
sixty million steps for each solve.
"""

import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import BLUE, GREY, RED, options, plt, save

import diffjax as dj

jax.config.update("jax_enable_x64", True)

ENZYME, BINDING, RELEASE, TURNOVER = 0.01, 1e5, 1e3, 1.0
START = jnp.array([1.0, 0.0, 0.0])  # substrate, complex, product
TIMES = jnp.logspace(0.0, 3.3, 40)
NOISE = 0.01


def true_activity(product):
    """How much of the enzyme's speed is left: two molecules of the product block it."""
    return 1.0 / (1.0 + (product / 0.3) ** 2)


def kinetics(u, activity, t):
    substrate, bound, product = u
    binding = BINDING * (ENZYME - bound) * substrate - RELEASE * bound
    turnover = TURNOVER * bound * activity(product)
    return jnp.stack([-binding, binding - turnover, turnover])


class Activity(eqx.Module):
    """A network between 0 and 1."""

    network: eqx.nn.MLP

    def __call__(self, product):
        return jax.nn.sigmoid(self.network(product[None])[0])


prob = dj.ODEProblem(kinetics, START, (0.0, float(TIMES[-1])))


def solution(activity, times=TIMES):
    """Substrate, complex and product, (times, 3)."""
    tolerances = {"rtol": 1e-5, "atol": 1e-8}
    return dj.solve(prob, dj.Rodas5P(), p=activity, saveat=times, max_steps=256, **tolerances).u


def size(network):
    """How many numbers there are in it."""
    return sum(x.size for x in jax.tree.leaves(eqx.filter(network, eqx.is_array)))


def measured(u):
    """Substrate and product."""
    return u[:, jnp.array([0, 2])]


def picture(before, after, data):
    figure, (curves, learned) = plt.subplots(1, 2, figsize=(11, 3.8))
    times = jnp.logspace(-6.0, float(jnp.log10(TIMES[-1])), 400)
    for name, activity, style in (
        ("the truth", true_activity, {"color": "black", "linewidth": 0.8}),
        ("untrained", before, {"color": GREY}),
        ("trained", after, {"color": BLUE, "linestyle": "--"}),
    ):
        u = solution(activity, times)
        curves.plot(times, u[:, 0], label=name, **style)
        curves.plot(times, u[:, 2], **style)
        curves.plot(times, u[:, 1] / ENZYME, **style)
        products = jnp.linspace(0.0, 1.0, 201)
        learned.plot(products, jax.vmap(activity)(products), label=name, **style)
    curves.plot(TIMES, data, ".", color=RED, markersize=4)
    curves.text(2e-6, 1.03, "substrate")
    curves.text(2e-6, 0.03, "product")
    curves.text(4e-5, 0.55, "enzyme\noccupied")
    curves.set(xscale="log", xlabel="t", ylim=(-0.05, 1.12), xlim=(1e-6, float(TIMES[-1])))
    curves.set_title("red: the measurements", loc="left")
    learned.set(xlabel="product", xlim=(0.0, 1.0), ylim=(0.0, 1.05))
    learned.set_title("activity of the enzyme, as learned", loc="left")
    learned.legend()
    return figure


if __name__ == "__main__":
    args = options(__doc__)
    steps = 20 if args.quick else 300

    noise = NOISE * jax.random.normal(jax.random.key(1), (len(TIMES), 2))
    data = measured(solution(true_activity)) + noise
    network = eqx.nn.MLP(1, 1, width_size=8, depth=1, activation=jnp.tanh, key=jax.random.key(0))
    before = Activity(network)

    def loss(activity):
        return jnp.mean((measured(solution(activity)) - data) ** 2)

    print(f"Training a network of {size(network)} weights on {len(TIMES)} measurements")
    started = time.perf_counter()
    adam = optax.adam(optax.cosine_decay_schedule(0.05, steps))
    result = dj.train(loss, before, adam, steps)
    after = result.best
    print(f"{steps} steps in {time.perf_counter() - started:.1f} s, compilation included")
    print(f"root mean square misfit {np.sqrt(result.losses[-1]):.4f}, noise {NOISE}")
    products = jnp.linspace(0.0, 1.0, 101)
    off = jnp.max(jnp.abs(jax.vmap(after)(products) - true_activity(products)))
    print(f"activity within {off:.3f} of the truth")
    save(picture(before, after, data), args.out, "08_stiff_neural_ode.png")
