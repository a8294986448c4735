"""Methods for stochastic equations: order conditions, strong orders, closed forms path by path."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

import diffjax as dj
from diffjax.algorithms.tableaus import stochastic as tableaus
from diffjax.algorithms.weak import _Draws
from diffjax.noise.random import key_words
from diffjax.noise.steps import StepNoise

from .stochastic_methods import (
    DEPTH,
    EQUATIONS,
    STRONG_METHODS,
    Equation,
    StrongMethod,
    additive_equation,
    asinh_equation,
    brownian_paths,
    ends,
    linear_equation,
    linear_system,
    observed_order,
    rms_errors,
    stiff_quadratic,
    two_by_four,
)


def square(rows: tuple[tuple[float, ...], ...]) -> np.ndarray:
    return np.array([[*row, *[0.0] * (len(rows) - len(row))] for row in rows])


@pytest.mark.parametrize("tableau", [tableaus.SRIW1, tableaus.SOSRI, tableaus.SOSRI2])
def test_order_conditions_of_sri(tableau: tableaus.SRITableau) -> None:
    """The conditions of strong order 3/2: Roessler 2010, theorem 5.1, for one noise."""
    a0, a1, b0, b1 = (square(getattr(tableau, name)) for name in ("a0", "a1", "b0", "b1"))
    alpha = np.array(tableau.alpha)
    betas = np.array([tableau.beta1, tableau.beta2, tableau.beta3, tableau.beta4])
    e = np.ones(len(alpha))
    got = [alpha @ e, alpha @ a0 @ e, alpha @ b0 @ e, alpha @ (b0 @ e) ** 2]
    np.testing.assert_allclose(got, [1, 1 / 2, 1, 3 / 2], atol=3e-14)
    functionals = [e, b1 @ e, a1 @ e, (b1 @ e) ** 2, b1 @ b1 @ e]
    wanted = [[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, -1, 0], [1, 0, -1, 2], [0, 0, 0, 1]]
    np.testing.assert_allclose([betas @ v for v in functionals], wanted, atol=3e-13)
    mixed = a1 @ b0 @ e
    np.testing.assert_allclose(betas[0] @ mixed / 2 + betas[2] @ mixed / 3, 0.0, atol=3e-13)


@pytest.mark.parametrize(
    "tableau", [tableaus.SRA1, tableaus.SRA3, tableaus.SOSRA, tableaus.SKENCARP]
)
def test_order_conditions_of_sra(tableau: tableaus.SRATableau) -> None:
    """The conditions of strong order 3/2 for additive noise: Roessler 2010, theorem 5.2."""
    a0, b0 = square(tableau.a0), square(tableau.b0)
    alpha, beta1, beta2 = (np.array(x) for x in (tableau.alpha, tableau.beta1, tableau.beta2))
    c1, e = np.array(tableau.c1), np.ones(len(alpha))
    got = [alpha @ e, beta1 @ e, beta2 @ e, alpha @ a0 @ e, alpha @ b0 @ e]
    np.testing.assert_allclose(got, [1, 1, 0, 1 / 2, 1], atol=3e-14)
    got = [alpha @ (b0 @ e) ** 2, beta1 @ c1, beta2 @ c1]
    np.testing.assert_allclose(got, [3 / 2, 1, -1], atol=3e-14)
    np.testing.assert_allclose(a0 @ e, tableau.c0, atol=3e-14)


def test_order_conditions_of_dri1() -> None:
    """The conditions of weak order 2: Roessler, Second order Runge-Kutta methods for Ito stochastic
    differential equations, SIAM J. Numer. Anal. 47 (2009), theorem 5.1, where the drift does not
    enter the stages along another noise."""
    tableau, c1 = tableaus.DRI1, tableaus.DRI1.c1
    alpha = np.array(tableau.alpha)
    beta1, beta2, beta3, beta4 = (np.array(getattr(tableau, f"beta{k}")) for k in range(1, 5))
    e, a0, b2 = np.ones(3), square(tableau.a0), square(((), *tableau.b2))
    # Matrices of which only the first column is not zero.
    columns = (tableau.b0, (0.0, c1, c1), (0.0, *tableau.b1))
    b0, a1, b1 = (np.outer(column, [1.0, 0.0, 0.0]) for column in columns)
    a0e, b0e, a1e, b1e, b2e = (x @ e for x in (a0, b0, a1, b1, b2))
    of_alpha = [b0 @ b1e, b0e * (b0 @ b1e)]
    of_beta1 = [b1e, b1 @ b1e, a1 @ b0e, a1e * b1e, b1 @ a1e, b1e**3, b1 @ b1e**2]
    of_beta1 += [(a1 @ b0e) * b1e, a1 @ b0 @ b1e, b1 @ a1 @ b0e, b1e * (b1 @ b1e), b1 @ b1 @ b1e]
    of_beta2 = [e, a1e, a1 @ b0e, a1 @ b0e**2, b1e**2, b1 @ b1e]
    of_beta3 = [e, b2e, b2 @ b1e, b2 @ b1 @ b1e, b2 @ a1e, b2e**3, b2 @ b1e**2, b2 @ a1 @ b0e]
    of_beta3 += [b2e * (b2 @ b1e)]
    of_beta4 = [e, b2e**2, b2 @ b1e, b2e**4, (b2 @ b1e) ** 2, b2e * (b2 @ b1e), b2e * (b2 @ a1e)]
    of_beta4 += [b2e * (b2 @ b1e**2), b2e * (b2 @ b1 @ b1e)]
    weights = (alpha, beta1, beta2, beta3, beta4)
    vanishing = (of_alpha, of_beta1, of_beta2, of_beta3, of_beta4)
    for weight, vectors in zip(weights, vanishing, strict=True):
        np.testing.assert_allclose(np.stack(vectors) @ weight, 0.0, atol=3e-14)
    got = [alpha @ e, beta1 @ e, beta2 @ b1e, beta4 @ b2e]
    np.testing.assert_allclose(got, 1.0, atol=3e-14)
    got = [*(alpha @ v for v in (a0e, b0e**2, b0e)), beta1 @ a1e, beta1 @ b1e**2, beta3 @ b2e**2]
    np.testing.assert_allclose(got, 0.5, atol=3e-14)


@pytest.mark.parametrize("method", STRONG_METHODS, ids=lambda m: f"{m.name}-{m.equation}")
def test_strong_order(method: StrongMethod) -> None:
    errors = rms_errors(method.make(), EQUATIONS[method.equation](), method.steps)
    excess = observed_order(errors, method.steps) - method.order
    assert -0.2 < excess < method.at_most, errors


@pytest.mark.parametrize(
    ("equation", "alg", "tolerance"),
    [
        (linear_equation("ito"), dj.SRIW1(), 1e-3),
        (linear_equation("stratonovich"), dj.RKMil(), 2e-2),
        (additive_equation(), dj.SOSRA(), 1e-6),
        (stiff_quadratic(), dj.SOSRI2(), 5e-3),
        (two_by_four(), dj.RKMilCommute(), 1e-2),
    ],
    ids=["linear-ito", "linear-stratonovich", "additive", "stiff-quadratic", "2x4"],
)
def test_public_problems_path_by_path(
    equation: Equation, alg: dj.Algorithm, tolerance: float
) -> None:
    assert rms_errors(alg, equation, (256,), paths=50)[0] < tolerance


@pytest.mark.usefixtures("optimised")
def test_strong_order_of_additive_noise_with_a_nonlinear_drift() -> None:
    """du = sin(2u) dt + s dW against SRA3 with 2048 steps on the same path. The noise in the stages
    of SKenCarp is some 14 times that of the others, so that it has less of it here, and terms of
    higher order show."""
    steps = (16, 32, 64, 128)
    cases = [(dj.SRA1(), 1.0), (dj.SRA3(), 1.0), (dj.SOSRA(), 1.0), (dj.SKenCarp(), 0.05)]

    @jax.jit
    @jax.vmap
    def errors(tree: dj.noise.VirtualBrownianTree) -> Array:
        def solved(alg: dj.Algorithm, strength: Any, steps: tuple[int, ...]) -> Array:
            prob = dj.SDEProblem(
                lambda u, p, t: jnp.sin(2 * u),
                lambda u, p, t: jnp.full(1, strength),
                jnp.ones(1),
                (0.0, 1.0),
                noise="additive",
            )
            return ends(prob, alg, steps, tree)[:, 0]

        strengths = jnp.array([1.0, 0.05])
        strong, weak = jax.lax.map(lambda s: solved(dj.SRA3(), s, (*steps, 2048)), strengths)
        fine = {1.0: strong[-1], 0.05: weak[-1]}
        rows = [strong[:-1] if alg.name == "SRA3" else solved(alg, s, steps) for alg, s in cases]
        return jnp.stack([row - fine[s] for row, (_, s) in zip(rows, cases, strict=True)]) ** 2

    got = np.sqrt(np.mean(errors(brownian_paths(300, 1)[0]), axis=0))
    orders = [observed_order(row, steps) for row in got]
    assert np.all(np.abs(np.array(orders[:3]) - 1.5) < 0.2), orders
    assert orders[3] > 1.3, orders


@pytest.mark.parametrize("interpretation", ["ito", "stratonovich"])
def test_strong_order_of_general_noise(interpretation: str) -> None:
    """Roessler 2010, equation 7.4, for which the areas matter to no more than their symmetry."""
    equation, alg, steps = (
        linear_system("general", interpretation),
        dj.RKMilGeneral(),
        (32, 64, 128),
    )

    @jax.jit
    @jax.vmap
    def errors(key: Array) -> Array:
        noise, squares = StepNoise(key_words(key), equation.dim), []
        for n in steps:
            dt, need = jnp.asarray(1.0 / n), alg.need(equation.dim)
            dw = jax.vmap(lambda i, dt=dt, need=need: noise.over(i, 0 * dt, dt, need, None)[0].dw)
            w = jnp.sum(dw(jnp.arange(n)), axis=0)
            sol = dj.solve(equation.problem, alg, steps=n, adaptive=False, path=noise)
            squares.append(jnp.mean((sol.u[-1] - equation.exact(w, w)) ** 2))
        return jnp.stack(squares)

    got = np.sqrt(np.mean(errors(jax.random.split(jax.random.key(4), 400)), axis=0))
    assert abs(observed_order(got, steps) - 1.0) < 0.2, got


def test_moments_of_levy_areas() -> None:
    """One step for (W_1, W_2, int W_1 dW_2). Of the area over [0, 1] the characteristic function is
    1/cosh(s/2), so that its moments are 1/4 and 5/16; given W its variance is (1 + |W|^2)/12 (Levy,
    Wiener's random function, 1951)."""

    def g(u: Array, p: Any, t: Array) -> Array:
        one, zero = jnp.ones_like(u[0]), jnp.zeros_like(u[0])
        return jnp.stack([jnp.stack([one, zero, zero]), jnp.stack([zero, one, u[0]])], axis=-1)

    prob = dj.SDEProblem(
        lambda u, p, t: jnp.zeros_like(u), g, jnp.zeros(3), (0.0, 1.0), noise="general"
    )
    keys = jax.random.split(jax.random.key(5), 40000)
    alg = dj.RKMilGeneral(terms=8)
    solve = jax.jit(jax.vmap(lambda k: dj.solve(prob, alg, steps=1, adaptive=False, key=k).u[-1]))
    w1, w2, integral = np.asarray(solve(keys)).T
    area, square = integral - w1 * w2 / 2, w1**2 + w2**2
    # Four standard errors each.
    assert abs(np.mean(area)) < 0.01
    assert abs(np.mean(area**2) - 1 / 4) < 0.01
    assert abs(np.mean(area**4) - 5 / 16) < 0.046
    assert abs(np.mean(area**2 * square) - 5 / 6) < 0.05


def test_additive_noise_alone_is_exact() -> None:
    prob = dj.SDEProblem(
        lambda u, p, t: jnp.zeros_like(u), lambda u, p, t: jnp.ones(2), jnp.zeros(2), (0.0, 1.0)
    )
    prob = dj.remake(prob, noise="additive")

    @jax.jit
    def solved(key: Array) -> tuple[list[Array], Array]:
        tree = dj.noise.VirtualBrownianTree(0.0, 1.0, 2, key, depth=DEPTH)
        algs = [dj.SRA1(), dj.SOSRA(), dj.SKenCarp()]
        return [dj.solve(prob, alg, steps=20, path=tree).u_end for alg in algs], tree(1.0)

    got, wanted = solved(jax.random.key(6))
    np.testing.assert_allclose(np.stack(got), np.tile(wanted, (3, 1)), atol=1e-14)


def test_stiff_drift_far_above_the_explicit_limit() -> None:
    """du = -1e4 (u - cos t) dt + 0.01 dW with steps of 1/20; the solution stays at cos t."""
    tree = dj.noise.VirtualBrownianTree(0.0, 1.0, 1, jax.random.key(7), depth=DEPTH)

    def solve(alg: dj.Algorithm, stiffness: float) -> Array:
        prob = dj.SDEProblem(
            lambda u, p, t: -stiffness * (u - jnp.cos(t)),
            lambda u, p, t: jnp.full(1, 0.01),
            jnp.ones(1),
            (0.0, 1.0),
            noise="additive",
        )
        return dj.solve(prob, alg, steps=20, adaptive=False, path=tree, throw=False).u[-1, 0]

    @jax.jit
    def ends() -> tuple[list[Array], Array, Array]:
        algs = [dj.ImplicitEM(), dj.STrapezoid(), dj.ImplicitRKMil(), dj.SKenCarp()]
        stabilised = dj.SROCK1(stages=20)
        return (
            [solve(alg, 1e4) for alg in algs],
            solve(dj.EM(), 1e4),
            solve(stabilised, 0.9 * 20 * stabilised.bound),
        )

    implicit, explicit, stabilised = ends()
    # The noise of one step is 0.002 large, of which SKenCarp leaves some 14 times.
    assert np.all(np.abs(np.array(implicit) - np.cos(1.0)) < 0.1), implicit
    assert not abs(explicit) < 1e6
    assert abs(stabilised - np.cos(1.0)) < 0.1


def test_gradients_of_implicit_methods() -> None:
    """Of backward Euler's against the recursion written out; of SKenCarp's against differences."""
    tree = dj.noise.VirtualBrownianTree(0.0, 1.0, 1, jax.random.key(8), depth=DEPTH)
    n = 32

    def end(alg: dj.Algorithm, rate: Array) -> Array:
        prob = dj.SDEProblem(
            lambda u, p, t: -p * u**3,
            lambda u, p, t: jnp.full(1, 0.5) * p,
            jnp.ones(1),
            (0.0, 1.0),
            rate,
            noise="additive",
        )
        return dj.solve(prob, alg, steps=n, adaptive=False, path=tree).u[-1, 0]

    def recursion(rate: Array) -> Array:
        w = tree(jnp.arange(n + 1) / n)[:, 0]

        def step(u: Array, dw: Array) -> tuple[Array, None]:
            base = u + 0.5 * rate * dw
            for _ in range(5):
                u = u - (u + rate * u**3 / n - base) / (1 + 3 * rate * u**2 / n)
            return u, None

        return jax.lax.scan(step, jnp.ones(()), jnp.diff(w))[0]

    @jax.jit
    def compared(p: Array) -> tuple[Any, Any, Array, Array]:
        stages = lambda p: end(dj.SKenCarp(), p)  # noqa: E731
        difference = (stages(p + 1e-5) - stages(p - 1e-5)) / 2e-5
        of_euler = jax.value_and_grad(lambda p: end(dj.ImplicitEM(), p))(p)
        return of_euler, jax.value_and_grad(recursion)(p), jax.grad(stages)(p), difference

    got, wanted, of_stages, difference = compared(jnp.asarray(2.0))
    np.testing.assert_allclose(got, wanted, rtol=1e-11)
    np.testing.assert_allclose(of_stages, difference, rtol=1e-8)


@pytest.mark.parametrize(
    ("alg", "equation"),
    [
        (dj.RKMilCommute(), "commuting ito"),
        (dj.RKMilCommute(), "commuting stratonovich"),
        (dj.ImplicitEM(), "ito"),
        (dj.ImplicitRKMil(), "stratonovich"),
        (dj.SKenCarp(), "polynomial"),
    ],
    ids=lambda x: x if isinstance(x, str) else x.name,
)
def test_adaptive_steps_follow_the_tolerance(alg: dj.Algorithm, equation: str) -> None:
    """A hundredth of the tolerance takes more steps and gives less than half the error. At the
    loose one steps are not bounded by the error, but by 9/8 of the step before."""
    case = EQUATIONS[equation]()

    @jax.jit
    @jax.vmap
    def errors(key: Array) -> tuple[Array, Array]:
        tree = dj.noise.VirtualBrownianTree(0.0, 1.0, case.dim, key)
        end = tree.look(jnp.ones(()))

        def one(rtol: Array) -> tuple[Array, Array]:
            sol = dj.solve(case.problem, alg, rtol=rtol, atol=rtol, path=tree, max_steps=20000)
            error = sol.u[-1] - case.exact(end.w, end.integral)
            return jnp.mean(error**2), sol.stats.naccept

        return jax.vmap(one)(jnp.array([1e-1, 1e-3]))

    squares, steps = errors(jax.random.split(jax.random.key(9), 20))
    loose, tight = np.sqrt(np.mean(squares, axis=0))
    assert np.all(np.asarray(steps)[:, 1] > np.asarray(steps)[:, 0])
    assert tight < 0.5 * loose, (loose, tight)


def test_inputs_of_general_noise() -> None:
    with pytest.raises(ValueError, match="terms must be a positive integer, got 0"):
        dj.RKMilGeneral(terms=0)
    equation = linear_system("general", "ito")
    prob = dj.remake(equation.problem, correlation=jnp.eye(2))
    with pytest.raises(ValueError, match="takes independent noises only"):
        dj.solve(prob, dj.RKMilGeneral(), dt=0.1, key=jax.random.key(0))


def enumerated(values: np.ndarray, weights: np.ndarray, n: int) -> tuple[Array, Array]:
    """Every sequence of n of some values of dW/sqrt(dt), (paths, n, dim), and its weight."""
    choices = np.indices((len(weights),) * n).reshape(n, -1).T
    return jnp.asarray(values[choices]), jnp.asarray(np.prod(weights[choices], axis=1))


def weak_errors(
    prob: dj.SDEProblem, values: np.ndarray, weights: np.ndarray, steps: tuple[int, ...], of: Any
) -> np.ndarray:
    """The expectation of a function of the end, over every path that a method tells apart: its
    noise has few values, so that no path is drawn and there is no sampling error."""
    t1, errors = prob.tspan[1], []
    for n in steps:
        draws, likely = enumerated(values, weights, n)
        times = jnp.linspace(0.0, t1, n + 1)

        def value(draw: Array, times: Array = times, n: int = n) -> Array:
            w = jnp.concatenate([jnp.zeros_like(draw[:1]), jnp.cumsum(draw, axis=0)])
            path = dj.noise.NoiseGrid(times, w * np.sqrt(t1 / n))
            return of(dj.solve(prob, dj.DRI1(), steps=n, adaptive=False, path=path).u[-1])

        errors.append(jnp.sum(likely * jax.jit(jax.vmap(value))(draws)))
    return np.array(errors)


def test_weak_order_of_dri1() -> None:
    def functional(u: Array) -> Array:
        z = jnp.arcsinh(u[0])
        return z**3 - 6 * z**2 + 8 * z

    steps = (4, 6, 9)
    values, weights = np.array([[-2.0], [0.1], [2.0]]), np.array([1 / 6, 2 / 3, 1 / 6])
    errors = np.abs(weak_errors(asinh_equation(), values, weights, steps, functional))
    assert abs(observed_order(errors, steps) - 2.0) < 0.3, errors


def test_weak_order_of_dri1_with_noise_that_does_not_commute() -> None:
    """A linear equation, whose second moments obey a linear equation of their own."""
    drift = np.array([[-0.5, 0.4], [-0.3, -0.2]])
    columns = np.array([[[0.4, 0.3], [0.0, -0.2]], [[0.1, 0.0], [0.5, 0.3]]])
    start = np.array([1.0, 0.5])
    prob = dj.SDEProblem(
        lambda u, p, t: jnp.asarray(drift) @ u,
        lambda u, p, t: jnp.stack([jnp.asarray(b) @ u for b in columns], axis=-1),
        jnp.asarray(start),
        (0.0, 0.5),
        noise="general",
    )
    eye = np.eye(2)
    moments = np.kron(drift, eye) + np.kron(eye, drift) + sum(np.kron(b, b) for b in columns)
    exact = jax.scipy.linalg.expm(jnp.asarray(0.5 * moments)) @ np.kron(start, start)
    # A value of each of the six classes that an increment is told apart by.
    each, likely = (-2.0, -1.1, -0.1, 0.1, 1.1, 2.0), np.array([1, 1, 4, 4, 1, 1]) / 12
    values = np.stack(np.meshgrid(each, each), axis=-1).reshape(-1, 2)
    weights = np.outer(likely, likely).reshape(-1)
    steps = (1, 2, 3)
    got = weak_errors(prob, values, weights, steps, lambda u: u[0] * u[1])
    errors = np.abs(got - float(exact[1]))
    assert abs(observed_order(errors, steps) - 2.0) < 0.3, errors


def test_draws_of_dri1() -> None:
    """The classes that an increment is told apart by have the probabilities that they must have."""
    z = np.asarray(jax.random.normal(jax.random.key(10), (200000,)))
    three, two = _Draws.of(jnp.asarray(z), jnp.ones(()))
    three, two = np.asarray(three), np.asarray(two)
    for value, likely in ((-(3**0.5), 1 / 6), (0.0, 2 / 3), (3**0.5, 1 / 6)):
        chosen = np.isclose(three, value)
        # Four standard errors.
        assert abs(np.mean(chosen) - likely) < 0.0043
        assert abs(np.mean(two[chosen])) < 4 / np.sqrt(np.sum(chosen))
