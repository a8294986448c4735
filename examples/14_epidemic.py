"""An epidemic in a town of a thousand, and a birth-death process: chance in small numbers.

A few infected people may recover before they infect anybody, which no differential equation knows.
Here every infection and every recovery is a jump: simulated exactly, in leaps of fixed and of
adaptive length, and beside them the differential equation. The chance that an outbreak dies out is
(recovery / infection) ** infected at the start, nearly. How fast it changes with the rates is
estimated by the score function; a path has no derivative that would tell.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
from common import BLUE, GREEN, GREY, RED, options, plt, save

import diffjax as dj

jax.config.update("jax_enable_x64", True)

KEY = jax.random.key(4)
PEOPLE, INFECTED, DAYS = 1000, 2, 120.0
RATES = jnp.array([0.25, 0.1])  # infections and recoveries per infected person a day

# S + I -> 2 I and I -> R.
infection_and_recovery = dj.MassActionJump(
    lambda p: p / jnp.array([PEOPLE, 1.0]),
    reactants=[[1, 1, 0], [0, 1, 0]],
    net_change=[[-1, 1, 0], [0, -1, 1]],
)
town = dj.DiscreteProblem(jnp.array([PEOPLE - INFECTED, INFECTED, 0]), (0.0, DAYS), RATES)
epidemic = dj.JumpProblem(town, infection_and_recovery)

birth = dj.ConstantRateJump(lambda u, p, t: p[0], lambda u, p, t: u + 1)
death = dj.ConstantRateJump(lambda u, p, t: p[1] * u, lambda u, p, t: u - 1)
cells = dj.DiscreteProblem(jnp.array(0.0), (0.0, 1.0), jnp.array([1000.0, 10.0]))
birth_death = dj.JumpProblem(cells, birth, death)


def sir(u, p, t):
    new, recovered = p[0] * u[0] * u[1] / PEOPLE, p[1] * u[1]
    return jnp.stack([-new, new - recovered, recovered])


def paths(prob, count, alg=None, **how):
    """Many paths, and the seconds they take when compiled."""
    ensemble = dj.EnsembleProblem(prob)
    solve = jax.jit(lambda key: dj.solve(ensemble, alg, trajectories=count, key=key, **how))
    jax.block_until_ready(solve(KEY).u)
    started = time.perf_counter()
    sol = jax.block_until_ready(solve(KEY))
    return sol, time.perf_counter() - started


def died_out(sol, p):
    """Whether fewer than a tenth were ever infected."""
    return jnp.where(sol.u_end[0] > 0.9 * PEOPLE, 1.0, 0.0)


def picture(exact, leaps, mean_field, numbers):
    figure, (curves, sizes, poisson) = plt.subplots(1, 3, figsize=(12, 3.6), width_ratios=(4, 3, 3))
    for path in np.asarray(exact.u[:40, :, 1]):
        curves.plot(exact.t, path, color=GREY, lw=0.6, alpha=0.7)
    infected = np.asarray(exact.u[..., 1])
    curves.plot(exact.t, infected.mean(0), color=BLUE, label="mean, exact")
    curves.plot(exact.t, np.asarray(leaps.u[..., 1]).mean(0), "--", color=RED, label="mean, leaps")
    curves.plot(mean_field.t, mean_field.u[:, 1], color=GREEN, label="differential equation")
    curves.set(xlabel="days", ylabel="infected", xlim=(0, DAYS), ylim=(0, None))
    curves.set_title("40 epidemics that start with two people", loc="left")
    curves.legend()
    ever = PEOPLE - np.asarray(exact.u[:, -1, 0])
    sizes.hist(ever, bins=50, range=(0, PEOPLE), color=BLUE)
    sizes.set(xlabel="ever infected", yscale="log", yticks=[])
    sizes.set_title("they die out or take the town", loc="left")
    m = 100 * (1 - np.exp(-10.0))
    n = np.arange(60, 145)
    law = np.exp(n * np.log(m) - m - np.array([np.sum(np.log(np.arange(1, k + 1))) for k in n]))
    poisson.hist(numbers, bins=np.arange(60, 145) - 0.5, density=True, color=BLUE, alpha=0.7)
    poisson.plot(n, law, color=RED, label="Poisson")
    poisson.set(xlabel="cells after birth and death", yticks=[])
    poisson.set_title("the exact law", loc="left")
    poisson.legend()
    return figure


if __name__ == "__main__":
    args = options(__doc__)
    count = 500 if args.quick else 10_000

    exact, seconds = paths(epidemic, count, saveat=1.0)
    jumps = int(exact.stats.nevents.sum())
    print(f"{count:,} epidemics, {jumps:,} jumps in {seconds:.2f} s, one by one")
    for alg, how in ((dj.TauLeaping(), {"dt": 0.25}), (dj.CaoTauLeaping(), {})):
        # Leaps are coarse where few are infected: the last one may be infected by half.
        leaps, seconds = paths(epidemic, min(count, 1000), alg, saveat=1.0, **how)
        peak = np.asarray(leaps.u[..., 1]).mean(0).max()
        print(f"  {alg.name}: mean peak {peak:.0f} in {seconds:.2f} s for {len(leaps):,}")

    dead = float(jnp.mean(jax.vmap(died_out, (0, None))(exact.solutions, RATES)))
    chance = float(RATES[1] / RATES[0]) ** INFECTED
    print(f"{dead:.1%} die out; in a town without end {chance:.1%} would")

    found = dj.jumps.score_gradient(
        died_out, epidemic, trajectories=count, key=KEY, max_steps=2 * PEOPLE, batch_size=500
    )
    per_share = 0.01 * np.asarray(found.gradient)[0] * float(RATES[0])
    error = 0.01 * np.asarray(found.error)[0] * float(RATES[0])
    print(f"one contact in a hundred less: {-100 * per_share:+.2f} ± {100 * error:.2f} points")

    ode = dj.ODEProblem(sir, town.u0.astype(float), (0.0, DAYS), RATES)
    mean_field = dj.solve(ode, dj.Tsit5(), saveat=1.0)
    numbers, _ = paths(birth_death, count, saveat=None)
    save(
        picture(exact, leaps, mean_field, np.asarray(numbers.u[:, -1])),
        args.out,
        "14_epidemic.png",
    )
