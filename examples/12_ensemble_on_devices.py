"""An epidemic with uncertain rates: thousands of trajectories spread over four devices.

How infectious the disease is and how long it lasts are known to a fifth. Each trajectory draws its
own rates from its own key; a mesh of four devices (here four that share this CPU) solves a quarter
of them each. The mean of a million is computed without keeping one of them, and the derivative of
the expected peak says what it is worth to have fewer contacts.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
from common import BLUE, RED, options, plt, save

import diffjax as dj

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_enable_x64", True)

KEY = jax.random.key(0)
RATES = jnp.array([0.35, 0.12])  # infections and recoveries a day
SPREAD = 0.2
DAYS = 150.0


def sir(u, p, t):
    susceptible, infected, _ = u
    infection, recovery, reduction = p
    new = (1.0 - reduction) * infection * susceptible * infected
    return jnp.stack([-new, new - recovery * infected, recovery * infected])


prob = dj.ODEProblem(sir, jnp.array([0.999, 0.001, 0.0]), (0.0, DAYS))


def draw(prob, i, key):
    rates = RATES * jnp.exp(SPREAD * jax.random.normal(key, (2,)))
    return dj.remake(prob, p=jnp.append(rates, prob.p))


def infected(reduction, trajectories, **how):
    """The infected share over time of every trajectory, contacts reduced by a share."""
    ensemble = dj.EnsembleProblem(dj.remake(prob, p=reduction), draw, **how.pop("kept", {}))
    return dj.solve(
        ensemble, dj.Tsit5(), trajectories=trajectories, key=KEY, saveat=1.0, save_idxs=1,
        rtol=1e-6, atol=1e-8, max_steps=256, **how,
    )  # fmt: skip


def expected_peak(reduction, trajectories, mesh):
    kept = {"output_func": lambda sol, i: jnp.max(sol.u), "reduction": dj.EnsembleMoments()}
    return infected(reduction, trajectories, mesh=mesh, kept=kept).u.mean


def picture(free, fewer):
    figure, (curves, peaks) = plt.subplots(1, 2, figsize=(11, 3.8), width_ratios=(3, 2))
    for sol, color, label in ((free, RED, "as usual"), (fewer, BLUE, "30 % fewer")):
        sol.plot(ax=curves, color=color, labels=[f"contacts {label}"], paths=4)
        peak = 100 * np.max(np.asarray(sol.u), axis=1)
        peaks.hist(peak, bins=60, range=(0, 60), density=True, color=color, alpha=0.7)
    curves.set(xlabel="days", ylabel="share infected", xlim=(0, DAYS), ylim=(0, None))
    curves.set_title("mean, 90 % band, and four trajectories", loc="left")
    peaks.set(xlabel="peak, % infected", yticks=[])
    peaks.set_title("distribution of the peak", loc="left")
    return figure


if __name__ == "__main__":
    args = options(__doc__)
    some, many = (400, 4_000) if args.quick else (10_000, 1_000_000)

    mesh = jax.make_mesh((jax.device_count(),), ("trajectories",))
    print(f"{jax.device_count()} devices, {some:,} trajectories on each of two policies")
    free, fewer = (infected(jnp.array(share), some, mesh=mesh) for share in (0.0, 0.3))
    for sol in (free, fewer):
        day = int(np.argmax(dj.timeseries_steps_mean(sol)))
        low, high = (float(dj.timestep_quantile(sol, q, day)) for q in (0.05, 0.95))
        print(f"  most are infected on day {day}: 90 % of trajectories {low:.1%} to {high:.1%}")

    slope = jax.jit(jax.value_and_grad(lambda share: expected_peak(share, some, mesh)))
    peak, change = slope(jnp.array(0.3))
    print(f"expected peak {peak:.2%}; one contact in a hundred less: {change:+.3f} points")

    started = time.perf_counter()
    kept = {"reduction": dj.EnsembleMoments()}
    moments = infected(jnp.array(0.3), many, mesh=mesh, kept=kept).u
    seconds = time.perf_counter() - started
    error = np.max(moments.std) / np.sqrt(many)
    print(f"mean of {many:,} trajectories to {error:.1e} in {seconds:.1f} s, compiled and run")
    save(picture(free, fewer), args.out, "12_ensemble_on_devices.png")
