"""A neural jump diffusion, trained to the mean of 100 wild paths.

The data are the mean of 100 paths of du = A^T u^3 dt + 0.2 u dW at thirty times, which jump at the
rate 2: each jump halves the first component. Two networks stand for the drift and for what a jump
does; the noise and the rate are known. They are trained first on single paths, then on the mean of
100 at once. Every training step draws new paths.
"""

import time

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from common import BLUE, GREY, RED, options, plt, save

import diffjax as dj

A = jnp.array([[-0.1, 2.0], [-2.0, -0.1]])
RATE = 2.0
U0 = jnp.array([2.0, 0.0])
SPAN = (0.0, 1.0)
TIMES = jnp.linspace(*SPAN, 30)
# Two fixed steps from each time to the next: under vmap adaptive paths would wait for the slowest.
STEPS = 58
TRAJECTORIES = 100


def noise(u):
    return 0.2 * u


def layer(drift, affect):
    """A path is `layer(drift, affect)(U0, key=key)`, of shape (30, 2)."""
    return dj.neural.NeuralJumpDiffusion(
        drift, noise, RATE, affect, SPAN, dj.SOSRI(), steps=STEPS, saveat=TIMES, max_events=16
    )


@eqx.filter_jit
def paths(networks, keys):
    """A path for each key."""
    return jax.vmap(lambda key: layer(*networks)(U0, key=key))(keys)


TRUTH = (lambda u: u**3 @ A, lambda u: u * jnp.array([0.5, 1.0]))
WILD = paths(TRUTH, jax.random.split(jax.random.key(1), TRAJECTORIES))
DATA = jnp.mean(WILD, axis=0)
STANDARD_ERROR = jnp.std(WILD, axis=0, ddof=1) / TRAJECTORIES**0.5


def new_networks(key):
    first, second = jax.random.split(key)

    def mlp(key):
        return eqx.nn.MLP(2, 2, width_size=50, depth=1, activation=jnp.tanh, key=key)

    # The cubes reach 8, where tanh would start out flat.
    drift = eqx.tree_at(lambda m: m.layers[0].weight, mlp(first), replace_fn=lambda w: 0.2 * w)
    return eqx.nn.Sequential([eqx.nn.Lambda(lambda u: u**3), drift]), mlp(second)


def loss(networks, keys):
    """Squared error of the mean of as many paths as there are keys."""
    return jnp.sum((jnp.mean(paths(networks, keys), axis=0) - DATA) ** 2)


def draws(key, count):
    """New keys for every training step."""
    while True:
        key, now = jax.random.split(key)
        yield jax.random.split(now, count)


def train(networks, stages):
    for number, (count, steps, rate) in enumerate(stages):
        started = time.perf_counter()
        batches = draws(jax.random.key(10 + number), count)
        optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps, alpha=0.05))
        result = dj.train(loss, networks, optimizer, steps, batches=batches)
        # Losses are random: the last parameters, and not those that had the luckiest draw.
        networks = result.params
        last = result.losses[-max(1, steps // 10) :].mean()
        print(
            f"{steps:4d} steps on {count:3d} paths: loss {result.losses[0]:.3g} before, "
            f"{last:.3g} after (mean of the last tenth), {time.perf_counter() - started:.1f} s"
        )
    return networks


def within(mean):
    """At how many of the times both components lie within two standard errors of the data."""
    return int(jnp.sum(jnp.all(jnp.abs(mean - DATA) <= 2 * STANDARD_ERROR + 1e-12, axis=1)))


def picture(before, after):
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), sharey=True)
    wild, start, end = axes
    for path in WILD[:12]:
        wild.plot(TIMES, path[:, 0], color=BLUE, linewidth=0.7)
        wild.plot(TIMES, path[:, 1], color=RED, linewidth=0.7)
    wild.set_title("12 of the 100 wild paths", loc="left")
    for ax, mean, title in ((start, before, "before training"), (end, after, "after training")):
        for i, color in enumerate((BLUE, RED)):
            low, high = DATA[:, i] - 2 * STANDARD_ERROR[:, i], DATA[:, i] + 2 * STANDARD_ERROR[:, i]
            ax.fill_between(TIMES, low, high, color=GREY, alpha=0.5, linewidth=0)
            ax.plot(
                TIMES, mean[:, i], color=color, label=f"mean of $u_{i + 1}$ over 1000 new paths"
            )
        ax.set_title(title, loc="left")
    end.fill_between([], [], color=GREY, alpha=0.5, label="data, two standard errors")
    figure.legend(*end.get_legend_handles_labels(), ncols=3, loc="outside upper center")
    for ax in axes:
        ax.set(xlabel="t", xlim=SPAN)
    return figure


if __name__ == "__main__":
    args = options(__doc__)
    one, hundred = (100, 150) if args.quick else (300, 800)

    print("Training a neural jump diffusion on the mean of 100 wild paths")
    networks = new_networks(jax.random.key(0))
    unseen = jax.random.split(jax.random.key(2), 1000)
    before = jnp.mean(paths(networks, unseen), axis=0)
    networks = train(networks, ((1, one, 0.02), (TRAJECTORIES, hundred, 0.01)))
    after = jnp.mean(paths(networks, unseen), axis=0)
    print(
        f"mean of 1000 new paths within two standard errors of the data at {within(after)} of 30 "
        f"times ({within(before)} before)"
    )
    save(picture(before, after), args.out, "17_neural_jump_diffusion.png")
