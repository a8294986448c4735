"""`python -m benchmarks.work_precision [--quick] [--only NAME ...] [--out DIR]`: time over error.

Stiff problems of the field, from loose to tight tolerances: our methods, SciPy's Radau, BDF and
LSODA, Diffrax in the best of its settings at each error, and SUNDIALS' CVODE where scikit-sundae is
installed. All get the exact Jacobian or, where it is banded, the bandwidth, if they can use it.
Nothing is compiled while the clock runs. The calls take turns, and the least time of each counts:
other work on the machine only adds to it.
Writes `work_precision.png` and `work_precision.json`.
"""

import argparse
import importlib.util
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp
from scipy.sparse import diags

import diffjax as dj
from benchmarks.cases.stiff import CONTROLLERS, FORWARD, METHODS
from benchmarks.peers import diffrax_peer, sundials_peer
from benchmarks.problems.errors import first_step
from benchmarks.problems.stiff_set import PROBLEMS, StiffProblem
from benchmarks.report import environment
from tests.stiff_problems import error

OURS = {
    "Rodas5P": dj.Rodas5P,
    "KenCarp4": dj.KenCarp4,
    "Kvaerno5": dj.Kvaerno5,
    "RadauIIA5": dj.RadauIIA5,
    "FBDF": dj.FBDF,
}
SCIPY = ("Radau", "BDF", "LSODA")
DIFFRAX = "Diffrax, best setting"
TOLERANCES = tuple(10.0**-k for k in range(3, 10))
QUICK_TOLERANCES = (1e-4, 1e-6)

SECONDS = 0.1
"""Spent on each point, by as many calls as fit in; a longer call is made once."""
TOO_LONG = 2.0
"""After a call of this many seconds no tighter tolerance is tried."""
MAX_STEPS = 20_000

End = Callable[[], Any]
Contender = Callable[[float], End]
"""`contender(rtol)()` is the state at the end of the span, ready when it returns."""


@dataclass
class Point:
    """One contender at one tolerance; `seconds` is the least of the calls made so far."""

    solver: str
    setting: str
    rtol: float
    call: End
    error: float
    seconds: float
    spent: float


def compiled(solve: Callable[[Any], Any]) -> Contender:
    """A function of the tolerance, compiled once and before it is called."""
    function = jax.jit(solve).lower(jnp.ones(())).compile()

    def at(rtol: float) -> End:
        bound = jnp.asarray(rtol, float)
        return lambda: jax.block_until_ready(function(bound))

    return at


def ours(problem: StiffProblem, make: Callable[[], dj.Algorithm]) -> Contender:
    prob = problem.case.ode(jac_sparsity=problem.band)

    def solve(rtol: Any) -> Any:
        options = {"rtol": rtol, "atol": problem.atol_scale * rtol, "max_steps": MAX_STEPS}
        return dj.solve(prob, make(), **options).u_end

    return compiled(solve)


def by_diffrax(problem: StiffProblem) -> dict[str, Contender]:
    """Every setting that is worth trying."""
    case = problem.case
    slope = lambda u: np.asarray(problem.rates(u, case.p, 0.0))  # noqa: E731
    dt0 = first_step(slope, case.u0, 1e-6, order=5)
    methods = {name: {**method, **FORWARD} for name, method in METHODS.items()}
    settings = diffrax_peer.best_settings(dt0, methods, CONTROLLERS)
    if problem.band is not None:
        # Dense matrices only: one setting, since each compiles and runs for seconds.
        settings = dict(list(settings.items())[:1])
    p = None if case.p is None else jnp.asarray(case.p)
    found = {}
    for name, setting in settings.items():
        solve = diffrax_peer.solve_function(
            case.field, case.tspan, None, setting, problem.atol_scale
        )
        found[name] = compiled(lambda rtol, solve=solve: solve(case.u0, p, rtol)[0][-1])
    return found


def python_functions(problem: StiffProblem) -> tuple[Callable, Callable]:
    """f(t, u) and its Jacobian for solvers that call Python."""
    case, rates = problem.case, problem.rates
    p = None if case.p is None else jnp.asarray(case.p)
    jitted = jax.jit(jax.jacfwd(lambda t, u: case.field(u, p, t), argnums=1))

    def jac(t: float, u: np.ndarray) -> np.ndarray:
        # Of one type, so that it is compiled once, and now.
        return np.asarray(jitted(np.float64(t), u))

    jac(0.0, case.u0)
    if problem.band is not None:
        return lambda t, u: rates(u, case.p, t), jac
    numbers = None if case.p is None else np.asarray(case.p).tolist()
    return lambda t, u: rates(u.tolist(), numbers, t), jac


def by_scipy(problem: StiffProblem, method: str) -> Contender:
    f, jac = python_functions(problem)
    case, band = problem.case, problem.band
    options: dict[str, Any] = {"jac": jac}
    if band is not None and method == "LSODA":
        options = {"lband": band[0], "uband": band[1]}
    elif band is not None:
        n = case.u0.size
        ones = [np.ones(n - abs(k)) for k in range(-band[0], band[1] + 1)]
        options = {"jac_sparsity": diags(ones, range(-band[0], band[1] + 1))}

    def at(rtol: float) -> End:
        tolerances = {"rtol": rtol, "atol": problem.atol_scale * rtol}
        return lambda: solve_ivp(f, case.tspan, case.u0, method, **options, **tolerances).y[:, -1]

    return at


def by_sundials(problem: StiffProblem) -> Contender:
    case = problem.case
    solve = sundials_peer.solver(*python_functions(problem), case.u0, case.tspan, problem.band)
    return lambda rtol: lambda: solve(rtol, problem.atol_scale * rtol)


def contenders(problem: StiffProblem) -> dict[tuple[str, str], Contender]:
    """By solver and setting."""
    found = {(name, ""): ours(problem, make) for name, make in OURS.items()}
    found |= {(f"SciPy {name}", ""): by_scipy(problem, name) for name in SCIPY}
    if importlib.util.find_spec("diffrax"):
        found |= {(DIFFRAX, name): at for name, at in by_diffrax(problem).items()}
    if all(importlib.util.find_spec(name) for name in sundials_peer.PACKAGES):
        found[("SUNDIALS CVODE", "")] = by_sundials(problem)
    return found


def timed(call: End) -> tuple[float, Any]:
    start = time.perf_counter()
    end = call()
    return time.perf_counter() - start, end


def measure(problem: StiffProblem, tolerances: tuple[float, ...]) -> list[Point]:
    points = []
    for (solver, setting), at in contenders(problem).items():
        for rtol in tolerances:
            call = at(rtol)
            seconds, end = timed(call)
            points.append(
                Point(solver, setting, rtol, call, error(problem.case, end), seconds, seconds)
            )
            if seconds > TOO_LONG:
                break
    while running := [point for point in points if point.spent < SECONDS]:
        for point in running:
            seconds, _ = timed(point.call)
            point.seconds = min(point.seconds, seconds)
            point.spent += seconds
    return points


def best(points: list[Point]) -> list[Point]:
    """Those that no other beats in both error and time, from the largest error on."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda q: q.seconds):
        if np.isfinite(point.error) and all(point.error < other.error for other in kept):
            kept.append(point)
    return kept


def lines(points: list[Point]) -> dict[str, list[Point]]:
    """The points of each solver; of one with several settings those of the best."""
    found: dict[str, list[Point]] = {}
    for point in points:
        found.setdefault(point.solver, []).append(point)
    if DIFFRAX in found:
        found[DIFFRAX] = best(found[DIFFRAX])
    return found


def style(solver: str) -> dict[str, Any]:
    """Ours in full lines, others broken."""
    if solver in OURS:
        return {"linestyle": "-", "marker": "o", "color": f"C{list(OURS).index(solver)}"}
    if solver == DIFFRAX:
        return {"linestyle": "--", "marker": "s", "color": "black"}
    greys = dict(zip(SCIPY, ("0.3", "0.5", "0.7"), strict=True))
    if solver.startswith("SciPy"):
        return {"linestyle": ":", "marker": "^", "color": greys[solver.split()[1]]}
    return {"linestyle": "-.", "marker": "D", "color": "saddlebrown"}


def draw(found: dict[str, dict[str, list[Point]]], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(11, 7), layout="constrained")
    panels = list(axes.flat)
    for axis, (name, solvers) in zip(panels, found.items(), strict=False):
        for solver, points in solvers.items():
            x, y = [q.error for q in points], [q.seconds * 1e3 for q in points]
            axis.loglog(x, y, markersize=3.5, linewidth=1.2, label=solver, **style(solver))
        axis.invert_xaxis()
        axis.set_title(name, fontsize="medium")
        axis.grid(alpha=0.3)
    for axis in panels[len(found) :]:
        axis.axis("off")
    panels[-1].legend(*panels[0].get_legend_handles_labels(), loc="center", frameon=False)
    figure.supxlabel("largest relative error of a component at the end")
    figure.supylabel("time of a solve, ms")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.work_precision", description=__doc__
    )
    names = [problem.name for problem in PROBLEMS]
    parser.add_argument("--quick", action="store_true", help="two tolerances of each")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=names, default=names)
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR")
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    found: dict[str, dict[str, list[Point]]] = {}
    for problem in PROBLEMS:
        if problem.name not in arguments.only:
            continue
        points = measure(problem, QUICK_TOLERANCES if arguments.quick else TOLERANCES)
        found[problem.name] = lines(points)
        for solver, those in found[problem.name].items():
            cells = (f"{q.error:.0e} {q.seconds * 1e3:.3g}" for q in those)
            print(f"{problem.name:14s}{solver:22s}", *cells, sep="  ", flush=True)
    draw(found, arguments.out / "work_precision.png")
    keys = ("setting", "rtol", "error", "seconds")
    table = {
        name: {
            solver: [{key: getattr(q, key) for key in keys} for q in points]
            for solver, points in solvers.items()
        }
        for name, solvers in found.items()
    }
    report = {"environment": environment(), "problems": table}
    (arguments.out / "work_precision.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
