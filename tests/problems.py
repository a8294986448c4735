"""The table of problems: fields by name, data and published references from `data/problems.json`.

A reference is a closed form, a published value, or the figure of an independent code (the file
says which). Nothing here was computed by diffjax.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy import special

import diffjax as dj

_FILE = Path(__file__).parent / "data" / "problems.json"
DATA: dict[str, dict[str, Any]] = {
    entry["name"]: entry for entry in json.loads(_FILE.read_text())["problems"]
}


@dataclass(frozen=True, eq=False)
class Case:
    """A problem and what is known of its solution.

    `exact(t)` is the closed form on an array of times, with time first; `end` the state at the
    end of the span. `u0`, `p` and `tspan` are numpy arrays and Python numbers.
    """

    name: str
    field: Callable[[Any, Any, Any], Any]
    u0: np.ndarray
    tspan: tuple[float, float]
    p: Any
    end: np.ndarray | None = None
    exact: Callable[[np.ndarray], np.ndarray] | None = None

    def ode(self, dtype: Any = float, **changes: Any) -> dj.ODEProblem:
        """The problem as diffjax takes it."""
        p = None if self.p is None else jnp.asarray(self.p, dtype)
        given = {"u0": jnp.asarray(self.u0, dtype), "tspan": self.tspan, "p": p}
        return dj.ODEProblem(self.field, **{**given, **changes})


# Fields -------------------------------------------------------------------------------


def linear(u: Any, p: Any, t: Any) -> Any:
    """u' = p u."""
    return p * u


def nonlinchem(u: Any, p: Any, t: Any) -> Any:
    """A chain of two reactions, the second quadratic."""
    return jnp.stack([-u[0], u[0] - u[1] ** 2, u[1] ** 2])


def lotka_volterra(u: Any, p: Any, t: Any) -> Any:
    """Prey and predators; p = (growth, predation, death, reproduction)."""
    x, y = u
    a, b, c, d = p
    return jnp.stack([a * x - b * x * y, -c * y + d * x * y])


def lotka_volterra_in_time(u: Any, p: Any, t: Any) -> Any:
    """Prey and predators whose interaction grows with time."""
    x, y = u
    a, b, c, d = p
    return jnp.stack([a * x - b * x * y * t, -c * y + d * t * x * y])


def fitzhugh_nagumo(u: Any, p: Any, t: Any) -> Any:
    """A spiking neuron; p = (a, b, 1/tau, current)."""
    v, w = u
    a, b, tauinv, current = p
    return jnp.stack([v - v**3 / 3.0 - w + current, tauinv * (v + a - b * w)])


def arenstorf(u: Any, p: Any, t: Any) -> Any:
    """The restricted three-body problem in rotating coordinates; p is the mass ratio."""
    x, y, vx, vy = u
    other = 1.0 - p
    d1 = ((x + p) ** 2 + y**2) ** 1.5
    d2 = ((x - other) ** 2 + y**2) ** 1.5
    ax = x + 2.0 * vy - other * (x + p) / d1 - p * (x - other) / d2
    ay = y - 2.0 * vx - other * y / d1 - p * y / d2
    return jnp.stack([vx, vy, ax, ay])


def vanderpol(u: Any, p: Any, t: Any) -> Any:
    """The oscillator of van der Pol; p is mu."""
    x, y = u
    return jnp.stack([y, p * (1.0 - x**2) * y - x])


def spiral(u: Any, p: Any, t: Any) -> Any:
    """The neural ODE paper's spiral, u' = A^T u^3; p is A."""
    return u**3 @ p


def oscillator(u: Any, p: Any, t: Any) -> Any:
    """q' = p, p' = -q."""
    return jnp.stack([u[1], -u[0]])


def falling_mass(u: Any, p: Any, t: Any) -> Any:
    """Free fall from rest; p = (g, m), and the mass cancels."""
    g, m = p
    return jnp.stack([u[1], -g * m / m])


def clock(u: Any, p: Any, t: Any) -> Any:
    """Nonlinear in the state and explicit in time, with the entire solution (exp sin t, cos t)."""
    x, y = u
    return jnp.stack([x * (y + jnp.cos(t)) / 2.0, -(jnp.log(x) + jnp.sin(t)) / 2.0])


def robertson(u: Any, p: Any, t: Any) -> Any:
    """Three reactions over nine decades of time; p = (k1, k2, k3)."""
    y1, y2, y3 = u
    k1, k2, k3 = p
    slow, fast, middle = k1 * y1, k2 * y2**2, k3 * y2 * y3
    return jnp.stack([middle - slow, slow - fast - middle, fast])


def robertson_dae(u: Any, p: Any, t: Any) -> Any:
    """Robertson's first two equations, and that the three concentrations add up to one."""
    rates = robertson(u, p, t)
    return jnp.stack([rates[0], rates[1], jnp.sum(u) - 1.0])


def hires(u: Any, p: Any, t: Any) -> Any:
    """High irradiance response of a plant: eight substances."""
    a, b, c, d, e, f, g, h = u
    joined = 280.0 * f * h - 1.81 * g
    return jnp.stack(
        [
            -1.71 * a + 0.43 * b + 8.32 * c + 0.0007,
            1.71 * a - 8.75 * b,
            -10.03 * c + 0.43 * d + 0.035 * e,
            8.32 * b + 1.71 * c - 1.12 * d,
            -1.745 * e + 0.43 * f + 0.43 * g,
            -280.0 * f * h + 0.69 * d + 1.71 * e - 0.43 * f + 0.69 * g,
            joined,
            -joined,
        ]
    )


def e5(u: Any, p: Any, t: Any) -> Any:
    """Four substances over thirteen decades of time; p = (A, B, M*C, C), u = (y1, y2, y4).

    y3 = y2 - y4, an invariant that four equations lose to rounding: y2 and y3 end twelve decades
    below where they were largest.
    """
    y1, y2, y4 = u
    a, b, mc, c = p
    y3 = y2 - y4
    joined = b * y1 * y3
    return jnp.stack([-a * y1 - joined, a * y1 - mc * y2 * y3, joined - c * y4])


def _akzo_rates(u: Any, p: Any) -> tuple[Any, ...]:
    y1, y2, y3, y4, y5, y6 = u
    k1, k2, k3, k4, equilibrium, transfer, pressure, henry = p
    root = jnp.sqrt(jnp.abs(y2))
    return (
        k1 * y1**4 * root,
        k2 * y3 * y4,
        k2 / equilibrium * y1 * y5,
        k3 * y1 * y4**2,
        k4 * y6**2 * root,
        transfer * (pressure / henry - y2),
    )


def chemakzo(u: Any, p: Any, t: Any) -> Any:
    """Chemical Akzo Nobel, six substances; p = (k1, k2, k3, k4, K, kla, pCO2, H)."""
    r1, r2, r3, r4, r5, inflow = _akzo_rates(u, p)
    return jnp.stack(
        [
            -2.0 * r1 + r2 - r3 - r4,
            -r1 / 2.0 - r4 - r5 / 2.0 + inflow,
            r1 - r2 + r3,
            -r2 + r3 - 2.0 * r4,
            r2 - r3 + r5,
            -r5,
        ]
    )


def chemakzo_dae(u: Any, p: Any, t: Any) -> Any:
    """The same with the sixth substance in equilibrium; the last of p is Ks."""
    rates = chemakzo(u, p[:-1], t)
    return jnp.concatenate([rates[:-1], (p[-1] * u[0] * u[3] - u[5])[None]])


def affine(u: Any, p: Any, t: Any) -> Any:
    """A u + t A 1; p is A."""
    return jnp.sum(p * (u + t)[None, :], axis=1)


# Closed forms -------------------------------------------------------------------------


def _linear_exact(u0: np.ndarray, p: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda t: np.exp(p * np.asarray(t)).reshape((-1,) + (1,) * u0.ndim) * u0


def _nonlinchem_exact(t: np.ndarray) -> np.ndarray:
    """Liu et al. 2012: Bessel functions of s = sqrt(e^-t)."""
    s = np.sqrt(np.exp(-np.asarray(t)))
    c = 2 * special.kv(1, 2.0) / special.iv(1, 2.0)
    top = 2 * s * special.kv(1, 2 * s) - c * s * special.iv(1, 2 * s)
    y2 = top / (2 * special.kv(0, 2 * s) + c * special.iv(0, 2 * s))
    return np.stack([s**2, y2, 1 - s**2 - y2], axis=-1)


def clock_exact(t: Any, np: Any = np) -> Any:
    """The solution of `clock`; `np` may be `jax.numpy`."""
    return np.stack([np.exp(np.sin(t)), np.cos(t)], axis=-1)


# The table ----------------------------------------------------------------------------


def _span(name: str) -> tuple[float, float]:
    t0, t1 = DATA[name]["tspan"]
    return float(t0), float(t1)


def _case(name: str, field: Any, p: Any, *, periodic: bool = False, **known: Any) -> Case:
    entry = DATA[name]
    u0 = np.asarray(entry["u0"], float)
    if "end" not in known and "exact" not in known:
        known["end"] = u0 if periodic else np.asarray(entry["reference"]["end"])
    return Case(name, field, u0, _span(name), p, **known)


def _values(name: str, *keys: str) -> np.ndarray:
    return np.array([DATA[name]["parameters"][key] for key in keys])


_RATE = float(DATA["linear"]["parameters"]["p"])
_LINEAR_U0 = np.asarray(DATA["linear"]["u0"], float)
# The entry asks for any 4x2 array.
_LINEAR_2D_U0 = np.random.default_rng(0).uniform(size=(4, 2))

LINEAR = _case("linear", linear, _RATE, exact=_linear_exact(_LINEAR_U0, _RATE))
LINEAR_2D = Case(
    "linear_2d_4x2",
    linear,
    _LINEAR_2D_U0,
    _span("linear_2d_4x2"),
    _RATE,
    exact=_linear_exact(_LINEAR_2D_U0, _RATE),
)
NONLINCHEM = _case("nonlinchem", nonlinchem, None, exact=_nonlinchem_exact)
LOTKA_VOLTERRA = _case(
    "lotka_volterra", lotka_volterra, _values("lotka_volterra", "a", "b", "c", "d")
)
FITZHUGH_NAGUMO = _case(
    "fitzhugh_nagumo", fitzhugh_nagumo, _values("fitzhugh_nagumo", "a", "b", "tauinv", "l")
)
ARENSTORF = _case(
    "arenstorf_threebody", arenstorf, _values("arenstorf_threebody", "mu")[0], periodic=True
)
VANDERPOL = _case(
    "vanderpol_mu1_periodic", vanderpol, _values("vanderpol_mu1_periodic", "mu")[0], periodic=True
)
SPIRAL = _case("neural_ode_spiral", spiral, np.array(DATA["neural_ode_spiral"]["parameters"]["A"]))
OSCILLATOR = Case(
    "harmonic_oscillator",
    oscillator,
    np.array([1.0, 0.0]),
    _span("harmonic_oscillator"),
    None,
    exact=lambda t: np.stack([np.cos(t), -np.sin(t)], axis=-1),
)
CLOCK = Case("clock", clock, clock_exact(0.0), (0.0, 3.0), None, exact=clock_exact)

_AKZO = ("k1", "k2", "k3", "k4", "K", "kla", "pCO2", "H")
ROBER = _case("ROBER", robertson, _values("ROBER", "k1", "k2", "k3"))
HIRES = _case("HIRES", hires, None)
VDPOL_STIFF = _case("VDPOL_mu1000", vanderpol, _values("VDPOL_mu1000", "mu")[0])
CHEMAKZO = _case("CHEMAKZO_ODE", chemakzo, _values("CHEMAKZO_ODE", *_AKZO))
# The published end breaks the invariant y2 = y3 + y4; the file has a corrected one.
E5 = Case(
    "E5",
    e5,
    np.array(DATA["E5"]["u0"])[[0, 1, 3]],
    _span("E5"),
    _values("E5", "A", "B", "M*C", "C"),
    end=np.array(DATA["E5"]["reference"]["end_corrected"])[[0, 1, 3]],
)
ROBER_DAE = _case("ROBER_DAE", robertson_dae, _values("ROBER_DAE", "k1", "k2", "k3"))
CHEMAKZO_DAE = _case("CHEMAKZO_DAE", chemakzo_dae, _values("CHEMAKZO_DAE", *_AKZO, "Ks"))
# M u' = A u + t A 1 with M = A, so that every component is 2 e^t - t - 1.
AFFINE = _case(
    "mass_matrix_linear",
    affine,
    np.array([[-2.0, 1.0, 4.0], [4.0, -2.0, 1.0], [2.0, 1.0, 3.0]]),
    exact=lambda t: np.repeat(2 * np.exp(t)[..., None] - t[..., None] - 1, 3, axis=-1),
)

# Problems that every adaptive method is held to, with the accuracy of another code.
NON_STIFF = [LOTKA_VOLTERRA, FITZHUGH_NAGUMO, ARENSTORF, VANDERPOL, SPIRAL]


# Gradients ----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class GradientCase:
    """A loss over saved states, its value and its derivative as published.

    `loss(u)` takes the saved states; `grads` maps an argument (`p`, `u0`) to the derivative.
    """

    case: Case
    times: np.ndarray
    loss: Callable[[Any], Any]
    value: float
    grads: dict[str, np.ndarray]


def _gradient_case(
    name: str, field: Any, p: Any, spacing: float, loss: Any, keys: dict[str, str], value: str
) -> GradientCase:
    reference = DATA[name]["reference"]
    t0, t1 = _span(name)
    times = np.linspace(t0, t1, round((t1 - t0) / spacing) + 1)
    case = _case(name, field, np.asarray(p, float), end=np.asarray(reference["u10"]))
    grads = {argument: np.asarray(reference[key]) for argument, key in keys.items()}
    return GradientCase(case, times, loss, reference[value], grads)


GRAD_LV_BLOG = _gradient_case(
    "grad_lv_blog",
    lotka_volterra,
    DATA["grad_lv_blog"]["parameters"]["p"],
    0.1,
    lambda u: jnp.sum((u[:, 0] - 1.0) ** 2),
    {"p": "grad_p_loss", "u0": "grad_u0_loss"},
    "loss_sum_abs2_x_minus_1",
)
GRAD_LV_IN_TIME = _gradient_case(
    "grad_lv_time_dependent_discrete",
    lotka_volterra_in_time,
    DATA["grad_lv_time_dependent_discrete"]["parameters"]["p"],
    0.5,
    lambda u: jnp.sum((u - 2.0) ** 2) / 2.0,
    {"p": "grad_p", "u0": "grad_u0"},
    "G",
)


def _falling_mass() -> GradientCase:
    """x(t) = -g t^2/2 from rest, so that the sum over t = 0:0.05:2 is -27.675 g for any g, m."""
    times = np.linspace(*_span("grad_falling_mass"), 41)
    g = 9.81
    u0 = np.zeros(2)
    case = Case("grad_falling_mass", falling_mass, u0, (0.0, 2.0), np.array([g, 3.0]))
    slope = np.asarray(DATA["grad_falling_mass"]["reference"]["grad"])
    return GradientCase(case, times, lambda u: jnp.sum(u[:, 0]), g * slope[0], {"p": slope})


GRAD_FALLING_MASS = _falling_mass()
GRADIENTS = [GRAD_LV_BLOG, GRAD_LV_IN_TIME, GRAD_FALLING_MASS]
