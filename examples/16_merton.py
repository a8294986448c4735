"""Merton's jump diffusion: an asset that jumps, simulated and calibrated to option prices.

Between jumps dS = (r - lambda m) S dt + sigma S dW; at the rate lambda the price jumps to S exp(Y)
with Y normal, m being the mean of exp(Y) - 1 (Merton 1976). Calls are priced as means over paths,
beside Merton's series; then sigma and the law of Y are fitted to a market's prices by gradient
descent through the paths. The derivative is pathwise: the times of the jumps stay where they are.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from common import BLUE, GREY, RED, options, plt, save
from jax.scipy.stats import norm

import diffjax as dj

RATE, INTEREST, SPOT, SPAN = 1.0, 0.02, 1.0, (0.0, 1.0)
STRIKES = jnp.linspace(0.7, 1.4, 15)
MARKET = {"sigma": 0.2, "mean": -0.15, "spread": 0.25}
GUESS = {"sigma": 0.3, "mean": 0.1, "spread": 0.35}


def drift(u, p, t):
    m = jnp.exp(p["mean"] + p["spread"] ** 2 / 2) - 1
    return (INTEREST - RATE * m - p["sigma"] ** 2 / 2) * jnp.ones_like(u)


def diffusion(u, p, t):
    return p["sigma"] * jnp.ones_like(u)


def jump(u, p, t, key):
    return u + p["mean"] + p["spread"] * jax.random.normal(key)


def log_prices(p, keys, saveat=None):
    """Paths of log S, one for each key."""
    between = dj.SDEProblem(drift, diffusion, jnp.log(SPOT), SPAN, p, noise="additive")
    prob = dj.JumpProblem(between, dj.ConstantRateJump(lambda u, p, t: RATE, jump))
    # The steps between jumps are exact, however long, since nothing depends on the state.
    steps = 1 if saveat is None else len(saveat) - 1
    return jax.vmap(lambda key: dj.solve(prob, dj.EM(), steps=steps, key=key, saveat=saveat).u)(
        keys
    )


def calls(p, keys):
    """Prices of calls at all strikes, as means over paths."""
    price = jnp.exp(log_prices(p, keys)[:, -1])
    return math.exp(-INTEREST) * jnp.mean(jax.nn.relu(price[:, None] - STRIKES), axis=0)


def series(p, terms=30):
    """Merton's price: that of Black and Scholes, averaged over the number of jumps."""
    total = jnp.zeros_like(STRIKES)
    growth = math.exp(p["mean"] + p["spread"] ** 2 / 2)
    for n in range(terms):
        weight = math.exp(-RATE * growth) * (RATE * growth) ** n / math.factorial(n)
        width = math.sqrt(p["sigma"] ** 2 + n * p["spread"] ** 2)
        interest = INTEREST - RATE * (growth - 1) + n * math.log(growth)
        d = (jnp.log(SPOT / STRIKES) + interest + width**2 / 2) / width
        call = SPOT * norm.cdf(d) - STRIKES * math.exp(-interest) * norm.cdf(d - width)
        total += weight * call
    return total


@eqx.filter_value_and_grad
def loss(p, keys):
    return jnp.sum((calls(p, keys) - series(MARKET)) ** 2)


def calibrate(p, steps, paths):
    optimizer = optax.adam(optax.cosine_decay_schedule(0.04, steps, alpha=0.05))
    state = optimizer.init(p)

    @jax.jit
    def step(p, state, key):
        value, gradient = loss(p, jax.random.split(key, paths))
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(p, updates), state, value

    for key in jax.random.split(jax.random.key(3), steps):
        p, state, value = step(p, state, key)
    return p, value


def picture(fitted, keys):
    figure, (paths, prices) = plt.subplots(1, 2, figsize=(9, 3.6))
    times = jnp.linspace(*SPAN, 201)
    many = jnp.exp(log_prices(MARKET, keys[:8], saveat=times))
    paths.plot(times, many.T, linewidth=0.8)
    paths.set(xlabel="t", ylabel="S", xlim=SPAN, title="paths of the market's law")
    prices.plot(STRIKES, series(MARKET), "o", color=GREY, label="market: Merton's series")
    prices.plot(STRIKES, calls(GUESS, keys), color=RED, label="first guess, mean over paths")
    prices.plot(STRIKES, calls(fitted, keys), color=BLUE, label="calibrated, mean over paths")
    prices.set(xlabel="strike", ylabel="price of a call")
    prices.legend(fontsize="small")
    return figure


if __name__ == "__main__":
    args = options(__doc__)
    steps, paths = (150, 2000) if args.quick else (500, 10000)
    keys = jax.random.split(jax.random.key(0), 20000)
    off = jnp.max(jnp.abs(calls(MARKET, keys) - series(MARKET)))
    print(f"calls from 20000 paths are within {off:.2g} of Merton's series")
    fitted, value = calibrate({k: jnp.asarray(v) for k, v in GUESS.items()}, steps, paths)
    rms = jnp.sqrt(jnp.mean((calls(fitted, keys) - series(MARKET)) ** 2))
    print(f"after {steps} steps on {paths} new paths each: rms error of the prices {rms:.2g}")
    for name, truth in MARKET.items():
        print(f"  {name:7s} {fitted[name]:+.3f}, of the market {truth:+.3f}")
    save(picture(fitted, keys), args.out, "16_merton.png")
