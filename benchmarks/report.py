"""The table on the screen and the JSON file."""

import dataclasses
import json
import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from benchmarks.case import Row

HEADER = (
    "case", "peer", "error", "peer's", "run", "peer's", "first", "peer's", "ratio", "wanted", "",
)  # fmt: skip
WIDTHS = (22, 16, 8, 8, 9, 9, 8, 8, 7, 7, 0)
PACKAGES = ("jax", "diffrax", "scipy", "scikit-sundae", "torch", "torchdiffeq")
FOOT = """\
ratio: the peer's run time over ours (first call where there is no run time), above one we are
  faster; * marks a ratio under the wanted one.
error: relative, against a reference. Equal on lines fitted to a sweep of tolerances (given last,
  ours / the peer's); the two printed are of the very runs timed and scatter about their lines."""


def _time(value: float | None) -> str:
    if value is None:
        return "-"
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value * 1e6:.3g} us"


def _size(value: float | None) -> str:
    return "-" if value is None else f"{value / 1024:.1f} KiB"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _cells(row: Row) -> tuple[str, ...]:
    run = _size if row.unit == "B" else _time
    ratio = _number(row.ratio, ".2f")
    if row.ratio is not None and row.wanted is not None and row.ratio < row.wanted:
        ratio += "*"
    remark = "; ".join(x for x in (row.variant, row.note) if x)
    return (
        row.case,
        row.peer,
        _number(row.error_ours, ".1e"),
        _number(row.error_peer, ".1e"),
        run(row.run_ours),
        run(row.run_peer),
        _time(row.first_ours),
        _time(row.first_peer),
        ratio,
        _number(row.wanted, ".2g"),
        remark,
    )


def _line(cells: Sequence[str]) -> str:
    left, right = cells[:2], cells[2:-1]
    parts = [c.ljust(w) for c, w in zip(left, WIDTHS, strict=False)]
    parts += [c.rjust(w) for c, w in zip(right, WIDTHS[2:], strict=False)]
    return " ".join([*parts, cells[-1]]).rstrip()


def print_header() -> None:
    print(_line(HEADER), flush=True)


def print_row(row: Row) -> None:
    print(_line(_cells(row)), flush=True)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def environment() -> dict[str, Any]:
    """What a reader of the numbers must know of the machine and the packages."""
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        "packages": {package: _version(package) for package in PACKAGES},
    }


def write_json(rows: list[Row], path: Path) -> None:
    table = [dataclasses.asdict(row) | {"ratio": row.ratio} for row in rows]
    path.write_text(json.dumps({"environment": environment(), "rows": table}, indent=1) + "\n")
