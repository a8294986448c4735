"""Sparse Jacobians: patterns found and given, band matrices, products without a matrix."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg, sparse

import diffjax as dj
from diffjax.linear.band import Band, BandShape
from diffjax.linear.dense import factorize
from diffjax.linear.detection import detected
from diffjax.linear.sparsity import Sparsity, full_band
from tests.problems import DATA

# Band matrices -----------------------------------------------------------------------------


def band_of(dense: np.ndarray, lower: int, upper: int, order: np.ndarray | None) -> Band:
    return Band.of_dense(jnp.asarray(dense), BandShape(len(dense), lower, upper, order))


def draw(n: int, lower: int, upper: int, seed: int = 0) -> np.ndarray:
    """A band matrix with rows of all sizes and a diagonal that no elimination should divide by."""
    rng = np.random.default_rng(seed)
    matrix = np.where(full_band(n, lower, upper).toarray(), rng.normal(size=(n, n)), 0)
    np.fill_diagonal(matrix, np.diag(matrix) * 1e-9)
    return matrix * 10.0 ** rng.uniform(-6, 6, size=(n, 1))


def skeel(matrix: np.ndarray, x: np.ndarray) -> float:
    """Skeel's condition of a system: it does not see the scale of the rows."""
    return float(np.max(np.abs(np.linalg.inv(matrix)) @ np.abs(matrix) @ np.abs(x)))


@pytest.mark.parametrize(
    ("n", "lower", "upper"), [(30, 2, 2), (25, 1, 4), (12, 5, 2), (70, 13, 17)]
)
def test_band_solve(n: int, lower: int, upper: int) -> None:
    """As accurate as LAPACK's band solver with pivoting; transposed, in any order, for lanes."""
    rng = np.random.default_rng(1)
    matrix, b = draw(n, lower, upper), rng.normal(size=n)
    stored = np.zeros((lower + upper + 1, n))
    for i, j in np.argwhere(matrix):
        stored[upper + i - j, j] = matrix[i, j]
    exact = linalg.solve_banded((lower, upper), stored, b)
    back = np.linalg.solve(matrix.T, b)
    order = rng.permutation(n)
    place = np.argsort(order)
    mixed = matrix[np.ix_(place, place)]
    band, shuffled = band_of(matrix, lower, upper, None), band_of(mixed, lower, upper, order)

    @jax.jit
    def solved(band: Band, b: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        factors = band.factors()
        return factors.solve(b), factors.solve_transposed(b), band.times(b)

    tolerance, transposed = 1e-14 * n * skeel(matrix, exact), 1e-14 * n * skeel(matrix.T, back)
    for forwards, one, right in ((slice(None), band, b), (place, shuffled, b[place])):
        x, y, product = solved(one, jnp.asarray(right))
        assert np.max(np.abs(x - exact[forwards])) <= tolerance
        assert np.max(np.abs(y - back[forwards])) <= 100 * transposed
        np.testing.assert_allclose(product, (matrix @ b)[forwards], rtol=1e-12)
    lanes = Band(jnp.stack([band.rows, 0 * band.rows]), band.shape)
    x, _, _ = jax.vmap(solved, in_axes=(0, None))(lanes, jnp.asarray(b))
    assert np.max(np.abs(x[0] - exact)) <= tolerance
    assert not np.any(np.isfinite(x[1]))
    turned = Band(jax.lax.complex(band.rows, band.rows), band.shape)
    x, _, _ = solved(turned, b + 0j)
    assert np.max(np.abs(np.asarray(x) * (1 + 1j) - exact)) <= 10 * tolerance


@pytest.mark.parametrize(("n", "lower", "upper"), [(7, 1, 2), (40, 13, 12)])
def test_derivatives_of_a_band_solve(n: int, lower: int, upper: int) -> None:
    """Of x = A^-1 b, with respect to both, forwards, backwards and twice."""
    shape = BandShape(n, lower, upper)
    rng = np.random.default_rng(2)
    matrix = np.where(shape.mask(), rng.normal(size=(n, n)), 0) + n * np.eye(n)
    change, b = np.where(shape.mask(), rng.normal(size=(n, n)), 0), jnp.asarray(rng.normal(size=n))

    def first(s: jax.Array, banded: bool) -> jax.Array:
        dense = jnp.asarray(matrix) + s * jnp.asarray(change)
        right = b * jnp.cos(s)
        solve = factorize(Band.of_dense(dense, shape)) if banded else None
        return jnp.sum(jnp.sin(jnp.linalg.solve(dense, right) if solve is None else solve(right)))

    at = jnp.asarray(0.3)

    @partial(jax.jit, static_argnums=1)
    def derivatives(s: jax.Array, banded: bool) -> list[jax.Array]:
        each = (jax.grad, jax.jacfwd, lambda f: jax.jacfwd(jax.grad(f)))
        return [derivative(lambda s: first(s, banded))(s) for derivative in each]

    np.testing.assert_allclose(derivatives(at, True), derivatives(at, False), rtol=1e-11)


# Patterns --------------------------------------------------------------------------------

FIELDS: dict[str, tuple[Callable[[Any, Any, Any], Any], int]] = {
    # A field, and how many entries more than the Jacobian has may be found.
    "rolled": (lambda u, p, t: jnp.roll(u, 1) * u - jnp.roll(u, -1) ** 2, 0),
    "padded": (lambda u, p, t: jnp.pad(u, 1, constant_values=p[0])[2:] - 2 * u, 0),
    "updated": (lambda u, p, t: u.at[1:-1].add(u[2:] * u[:-2]).at[0].set(p[1]), 0),
    "gathered": (lambda u, p, t: u[jnp.array([3, 0, 2, 1, 5, 4])] * u, 0),
    "chosen": (lambda u, p, t: jnp.where(u > 0, u, jnp.sin(u[::-1])), 0),
    "convolved": (lambda u, p, t: jnp.convolve(u, p, mode="same"), 0),
    "summed": (lambda u, p, t: jnp.tanh(u) * jnp.sum(u[:2]), 0),
    "multiplied": (lambda u, p, t: (jnp.eye(6) - jnp.eye(6, k=1)) @ u, 0),
    "branched": (lambda u, p, t: jax.lax.cond(t > 0, lambda u: u, lambda u: u[::-1], u), 0),
    "stacked": (lambda u, p, t: jnp.stack([u[1], u[0] * u[2], u[3], u[4], u[5], u[5]]), 0),
    "shaped": (lambda u, p, t: (u.reshape(2, 3).T[:, ::-1] * p[0]).reshape(6), 0),
    "activated": (lambda u, p, t: jax.nn.relu(u) + jax.nn.softplus(jnp.flip(u)), 0),
    "scanned": (lambda u, p, t: jax.lax.scan(lambda c, x: (c + x, c), 0 * u[0], u)[1], 21),
}


@pytest.mark.parametrize("name", FIELDS)
def test_detection(name: str) -> None:
    """No entry is missed, at any state and parameter; few that are none are found."""
    f, extra = FIELDS[name]
    rng = np.random.default_rng(0)
    p = jnp.asarray(rng.uniform(1.0, 2.0, size=3))
    # Traced parameters, as in a compiled solve.
    found: list[np.ndarray] = []

    @jax.make_jaxpr
    def trace(u: jax.Array, p: jax.Array) -> jax.Array:
        found.append(detected(f, u, p, jnp.ones(())).toarray())
        return u

    trace(jnp.ones(6), p)
    entries, jacobian = np.zeros((6, 6)), jax.jit(jax.jacfwd(f))
    for t in (-1.0, 1.0):
        for _ in range(3):
            entries += np.abs(jacobian(rng.normal(size=6), p, t))
    assert not np.any((entries != 0) & ~found[0])
    assert np.sum((entries == 0) & found[0]) <= extra


def test_few_directional_derivatives() -> None:
    """A band needs as many as it has diagonals, in any order of its coordinates; an arrow pattern
    two; a column with a row in common with all others one of its own."""
    n = 200
    band = full_band(n, 2, 1)
    order = np.random.default_rng(0).permutation(n)
    shuffled = Sparsity.of_pattern(sparse.csr_array(band[order][:, order]))
    assert shuffled.band is not None
    assert shuffled.band.width <= 2 * 4
    assert shuffled.groups <= shuffled.band.width
    assert Sparsity.of_band(n, 2, 1).groups == 4
    arrow = np.eye(n, dtype=bool)
    arrow[:, 0] = True
    sparsity = Sparsity.of_pattern(sparse.csr_array(arrow))
    assert sparsity.band is None
    assert sparsity.groups == 2
    # A field in a periodic plane: a wide band, and as many as its pattern has colours.
    ring = (
        full_band(20, 1, 1).toarray() | np.eye(20, k=19, dtype=bool) | np.eye(20, k=-19, dtype=bool)
    )
    ring, eye = sparse.coo_array(ring), sparse.eye_array(20)
    plane = sparse.csr_array(sparse.kron(ring, eye) + sparse.kron(eye, ring))
    sparsity = Sparsity.of_pattern(plane != 0)
    assert sparsity.band is not None
    assert sparsity.band.is_wide
    assert sparsity.groups <= 10


# Solves ----------------------------------------------------------------------------------

P = jnp.array([1.0, 3.0, 5.0])


def brusselator(w: jax.Array, p: jax.Array, t: jax.Array) -> jax.Array:
    """Two substances on a line, as two rows: neighbours are far apart in the flattened state."""
    u, v = w

    def diffusion(x: jax.Array, edge: float) -> jax.Array:
        padded = jnp.pad(x, 1, constant_values=edge)
        return p[2] * (padded[2:] - 2 * x + padded[:-2])

    du = p[0] * (1 + 0.1 * jnp.sin(t)) + u**2 * v - 4 * u + diffusion(u, 1.0)
    return jnp.stack([du, p[1] * u - u**2 * v + diffusion(v, 3.0)])


def start(n: int) -> jax.Array:
    x = jnp.arange(1, n + 1) / (n + 1)
    return jnp.stack([1 + jnp.sin(2 * jnp.pi * x), jnp.full(n, 3.0)])


def near(u: jax.Array, gamma_dt: jax.Array) -> Callable[[jax.Array], jax.Array]:
    return lambda r: r / (1 + 10 * gamma_dt)


def gradient(name: str, sparsity: Any) -> tuple[jax.Array, jax.Array]:
    """A loss and its derivative, where every argument matters, the mass matrix among them."""
    newton_krylov = dj.Trapezoid(linear_solver=dj.GMRES(preconditioner=near))
    methods = {"Rosenbrock": dj.Rosenbrock23(), "Newton": dj.Trapezoid(), "GMRES": newton_krylov}
    mass = jnp.linspace(1.0, 2.0, 32)

    def total(p: jax.Array) -> jax.Array:
        options = {"mass_matrix": mass * p[0], "jac_sparsity": sparsity}
        prob = dj.ODEProblem(brusselator, start(16) * p[0], (0.0, 1.0), p, **options)
        return jnp.sum(jnp.sin(dj.solve(prob, methods[name], steps=4).u_end))

    return jax.jit(jax.value_and_grad(total))(P)


@pytest.mark.slow
def test_gradients_are_those_of_dense_matrices() -> None:
    """Value and derivative to 1e-9, of band matrices and without a matrix."""
    dense, rosenbrock = gradient("Newton", None), gradient("Rosenbrock", None)
    pairs = [
        (gradient("Newton", "detect"), dense),
        (gradient("GMRES", None), dense),
        (gradient("Rosenbrock", "detect"), rosenbrock),
    ]
    for got, wanted in pairs:
        np.testing.assert_allclose(got[0], wanted[0], rtol=1e-11)
        np.testing.assert_allclose(got[1], wanted[1], rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("make", [dj.FBDF, dj.RadauIIA5])
def test_newton_krylov_methods_of_other_families(make: Callable[..., dj.Algorithm]) -> None:
    """As with matrices: value and derivative under a mass matrix, and lanes in single precision."""
    mass, u0 = jnp.linspace(1.0, 2.0, 8), start(4)

    def loss(p: jax.Array, solver: dj.GMRES | None) -> jax.Array:
        prob = dj.ODEProblem(brusselator, u0 * p[0], (0.0, 1.0), p, mass_matrix=mass * p[0])
        return jnp.sum(jnp.sin(dj.solve(prob, make(linear_solver=solver), steps=3).u_end))

    derivative = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    got, wanted = derivative(P, dj.GMRES(preconditioner=near)), derivative(P, None)
    np.testing.assert_allclose(got[0], wanted[0], rtol=1e-11)
    np.testing.assert_allclose(got[1], wanted[1], rtol=1e-9)

    def end(scale: jax.Array, solver: dj.GMRES | None) -> dj.Solution:
        prob = dj.ODEProblem(brusselator, (scale * u0).astype(jnp.float32), (0.0, 1.0))
        options = {"p": P.astype(jnp.float32), "rtol": 1e-4, "atol": 1e-4, "throw": False}
        return dj.solve(prob, make(linear_solver=solver), **options)

    lanes = jax.jit(jax.vmap(end, (0, None)), static_argnums=1)
    scales = jnp.array([1.0, 1.1])
    got, wanted = lanes(scales, dj.GMRES()), lanes(scales, None)
    assert got.u.dtype == jnp.float32
    np.testing.assert_allclose(got.u, wanted.u, rtol=1e-4)
    assert np.all(got.stats.nf <= wanted.stats.nf + 10)
    assert np.all(got.stats.njac == 0)


@pytest.mark.slow
def test_lanes_and_backward_time_and_single_precision() -> None:
    """Each lane as if alone; back to the start; float32 throughout."""

    def end(p: jax.Array, u0: jax.Array, tspan: tuple[float, float] = (0.0, 0.2)) -> dj.Solution:
        prob = dj.ODEProblem(brusselator, u0, tspan, p, jac_sparsity="detect")
        tolerance = 1e-4 if u0.dtype == jnp.float32 else 1e-7
        return dj.solve(prob, dj.Rodas3P(), rtol=tolerance, atol=tolerance, throw=False)

    single = jax.jit(end, static_argnums=2)
    ps = jnp.stack([P, P * jnp.nan, 0.5 * P])
    lanes = jax.jit(jax.vmap(lambda p: end(p, start(12)).u[-1]))(ps)
    assert not np.any(np.isfinite(lanes[1]))
    for i in (0, 2):
        np.testing.assert_allclose(lanes[i], single(ps[i], start(12)).u_end, rtol=1e-6)
    back = single(P, lanes[0], (0.2, 0.0)).u_end
    np.testing.assert_allclose(back, start(12), rtol=1e-3)
    low = single(P.astype(jnp.float32), start(12).astype(jnp.float32)).u_end
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, lanes[0], rtol=5e-3)


def test_complex_and_nested_states() -> None:
    """A Schrodinger equation on a line beside a decay: i w' = -w_xx + x, x' = -x."""
    n = 20

    def f(u: dict[str, jax.Array], p: Any, t: jax.Array) -> dict[str, jax.Array]:
        w = jnp.pad(u["w"], 1)
        laplacian = 9.0 * (w[2:] - 2 * u["w"] + w[:-2])
        force = jax.lax.complex(u["x"], 0 * u["x"])
        return {"w": (laplacian - force) * jnp.asarray(1j), "x": -u["x"]}

    x = jnp.linspace(0.0, 1.0, n)
    u0 = {"w": jax.lax.complex(jnp.cos(x), jnp.sin(x)), "x": jnp.cos(x)}
    ends = []
    for sparsity in ("detect", None):
        prob = dj.ODEProblem(f, u0, (0.0, 0.3), jac_sparsity=sparsity)
        ends.append(dj.solve(prob, dj.Rosenbrock23(), steps=5).u_end)
    for key in u0:
        np.testing.assert_allclose(ends[0][key], ends[1][key], rtol=1e-10)
    dj.check_sparsity(dj.ODEProblem(f, u0, (0.0, 0.3), jac_sparsity="detect"))


def interleaved(w: jax.Array, p: Any, t: jax.Array) -> jax.Array:
    """The Brusselator with u and v of a point side by side, in the units of its reference."""
    p = jnp.array([1.0, 3.0, (w.shape[0] // 2 + 1) ** 2 / 50])
    return brusselator(w.reshape(-1, 2).T, p, t * 0).T.reshape(-1)


def test_bruss1d() -> None:
    """The published problem of 1,000 equations to its reference, with bounded work."""
    entry = DATA["BRUSS1D_N500"]
    n, reference = entry["parameters"]["N"], entry["reference"]
    x = jnp.arange(1, n + 1) / (n + 1)
    u0 = jnp.stack([1 + 0.5 * jnp.sin(2 * jnp.pi * x), jnp.full(n, 3.0)], axis=1).reshape(-1)
    prob = dj.ODEProblem(interleaved, u0, (0.0, 10.0), jac_sparsity=(2, 2))
    sol = dj.solve(prob, dj.Rodas5P(), rtol=1e-6, atol=1e-6)
    shown = np.asarray(sol.u_end)[reference["components_0based"]]
    np.testing.assert_allclose(shown, reference["values"], rtol=2e-5)
    # 72 attempts, each eight evaluations and the five directional derivatives.
    attempts = int(sol.stats.naccept) + int(sol.stats.nreject)
    assert attempts <= 86
    assert int(sol.stats.njac) == int(sol.stats.nfactor) == attempts
    assert int(sol.stats.nf) <= 8 * attempts + 2


def plane(u: jax.Array, p: jax.Array, t: jax.Array) -> jax.Array:
    """Heat and a reaction in a plane."""
    around = sum(jnp.roll(u, k, axis) for k in (1, -1) for axis in (0, 1))
    return p[1] * 20 * (around - 4 * u) + p[0] * u - u**3


@pytest.mark.slow
def test_a_field_in_a_plane() -> None:
    """Solved with blocks and as a fully implicit equation; the matrices of both are kept."""
    n = 15
    u0 = jnp.cos(jnp.arange(1.0 * n)[:, None] * jnp.linspace(0.1, 0.4, n)[None, :])
    prob = dj.ODEProblem(plane, u0, (0.0, 1.0), P, jac_sparsity="detect")
    implicit = dj.DAEProblem(
        lambda du, u, p, t: du - plane(u, p, t), 0 * u0, u0, (0.0, 1.0), P, jac_sparsity="detect"
    )
    dj.check_sparsity(implicit)
    fine = dj.solve(prob, dj.Tsit5(), rtol=1e-7, atol=1e-7).u_end
    for given, alg in ((prob, dj.TRBDF2()), (implicit, dj.DFBDF())):
        sol = dj.solve(given, alg, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(sol.u_end, fine, atol=1e-4)
        assert int(sol.stats.njac) <= 0.5 * (int(sol.stats.naccept) + int(sol.stats.nreject))

    @jax.jit
    @jax.value_and_grad
    def total(p: jax.Array) -> jax.Array:
        moved = dj.remake(implicit, tspan=(0.0, 0.1), p=p)
        return jnp.sum(jnp.sin(dj.solve(moved, dj.DFBDF(), steps=10).u_end))

    along = jnp.array([1.0, 0.5, 0.0])
    difference = (total(P + 1e-5 * along)[0] - total(P - 1e-5 * along)[0]) / 2e-5
    np.testing.assert_allclose(total(P)[1] @ along, difference, rtol=1e-7)


def test_a_jacobian_from_the_user() -> None:
    """It is cut to the band."""

    def jac(u: jax.Array, p: Any, t: jax.Array) -> jax.Array:
        return jax.jacfwd(brusselator)(u, p, t)

    prob = dj.ODEProblem(brusselator, start(12), (0.0, 0.1), P, jac_sparsity="detect")
    given = dj.remake(prob, jac=jac)
    ends = [dj.solve(x, dj.Rosenbrock23(), steps=2).u_end for x in (prob, given)]
    np.testing.assert_allclose(*ends, rtol=1e-12)


# Errors ----------------------------------------------------------------------------------


def problem(**options: Any) -> dj.ODEProblem:
    return dj.ODEProblem(brusselator, start(16), (0.0, 1.0), P, **options)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ("find", ValueError, '"detect"'),
        ((1, -1), ValueError, "not negative"),
        ((1.0, 2.0), TypeError, "pair of integers"),
        (np.ones((3, 4), bool), ValueError, "square"),
    ],
    ids=str,
)
def test_a_sparsity_that_is_none(given: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        problem(jac_sparsity=given)


def test_a_pattern_of_another_size() -> None:
    with pytest.raises(ValueError, match=r"jac_sparsity must have shape \(32, 32\)"):
        dj.solve(problem(jac_sparsity=np.eye(5, dtype=bool)), dj.Rosenbrock23(), steps=1)


def test_missing_entries_are_named() -> None:
    dj.check_sparsity(problem(jac_sparsity="detect"))
    with pytest.raises(ValueError, match=r"misses 32 entries .*\[0, 16\]"):
        dj.check_sparsity(problem(jac_sparsity=(2, 2)))
    with pytest.raises(TypeError, match="needs a problem with jac_sparsity"):
        dj.check_sparsity(problem())


def test_a_mass_matrix_outside_of_the_band() -> None:
    """An error where it is known, a failed solve where it is traced; never a wrong number."""
    mass = np.eye(8)
    mass[0, 7] = 0.1
    prob = dj.ODEProblem(lambda u, p, t: -u, jnp.ones(8), (0.0, 1.0), jac_sparsity=(1, 1))
    with pytest.raises(ValueError, match=r"mass_matrix has 1 entries .* \[0, 7\]"):
        dj.solve(dj.remake(prob, mass_matrix=mass), dj.Rosenbrock23())
    traced = dj.ODEProblem(lambda u, p, t: -u, jnp.ones(30), (0.0, 1.0), jac_sparsity=(1, 1))

    def end(entry: jax.Array) -> jax.Array:
        mass = jnp.eye(30).at[0, 7].set(entry)
        sol = dj.solve(dj.remake(traced, mass_matrix=mass), dj.Rosenbrock23(), steps=5)
        return sol.u_end

    ends = jax.jit(jax.vmap(end))(jnp.array([0.0, 0.1]))
    np.testing.assert_allclose(ends[0], np.exp(-1.0), rtol=1e-2)
    assert np.all(np.isnan(ends[1]))


def test_a_solver_that_is_none() -> None:
    with pytest.raises(TypeError, match=r"linear_solver must be like dj.GMRES\(\)"):
        dj.KenCarp4(linear_solver="gmres")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got GMRES"):
        dj.FBDF(linear_solver=dj.GMRES)  # type: ignore[arg-type]
    implicit = dj.DAEProblem(lambda du, u, p, t: du + u, -jnp.ones(2), jnp.ones(2), (0.0, 1.0))
    with pytest.raises(ValueError, match=r"linear_solver=dj.GMRES\(\) needs an equation M u' = f"):
        dj.solve(implicit, dj.RadauIIA5(linear_solver=dj.GMRES()))
    with pytest.raises(TypeError, match="preconditioner must be a function"):
        dj.GMRES(preconditioner=1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rtol must lie between 0 and 1"):
        dj.GMRES(rtol=0.0)
