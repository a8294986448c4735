"""A neural ordinary differential equation, trained from data.

Thirty points of a spiral, u' = A^T u^3, are all that a network gets to see. It learns the vector
field: its solution goes through the points, and follows the spiral some way beyond the last.
"""

import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import BLUE, GREY, RED, options, plt, save

import diffjax as dj

A = jnp.array([[-0.1, 2.0], [-2.0, -0.1]])
U0 = jnp.array([2.0, 0.0])
T_DATA, T_END = 1.5, 2.25
TIMES = jnp.linspace(0.0, T_DATA, 30)


def true_spiral(times):
    prob = dj.ODEProblem(lambda u, A, t: u**3 @ A, U0, (0.0, T_END), A)
    return dj.solve(prob, dj.Tsit5(), saveat=times, rtol=1e-5).u


DATA = true_spiral(TIMES)


def new_network(key):
    mlp = eqx.nn.MLP(2, 2, width_size=50, depth=1, activation=jnp.tanh, key=key)
    # The cubes reach 8, where tanh would start out flat; small weights keep the field smooth.
    mlp = eqx.tree_at(lambda mlp: mlp.layers[0].weight, mlp, replace_fn=lambda w: 0.2 * w)
    return eqx.nn.Sequential([eqx.nn.Lambda(lambda u: u**3), mlp])


def loss(network):
    layer = dj.neural.NeuralODE(network, (0.0, T_DATA), dj.Tsit5(), saveat=TIMES, rtol=1e-4)
    return jnp.sum((layer(U0) - DATA) ** 2)


def picture(times, fitted, truth, losses):
    figure, (plane, over_time, descent) = plt.subplots(
        1, 3, figsize=(11, 3.5), width_ratios=(1, 1.3, 1)
    )
    beyond = times >= T_DATA
    thick = {"color": GREY, "linewidth": 4, "alpha": 0.6, "zorder": 0}
    dashed = {"color": RED, "linestyle": "--"}
    points = {"color": "black", "linestyle": "", "marker": "o", "markersize": 4}
    plane.plot(*truth.T, **thick, label="true spiral")
    plane.plot(*fitted[~beyond].T, color=BLUE, label="neural ODE")
    plane.plot(*fitted[beyond].T, **dashed, label="beyond the data")
    plane.plot(*DATA.T, **points, label="data")
    plane.set(xlabel="$u_1$", ylabel="$u_2$", aspect="equal", xlim=(-2.3, 2.3), ylim=(-2.3, 2.3))
    figure.legend(*plane.get_legend_handles_labels(), ncols=4, loc="outside upper center")

    over_time.plot(times, truth, **thick)
    over_time.plot(times[~beyond], fitted[~beyond], color=BLUE)
    over_time.plot(times[beyond], fitted[beyond], **dashed)
    over_time.plot(TIMES, DATA, **points)
    over_time.axvspan(T_DATA, T_END, color=RED, alpha=0.06, linewidth=0)
    over_time.set(xlabel="t", ylabel="$u_1$, $u_2$", xlim=(0.0, T_END))

    descent.semilogy(losses, color=BLUE, linewidth=0.8, alpha=0.3)
    descent.semilogy(np.minimum.accumulate(losses), color=BLUE)
    descent.set(xlabel="training step", ylabel="sum of squares")
    return figure


if __name__ == "__main__":
    args = options(__doc__)
    steps = 20 if args.quick else 3000
    started = time.perf_counter()

    print("Training a neural ODE on 30 points of a spiral")
    # So does weight decay; a smooth field is what carries the solution beyond the data.
    rate = optax.cosine_decay_schedule(0.05, steps)
    optimizer = optax.adamw(rate, b2=0.99, weight_decay=0.1)
    result = dj.train(loss, new_network(jax.random.key(0)), optimizer, steps)
    seconds = time.perf_counter() - started
    print(f"sum of squares: {result.losses[0]:.1f} before, {min(result.losses):.2g} after training")
    print(f"{seconds:.1f} s, compilation included")

    times = jnp.linspace(0.0, T_END, 451)
    layer = dj.neural.NeuralODE(result.best, (0.0, T_END), dj.Tsit5(), saveat=times, rtol=1e-4)
    fitted, truth = layer(U0), true_spiral(times)
    error = jnp.linalg.norm(fitted[-1] - truth[-1])
    print(f"distance from the true spiral at t = {T_END}, half as far again: {error:.2f}")
    save(picture(times, fitted, truth, result.losses), args.out, "02_neural_ode_spiral.png")
