"""`python -m benchmarks.stiff_accuracy [--methods NAME ...] [--json FILE]`: digits and work.

Significant correct digits (minus the logarithm of the largest relative error of a component at the
end), attempted steps, evaluations and factorisations of every implicit method on the stiff and
differential-algebraic problems that the tests are held to, and the digits of SciPy's Radau at the
same tolerances with the exact Jacobian.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp

from benchmarks.report import environment
from tests.problems import Case
from tests.stiff_problems import (
    ATOL,
    BRUSS1D,
    BRUSS2D,
    DAES,
    ODES,
    TOLERANCES,
    error,
    solve,
)

METHODS = ("Rodas5P", "Rodas4", "KenCarp4", "Kvaerno5", "RadauIIA5", "FBDF")
RADAU = "SciPy Radau"
PLANE = (BRUSS2D,)
"""2,048 unknowns, whose dense factorisations take minutes."""


def digits(error: float) -> float:
    return round(-math.log10(error), 2)


def ours(case: Case, method: str, rtol: float) -> dict[str, Any]:
    sol = solve(case, method, rtol, throw=False)
    stats = {name: int(x) for name, x in vars(sol.stats).items()}
    steps = stats["naccept"] + stats["nreject"]
    return {"digits": digits(error(case, sol.u_end)), "steps": steps} | {
        name: stats[name] for name in ("nf", "njac", "nfactor")
    }


def radau(case: Case, rtol: float) -> dict[str, Any]:
    """Of a problem without a mass matrix, which SciPy does not take."""
    p = None if case.p is None else jnp.asarray(case.p)
    field = jax.jit(lambda t, u: case.field(u, p, t))
    sol = solve_ivp(
        lambda t, u: np.asarray(field(t, u)),
        case.tspan,
        case.u0,
        method="Radau",
        jac=jax.jit(jax.jacfwd(field, argnums=1)),
        rtol=rtol,
        atol=rtol * ATOL.get(case.name, 1.0),
    )
    # It does not say how many steps it refused.
    work = {"steps": len(sol.t) - 1, "nf": sol.nfev, "njac": sol.njev, "nfactor": sol.nlu}
    return {"digits": digits(error(case, sol.y[:, -1]))} | work


def measure(case: Case, method: str) -> list[dict[str, Any]]:
    one = radau if method == RADAU else lambda case, rtol: ours(case, method, rtol)
    return [
        {"problem": case.name, "method": method, "rtol": rtol} | one(case, rtol)
        for rtol in TOLERANCES
    ]


def show(rows: list[dict[str, Any]]) -> None:
    cells = (
        f"{row['digits']:6.2f} {row['steps']:6d} {row['nf']:7d} {row['nfactor']:6d}" for row in rows
    )
    print(f"{rows[0]['problem']:19s}{rows[0]['method']:12s}", *cells, sep="  ", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.stiff_accuracy", description=__doc__
    )
    parser.add_argument("--methods", nargs="+", default=METHODS, metavar="NAME")
    parser.add_argument(
        "--plane", action="store_true", help="the Brusselator in two dimensions too"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there as well")
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    head = "".join(f"  {'digits':>6s} {'steps':>6s} {'nf':>7s} {'nfact':>6s}" for _ in TOLERANCES)
    print(f"{'rtol':31s}" + "".join(f"  {rtol:<28.0e}" for rtol in TOLERANCES))
    print(f"{'problem':19s}{'method':12s}{head}")
    table = []
    plane = PLANE if arguments.plane else ()
    for case in (*ODES, BRUSS1D, *DAES, *plane):
        # Dense in SciPy's hands, the Brusselator takes it minutes.
        peers = (RADAU,) if case in ODES else ()
        for method in (*arguments.methods, *peers):
            rows = measure(case, method)
            show(rows)
            table += rows
    if arguments.json:
        report = {"environment": environment(), "rows": table}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
