"""`python -m benchmarks.stiff_accuracy [--methods NAME ...] [--problems NAME ...]`: digits, work.

Significant correct digits (minus the logarithm of the largest relative error of a component at the
end), attempted steps, evaluations and factorisations of every implicit method on the stiff and
differential-algebraic problems that the tests are held to, and those of SciPy's Radau at the same
tolerances.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import jax

from benchmarks.report import environment
from benchmarks.scipy_radau import radau
from tests.problems import Case
from tests.stiff_problems import (
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
CASES = {case.name: case for case in (*ODES, BRUSS1D, BRUSS2D, *DAES)}


def digits(error: float) -> float:
    return round(-math.log10(error), 2)


def ours(case: Case, method: str, rtol: float) -> dict[str, Any]:
    sol = solve(case, method, rtol, throw=False)
    stats = {name: int(x) for name, x in vars(sol.stats).items()}
    steps = stats["naccept"] + stats["nreject"]
    return {"digits": digits(error(case, sol.u_end)), "steps": steps} | {
        name: stats[name] for name in ("nf", "njac", "nfactor")
    }


def peer(case: Case, rtol: float) -> dict[str, Any]:
    missed, work = radau(case, rtol)
    return {"digits": digits(missed)} | work


def measure(case: Case, method: str) -> list[dict[str, Any]]:
    one = peer if method == RADAU else lambda case, rtol: ours(case, method, rtol)
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
    parser.add_argument("--methods", nargs="+", default=(*METHODS, RADAU), metavar="NAME")
    parser.add_argument("--problems", nargs="+", default=CASES, choices=CASES, metavar="NAME")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there as well")
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    head = "".join(f"  {'digits':>6s} {'steps':>6s} {'nf':>7s} {'nfact':>6s}" for _ in TOLERANCES)
    print(f"{'rtol':31s}" + "".join(f"  {rtol:<28.0e}" for rtol in TOLERANCES))
    print(f"{'problem':19s}{'method':12s}{head}")
    table = []
    for name in arguments.problems:
        for method in arguments.methods:
            rows = measure(CASES[name], method)
            show(rows)
            table += rows
    if arguments.json:
        report = {"environment": environment(), "rows": table}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
