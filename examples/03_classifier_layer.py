"""A differential equation as one layer of a classifier.

Linear -> ODE -> Linear, in an ordinary equinox Sequential, learns to tell two interleaved
half moons apart: the flow pulls the two classes to where a plane can part them.
"""

import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import BLUE, RED, options, plt, save

import diffjax as dj

HIDDEN, BATCH = 3, 64


def half_moons(count, rng):
    """Points (count, 2) and their labels (count,), 0 or 1."""
    angle, label = rng.uniform(0.0, np.pi, count), rng.integers(0, 2, count)
    upper = np.stack([np.cos(angle), np.sin(angle)], -1)
    points = np.where(label[:, None] == 0, upper, np.array([1.0, 0.5]) - upper)
    points += rng.normal(0.0, 0.12, points.shape)
    return points.astype(np.float32), label.astype(np.float32)


def new_classifier(key):
    keys = jax.random.split(key, 3)
    field = eqx.nn.MLP(HIDDEN, HIDDEN, width_size=16, depth=1, activation=jnp.tanh, key=keys[0])
    return eqx.nn.Sequential(
        [
            eqx.nn.Linear(2, HIDDEN, key=keys[1]),
            dj.neural.NeuralODE(field, (0.0, 1.0), dj.Tsit5()),
            eqx.nn.Linear(HIDDEN, "scalar", key=keys[2]),
        ]
    )


def loss(classifier, batch):
    points, labels = batch
    return optax.sigmoid_binary_cross_entropy(jax.vmap(classifier)(points), labels).mean()


@eqx.filter_jit
def probability(classifier, points):
    """Of the second class, at each of the points (N, 2)."""
    return jax.nn.sigmoid(jax.vmap(classifier)(points))


def picture(classifier, points, labels, losses):
    figure, (plane, descent) = plt.subplots(1, 2, figsize=(9, 3.5), width_ratios=(3, 2))
    x, y = np.meshgrid(np.linspace(-1.6, 2.6, 120), np.linspace(-1.2, 1.7, 90))
    grid = jnp.stack([x.ravel(), y.ravel()], -1, dtype=jnp.float32)
    p = probability(classifier, grid).reshape(x.shape)
    plane.contourf(x, y, p, levels=20, cmap="RdBu_r", vmin=-0.3, vmax=1.3, alpha=0.6)
    plane.contour(x, y, p, levels=[0.5], colors="black", linewidths=1.5)
    for label, color in ((0, BLUE), (1, RED)):
        plane.scatter(*points[labels == label].T, s=9, color=color, edgecolor="white", lw=0.3)
    plane.set(title="test points and decision boundary", aspect="equal")
    descent.plot(losses, color=BLUE)
    descent.set(xlabel="epoch", ylabel="cross entropy", ylim=(0.0, None))
    return figure


if __name__ == "__main__":
    args = options(__doc__)
    epochs = 2 if args.quick else 30
    started = time.perf_counter()

    print("Training Linear -> ODE -> Linear to tell two half moons apart")
    rng = np.random.default_rng(0)
    points, labels = half_moons(1024, rng)
    batches = list(zip(points.reshape(-1, BATCH, 2), labels.reshape(-1, BATCH), strict=True))
    steps = epochs * len(batches)
    classifier, _, losses, _ = dj.train(
        loss, new_classifier(jax.random.key(0)), optax.adam(0.01), steps, batches=batches
    )
    losses = losses[:-1].reshape(epochs, -1).mean(axis=1)
    points, labels = half_moons(1024, rng)
    right = (probability(classifier, points) > 0.5) == (labels > 0.5)
    print(f"accuracy on 1024 points not trained on: {100 * right.mean():.1f} %")
    print(f"{time.perf_counter() - started:.1f} s, compilation included")
    save(picture(classifier, points, labels, losses), args.out, "03_classifier_layer.png")
