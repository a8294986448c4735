"""Lynx and hare: a mechanistic model, and one with a network inside, fitted to real data.

The Hudson's Bay Company counted the pelts it bought from 1900 to 1920. The years to 1915 are
fitted, the last five are held out: first by the Lotka-Volterra equations with a free initial state,
then by a universal differential equation that keeps their births and deaths and replaces the
constant interaction rates by a network. The network fits better; sixteen years are too few to tell
whether it knows better, and the forecast shows it.

The state is the logarithm of both populations: they stay positive, and errors are relative.
"""

import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import BLUE, GREY, RED, options, plt, save

import diffjax as dj

TABLE = np.loadtxt(
    Path(__file__).parent / "data" / "lynx_hare_1900_1920.csv", delimiter=",", skiprows=2
)
YEARS, DATA = TABLE[:, 0], jnp.log(jnp.asarray(TABLE[:, [2, 1]], jnp.float32))  # hare, lynx
FITTED = 16
# On the squared weights of the network: keeps its rates near constant ones.
PENALTY = 1e-3


def lotka_volterra(u, p, t):
    hare, lynx = jnp.exp(u)
    birth, death = jnp.exp(p["births_and_deaths"])
    eaten, fed = jnp.exp(p["interaction"])
    return jnp.stack([birth - eaten * lynx, fed * hare - death])


def universal(u, p, t):
    hare, lynx = jnp.exp(u)
    birth, death = jnp.exp(p["births_and_deaths"])
    eaten, fed = jnp.exp(p["interaction"](u))
    return jnp.stack([birth - eaten * lynx, fed * hare - death])


def solution(model, p, last_year, every=1.0):
    """Both populations from 1900 on, (years, 2), as logarithms."""
    prob = dj.ODEProblem(model, p["u0"], (0.0, last_year - 1900.0), p)
    return dj.solve(prob, dj.Tsit5(), saveat=every, rtol=1e-5).u


def misfit(model, p):
    return jnp.mean((solution(model, p, 1915.0) - DATA[:FITTED]) ** 2)


def universal_loss(p):
    weights = [layer.weight for layer in p["interaction"].layers]
    return misfit(universal, p) + PENALTY * sum(jnp.sum(w**2) for w in weights)


def constant_network(values, key):
    """A network of the two populations that begins as constants."""
    network = eqx.nn.MLP(2, 2, width_size=8, depth=1, activation=jnp.tanh, key=key)
    last = network.layers[-1]
    return eqx.tree_at(
        lambda n: (n.layers[-1].weight, n.layers[-1].bias), network, (0 * last.weight, values)
    )


def report(name, model, p):
    squares = (solution(model, p, 1920.0) - DATA) ** 2
    fit, forecast = jnp.sqrt(squares[:FITTED].mean()), jnp.sqrt(squares[FITTED:].mean())
    print(f"{name}: log error {fit:.3f} in the years fitted, {forecast:.3f} in the forecast")


def picture(fits):
    figure, panels = plt.subplots(1, 2, figsize=(11, 3.6), sharex=True)
    years = np.linspace(1900.0, 1920.0, 201)
    for species, (panel, name) in enumerate(zip(panels, ("hare", "lynx"), strict=True)):
        pelts = np.exp(DATA[:, species])
        panel.plot(YEARS[:FITTED], pelts[:FITTED], "o", color="black", label="pelts bought")
        panel.plot(
            YEARS[FITTED:], pelts[FITTED:], "o", mfc="white", color="black", label="held out"
        )
        for label, color, model, p in fits:
            curve = np.exp(solution(model, p, 1920.0, every=0.1)[:, species])
            then = years <= YEARS[FITTED - 1]
            panel.plot(years[then], curve[then], color=color, label=label)
            panel.plot(years[~then], curve[~then], color=color, linestyle="--")
        panel.axvspan(YEARS[FITTED - 1], 1920.5, color=GREY, alpha=0.15, linewidth=0)
        panel.set(title=name, ylabel="thousands", ylim=(0, None), xlim=(1899.5, 1920.5))
        panel.xaxis.set_major_locator(plt.MultipleLocator(5))
    figure.legend(*panels[0].get_legend_handles_labels(), ncols=4, loc="outside upper center")
    return figure


if __name__ == "__main__":
    args = options(__doc__)
    steps = 20 if args.quick else 500
    started = time.perf_counter()

    print("Fitting Lotka-Volterra with a free initial state to the years 1900 to 1915")
    start = {
        "births_and_deaths": jnp.log(jnp.array([0.5, 0.5])),
        "interaction": jnp.log(jnp.array([0.02, 0.02])),
        "u0": DATA[0],
    }
    adam = optax.adam(optax.cosine_decay_schedule(0.1, steps))
    constant = dj.train(lambda p: misfit(lotka_volterra, p), start, adam, steps).params

    print("Fitting the universal differential equation, from there")
    network = constant_network(constant["interaction"], jax.random.key(0))
    adam = optax.adam(optax.cosine_decay_schedule(0.02, 2 * steps))
    flexible = dj.train(
        universal_loss, {**constant, "interaction": network}, adam, 2 * steps
    ).params

    report("Lotka-Volterra", lotka_volterra, constant)
    report("universal", universal, flexible)
    print(f"{time.perf_counter() - started:.1f} s, compilation included")
    fits = [
        ("Lotka-Volterra", BLUE, lotka_volterra, constant),
        ("universal", RED, universal, flexible),
    ]
    save(picture(fits), args.out, "04_lynx_and_hare.png")
