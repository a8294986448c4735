"""Calibration: the parameters of stochastic equations from the statistics of samples of them.

An ensemble is solved with the same key in every training step. With these common random numbers its
means and variances are smooth functions of the parameters, with exact gradients, and twenty steps
of L-BFGS will do. The parameters are found up to the sampling errors of both samples, the observed
one and the simulated one. First an Ornstein-Uhlenbeck process, du = theta (mu - u) dt + sigma dW,
from its means, variances and autocovariances; then the four rates of a Lotka-Volterra equation with
noise, from means alone.
"""

import time

import jax
import jax.numpy as jnp
import optax
from common import BLUE, GREY, RED, options, plt, save

import diffjax as dj

OBSERVED, SIMULATED = jax.random.split(jax.random.key(0))

# theta, mu, sigma
OU_TRUE = jnp.array([1.5, 1.0, 0.4])
OU_START = jnp.array([0.5, 0.3, 1.0])
OU_TIMES = jnp.linspace(0.0, 4.0, 41)
LAG = 4

# Four rates, and how strong the noise is, which is known.
LV_TRUE = jnp.array([1.5, 1.0, 3.0, 1.0])
LV_START = jnp.array([1.2, 0.8, 2.5, 1.2])
LV_NOISE = 0.15
LV_TIMES = jnp.linspace(0.0, 5.0, 51)

# Logarithms keep the parameters positive.
ornstein_uhlenbeck = dj.SDEProblem(
    lambda u, p, t: jnp.exp(p[0]) * (jnp.exp(p[1]) - u),
    lambda u, p, t: jnp.exp(p[2]) * jnp.ones_like(u),
    u0=jnp.zeros(1),
    tspan=(0.0, 4.0),
    p=jnp.log(OU_TRUE),
    noise="additive",
)


def rates_of_change(u, p, t):
    x, y = u
    a, b, d, g = jnp.exp(p)
    return jnp.stack([a * x - b * x * y, -d * y + g * x * y])


lotka_volterra = dj.SDEProblem(
    rates_of_change,
    lambda u, p, t: LV_NOISE * u,
    u0=jnp.ones(2),
    tspan=(0.0, 5.0),
    p=jnp.log(LV_TRUE),
)


def ou_sample(p, key, trajectories):
    many = dj.EnsembleProblem(ornstein_uhlenbeck)
    options = {"key": key, "trajectories": trajectories, "saveat": OU_TIMES}
    return dj.solve(many, dj.SOSRA(), p=p, steps=40, **options)


def lv_sample(p, key, trajectories):
    many = dj.EnsembleProblem(lotka_volterra)
    options = {"key": key, "trajectories": trajectories, "saveat": LV_TIMES}
    return dj.solve(many, dj.SOSRI(), p=p, steps=100, **options)


def ou_statistics(paths):
    """Means, variances, and covariances of values LAG times apart, each over the paths."""
    u = paths[:, 1:, 0]  # all start from the same value
    mean = jnp.mean(u, axis=0)
    off = u - mean
    return mean, jnp.mean(off**2, axis=0), jnp.mean(off[:, LAG:] * off[:, :-LAG], axis=0)


def ou_loss(data, trajectories):
    # Each difference counts in units of the sampling variance, that of normal numbers.
    _, variance, covariance = data
    together = variance[LAG:] * variance[:-LAG] + covariance**2
    errors = variance / trajectories, 2 * variance**2 / trajectories, together / trajectories

    def loss(p):
        model = ou_statistics(ou_sample(p, SIMULATED, trajectories).u)
        rows = zip(model, data, errors, strict=True)
        return sum(jnp.mean((x - y) ** 2 / error) for x, y, error in rows)

    return loss


def lv_loss(data, trajectories):
    def loss(p):
        mean = jnp.mean(lv_sample(p, SIMULATED, trajectories).u, axis=0)
        return jnp.mean((mean - data) ** 2)

    return loss


def calibrate(what, names, loss, start, true, steps):
    started = time.perf_counter()
    result = dj.train(loss, jnp.log(start), optax.lbfgs(), steps, progress=False)
    seconds = time.perf_counter() - started
    print(
        f"{what}: loss {result.losses[0]:.3g} before, {result.losses.min():.3g} after {steps} steps"
        f" of L-BFGS, {seconds:.1f} s"
    )
    for name, *numbers in zip(names, start, true, jnp.exp(result.best), strict=True):
        begun, wanted, found = (float(x) for x in numbers)
        print(f"  {name:>5}: start {begun:.3f}, true {wanted:.3f}, fitted {found:.3f}")
    return result


def panel(axes, sample, times, data, start, fitted):
    """Data as points, the fitted ensemble as mean and band, the start's mean as a thin line."""
    colors = (BLUE, RED)
    ensemble = sample(fitted, SIMULATED, 500)
    begun = jnp.mean(sample(jnp.log(start), SIMULATED, 500).u, axis=0)
    for i in range(data.shape[1]):
        name = f"$u_{i + 1}$" if data.shape[1] > 1 else "u"
        ensemble.plot(vars=i, ax=axes, color=colors[i], labels=[f"{name}, fitted"])
        axes.plot(times, begun[:, i], color=GREY, linewidth=1)
        points = {"color": "black", "markersize": 3, "linestyle": ""}
        axes.plot(times, data[:, i], marker="os"[i], label=f"{name}, observed mean", **points)
    axes.legend(fontsize="small", ncols=data.shape[1])


if __name__ == "__main__":
    args = options(__doc__)
    count, steps = (100, 6) if args.quick else (500, 20)

    print(f"Calibrating two stochastic equations to samples of {count} paths")
    ou_observed = ou_sample(jnp.log(OU_TRUE), OBSERVED, count).u
    loss = ou_loss(ou_statistics(ou_observed), count)
    names = ("theta", "mu", "sigma")
    ou = calibrate("Ornstein-Uhlenbeck", names, loss, OU_START, OU_TRUE, steps)

    lv_mean = jnp.mean(lv_sample(jnp.log(LV_TRUE), OBSERVED, count).u, axis=0)
    loss = lv_loss(lv_mean, count)
    lv = calibrate("Lotka-Volterra", "abdg", loss, LV_START, LV_TRUE, steps)

    figure, (left, right, descent) = plt.subplots(1, 3, figsize=(12, 3.6))
    panel(left, ou_sample, OU_TIMES, jnp.mean(ou_observed, axis=0), OU_START, ou.best)
    left.set_title("Ornstein-Uhlenbeck; grey: the start", loc="left")
    panel(right, lv_sample, LV_TIMES, lv_mean, LV_START, lv.best)
    right.set_title("Lotka-Volterra with noise", loc="left")
    descent.semilogy(ou.losses, color=BLUE, label="Ornstein-Uhlenbeck")
    descent.semilogy(lv.losses, color=RED, label="Lotka-Volterra")
    descent.set(xlabel="step of L-BFGS", ylabel="loss")
    descent.legend(fontsize="small")
    save(figure, args.out, "11_calibration.png")
