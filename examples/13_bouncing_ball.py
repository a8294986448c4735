"""A bouncing ball: when it lands, and what that says of the ball.

The landings are events. They are found on the steps themselves, to rounding, and their times are
differentiable functions of everything that the solve depends on. So the times at which a ball was
heard to land give gravity and the ball's elasticity, by a few Gauss-Newton steps.
"""

import jax
import jax.numpy as jnp
import numpy as np
from common import BLUE, GREY, RED, options, plt, save

import diffjax as dj

jax.config.update("jax_enable_x64", True)

START = jnp.array([1.0, 0.0])  # height and speed
TRUE = jnp.array([9.81, 0.8])  # gravity, and the part of its speed that the ball keeps
GUESS = jnp.array([8.5, 0.7])
LANDINGS = 3

bounce = dj.ContinuousCallback(
    lambda u, p, t: u[0],
    lambda u, p, t: jnp.stack([u[0], -p[1] * u[1]]),
    direction=-1,
)
prob = dj.ODEProblem(lambda u, p, t: jnp.stack([u[1], -p[0]]), START, (0.0, 2.0), TRUE)


@jax.jit
def landings(p):
    # A ball of little elasticity comes to rest, which ends the solve before its time.
    sol = dj.solve(prob, p=p, callback=bounce, rtol=1e-8, atol=1e-8, throw=False)
    return sol.events.t[:LANDINGS]


slopes = jax.jit(jax.jacfwd(landings))


def gauss_newton(p, heard, steps):
    """Parameters of which the landing times are those that were heard, by least squares."""
    for number in range(steps):
        off = landings(p) - heard
        p = p - jnp.linalg.lstsq(slopes(p), off)[0]
        size = jnp.linalg.norm(off)
        print(f"  step {number}: off by {size:.1e} s, now g = {p[0]:.4f}, e = {p[1]:.4f}")
    return p


if __name__ == "__main__":
    args = options(__doc__)

    times = landings(TRUE)
    first = jnp.sqrt(2 * START[0] / TRUE[0])
    print(f"first landing at {times[0]:.12f} s, by hand {first:.12f} s")
    slope = slopes(TRUE)[0, 0]
    print(f"its derivative by g {slope:.10f}, by hand {-first / (2 * TRUE[0]):.10f}")

    noise = 2e-3 * np.random.default_rng(0).standard_normal(LANDINGS)
    print(f"{LANDINGS} landings, each heard with an error of about 2 ms:")
    fitted = gauss_newton(GUESS, times + noise, 3 if args.quick else 6)

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
    grid = jnp.linspace(0.0, 2.0, 401)
    for p, color, label in ((GUESS, GREY, "guess"), (fitted, BLUE, "fitted")):
        sol = dj.solve(prob, p=p, callback=bounce, saveat=grid, rtol=1e-8, atol=1e-8)
        left.plot(grid, sol.u[:, 0], color=color, label=label)
    left.plot(times + noise, np.zeros(LANDINGS), "v", color=RED, label="heard")
    left.set(xlabel="t", ylabel="height")
    left.legend(fontsize="small", loc="upper right")

    elasticity = jnp.linspace(0.5, 0.9, 41)
    # One after the other, which compiles nothing new.
    last = [landings(TRUE.at[1].set(e))[-1] for e in elasticity]
    right.plot(elasticity, last, color=GREY, linewidth=5, label="found")
    value, slope = times[-1], slopes(TRUE)[-1, 1]
    near = jnp.array([-0.3, 0.1])
    right.plot(TRUE[1] + near, value + slope * near, color=RED, label="its gradient")
    right.set(xlabel="e", ylabel=f"time of landing {LANDINGS}")
    right.legend(fontsize="small")
    save(figure, args.out, "13_bouncing_ball.png")
