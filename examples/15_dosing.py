"""Dosing: how fast a drug is absorbed and cleared, and when a dose was taken, from blood samples.

Tablets are taken at given times, each a jump of what is in the gut; from there the drug goes into
the blood and is cleared. The rates, the volume of the blood and the unknown time of the third
tablet are fitted together: gradients flow through the jumps and to their times.
"""

import jax.numpy as jnp
import numpy as np
import optax
from common import BLUE, GREY, RED, options, plt, save

import diffjax as dj

DOSE, END = 100.0, 48.0  # mg, h
KNOWN = jnp.array([0.0, 12.0, 36.0])
# Absorption and clearance (1 / h), volume (l), and when the third tablet was taken (h).
TRUE = {"rates": jnp.array([0.6, 0.12, 20.0]), "taken": jnp.array(21.5)}
GUESS = {"rates": jnp.array([1.5, 0.3, 10.0]), "taken": jnp.array(24.0)}
SAMPLES = jnp.arange(1.0, END, 1.5)
FINE = jnp.linspace(0.0, END, 481)

# Logarithms keep the rates positive.
GUESS["rates"], TRUE["rates"] = jnp.log(GUESS["rates"]), jnp.log(TRUE["rates"])


def concentration(p, times):
    absorbed, cleared, volume = jnp.exp(p["rates"])

    def field(u, _, t):
        gut, blood = u
        return jnp.stack([-absorbed * gut, absorbed * gut - cleared * blood])

    taken = jnp.concatenate([KNOWN, p["taken"][None]])
    tablets = dj.PresetTimeCallback(taken, lambda u, p, t: u.at[0].add(DOSE))
    prob = dj.ODEProblem(field, jnp.zeros(2), (0.0, END))
    sol = dj.solve(prob, dj.Tsit5(), callback=tablets, saveat=times, rtol=1e-5, atol=1e-5)
    return sol.u[:, 1] / volume


if __name__ == "__main__":
    args = options(__doc__)
    steps = 30 if args.quick else 400

    exact = concentration(TRUE, SAMPLES)
    noise = 0.05 * np.random.default_rng(0).standard_normal(SAMPLES.shape)
    data = exact * (1 + noise)

    def loss(p):
        return jnp.mean((concentration(p, SAMPLES) - data) ** 2)

    result = dj.train(loss, GUESS, optax.adam(0.03), steps, progress=False)
    fitted = result.best
    print(f"loss {result.losses[0]:.3g} before, {result.losses.min():.3g} after {steps} steps")
    names = ("absorption", "clearance", "volume")
    for name, *values in zip(names, GUESS["rates"], TRUE["rates"], fitted["rates"], strict=True):
        begun, wanted, found = (float(jnp.exp(x)) for x in values)
        print(f"  {name:>12}: start {begun:.3f}, true {wanted:.3f}, fitted {found:.3f}")
    times = (float(p["taken"]) for p in (GUESS, TRUE, fitted))
    print("  third tablet: start {:.2f} h, true {:.2f} h, fitted {:.2f} h".format(*times))

    figure, axes = plt.subplots(figsize=(7, 3.6))
    axes.plot(FINE, concentration(GUESS, FINE), color=GREY, label="start")
    axes.plot(FINE, concentration(fitted, FINE), color=BLUE, label="fitted")
    axes.plot(SAMPLES, data, "o", color="black", markersize=3, label="samples")
    for t in KNOWN:
        axes.axvline(float(t), color=GREY, linewidth=0.8, linestyle=":")
    axes.axvline(float(fitted["taken"]), color=RED, linewidth=1, linestyle="--", label="found")
    axes.set(xlabel="hours", ylabel="mg / l", ylim=(0, 9))
    axes.legend(fontsize="small", ncols=2)
    save(figure, args.out, "15_dosing.png")
