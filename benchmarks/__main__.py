"""`python -m benchmarks [--only NAME ...] [--json FILE]`."""

import argparse
from pathlib import Path

import jax

from benchmarks import report
from benchmarks.case import Row


def _arguments(names: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", choices=names, help=f"of {', '.join(names)}"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there as well")
    return parser.parse_args()


def main() -> None:
    # Before the cases are built: their reference solutions need it.
    jax.config.update("jax_enable_x64", True)
    from benchmarks.cases import all_cases

    cases = all_cases()
    arguments = _arguments(list(cases))
    rows: list[Row] = []
    report.print_header()
    for name in arguments.only or cases:
        for row in cases[name]():
            rows.append(row)
            report.print_row(row)
    print(f"\n{report.FOOT}")
    if arguments.json:
        report.write_json(rows, arguments.json)


if __name__ == "__main__":
    main()
