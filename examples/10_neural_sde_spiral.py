"""A neural stochastic differential equation, trained to the moments of noisy spirals.

The data are the mean and the variance of 100 paths of du = A^T u^3 dt + 0.2 u dW at thirty times. A
network for the drift and a layer for the diffusion are trained first on single paths, which leads
the drift to the mean and shrinks the noise, then on the moments of 10 and of 100 paths at once,
which gives the noise back. Every training step draws new paths.
"""

import time

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from common import BLUE, GREY, RED, options, plt, save

import diffjax as dj

A = jnp.array([[-0.1, 2.0], [-2.0, -0.1]])
NOISE = 0.2
U0 = jnp.array([2.0, 0.0])
SPAN = (0.0, 1.0)
TIMES = jnp.linspace(*SPAN, 30)
# Two fixed steps from each time to the next: under vmap adaptive paths would wait for the slowest.
STEPS = 58
TRAJECTORIES = 100


def moments(paths):
    """Mean and variance at each time, of paths with a leading axis."""
    return jnp.mean(paths, axis=0), jnp.var(paths, axis=0)


def true_spirals(key):
    prob = dj.SDEProblem(lambda u, A, t: u**3 @ A, lambda u, A, t: NOISE * u, U0, SPAN, A)
    many = dj.EnsembleProblem(prob)
    tolerances = {"rtol": 1e-2, "atol": 1e-2}
    return dj.solve(many, key=key, trajectories=TRAJECTORIES, saveat=TIMES, **tolerances).u


DATA = moments(true_spirals(jax.random.key(1)))


def new_networks(key):
    first, second = jax.random.split(key)
    mlp = eqx.nn.MLP(2, 2, width_size=50, depth=1, activation=jnp.tanh, key=first)
    # The cubes reach 8, where tanh would start out flat.
    mlp = eqx.tree_at(lambda mlp: mlp.layers[0].weight, mlp, replace_fn=lambda w: 0.2 * w)
    drift = eqx.nn.Sequential([eqx.nn.Lambda(lambda u: u**3), mlp])
    return drift, eqx.nn.Linear(2, 2, key=second)


def paths(networks, keys):
    """A path for each key."""
    layer = dj.neural.NeuralDSDE(*networks, SPAN, dj.SOSRI(), steps=STEPS, saveat=TIMES)
    return jax.vmap(lambda key: layer(U0, key=key))(keys)


def loss_of_one(networks, keys):
    return jnp.sum((paths(networks, keys) - DATA[0]) ** 2)


def loss_of_moments(networks, keys):
    mean, variance = moments(paths(networks, keys))
    return jnp.sum((mean - DATA[0]) ** 2) + jnp.sum((variance - DATA[1]) ** 2)


def draws(key, count):
    """New keys for every training step."""
    while True:
        key, now = jax.random.split(key)
        yield jax.random.split(now, count)


def train(networks, stages):
    losses = []
    for number, (loss, count, steps, rate) in enumerate(stages):
        started = time.perf_counter()
        batches = draws(jax.random.key(10 + number), count)
        optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps, alpha=0.05))
        result = dj.train(loss, networks, optimizer, steps, batches=batches)
        # Losses are random: the last parameters, and not those that had the luckiest draw.
        networks = result.params
        losses.append(result.losses)
        last = result.losses[-max(1, steps // 10) :].mean()
        seconds = time.perf_counter() - started
        print(
            f"{steps:4d} steps on {count:3d} paths: loss {result.losses[0]:.3g} before, "
            f"{last:.3g} after (mean of the last tenth), {seconds:.1f} s"
        )
    return networks, losses


def ribbons(axes, model):
    """Mean and two standard deviations of the data (black, grey) and of a model."""
    data = (DATA, (GREY, GREY), {"color": "black", "linestyle": "--"}, "data")
    fitted = (model, (BLUE, RED), {}, "neural SDE")
    for (mean, variance), colors, look, name in (data, fitted):
        for i, color in enumerate(colors):
            width = 2 * jnp.sqrt(variance[:, i])
            low, high = mean[:, i] - width, mean[:, i] + width
            axes.fill_between(TIMES, low, high, color=color, alpha=0.3, linewidth=0)
            label = f"$u_{i + 1}$, {name}"
            axes.plot(TIMES, mean[:, i], **{"color": color, "label": label, **look})
    axes.set(xlabel="t", xlim=SPAN, ylim=(-3.0, 3.3))


def picture(before, after, losses):
    figure, (start, end, descent) = plt.subplots(1, 3, figsize=(11, 3.6))
    ribbons(start, before)
    start.set_title("before training", loc="left")
    ribbons(end, after)
    end.set_title("after: mean and two standard deviations", loc="left")
    curves, labels = end.get_legend_handles_labels()
    figure.legend(curves[1:], ["data", *labels[2:]], ncols=3, loc="outside upper center")
    begin, stages = 0, zip(losses, (GREY, RED, BLUE), ("1", "10", "100"), strict=True)
    for values, color, name in stages:
        steps = range(begin, begin + len(values))
        descent.semilogy(steps, values, color=color, linewidth=0.8, label=name)
        begin += len(values)
    descent.set(xlabel="training step", ylabel="sum of squares")
    descent.legend(title="paths a step", fontsize="small")
    return figure


if __name__ == "__main__":
    args = options(__doc__)
    one, ten, hundred = (20, 20, 10) if args.quick else (300, 400, 500)

    print("Training a neural SDE on the moments of 100 noisy spirals")
    networks = new_networks(jax.random.key(0))
    stages = (
        (loss_of_one, 1, one, 0.03),
        (loss_of_moments, 10, ten, 0.02),
        (loss_of_moments, TRAJECTORIES, hundred, 0.01),
    )
    unseen = jax.random.split(jax.random.key(2), 1000)
    before = moments(paths(networks, unseen))
    networks, losses = train(networks, stages)
    after = moments(paths(networks, unseen))
    for i, name in enumerate(("mean", "variance")):
        wrong = [jnp.sqrt(jnp.mean((model[i] - DATA[i]) ** 2)) for model in (before, after)]
        print(f"rms error of the {name} of 1000 new paths: {wrong[0]:.3g}, now {wrong[1]:.3g}")
    save(picture(before, after, losses), args.out, "10_neural_sde_spiral.png")
