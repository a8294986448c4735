"""What a case is, and how one is measured."""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.matching import NoMatch, error_line, matched_tolerance
from benchmarks.timing import Call, first_calls, interleaved

Maker = Callable[[], Callable[[float], Call]]
"""`maker()(tol)()` runs a contender; the three stages are build, bind the tolerance, run."""

OURS = "ours"
TRIAL_SECONDS = 0.4
"""Spent on each variant of a peer to find its fastest; the row itself is timed afresh."""


@dataclass(frozen=True)
class Peer:
    """A library to compare with, in one or several settings of which the fastest counts."""

    name: str
    variants: Mapping[str, Maker]
    wanted: float | None = None
    packages: tuple[str, ...] = ()
    available: bool = True
    sweep_points: int = 9

    @property
    def installed(self) -> bool:
        """Whether its packages can be imported; `available` is for what is no package."""
        return self.available and all(importlib.util.find_spec(name) for name in self.packages)


@dataclass(frozen=True)
class Case:
    """One problem solved by us and by peers, with an error against a reference."""

    name: str
    tol: float
    ours: Maker
    peers: tuple[Peer, ...]
    error: Callable[[Any], float]

    def peer(self, name: str) -> Peer:
        return next(peer for peer in self.peers if peer.name == name)


@dataclass(frozen=True)
class Row:
    """One line of the table; `run_*` is seconds, or bytes where `unit` says so."""

    case: str
    peer: str
    variant: str = ""
    error_ours: float | None = None
    error_peer: float | None = None
    run_ours: float | None = None
    run_peer: float | None = None
    first_ours: float | None = None
    first_peer: float | None = None
    wanted: float | None = None
    unit: str = "s"
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """The peer over us, so above one we win: of run times, or of first calls without them."""
        ours, peer = self.run_ours, self.run_peer
        if ours is None and peer is None:
            ours, peer = self.first_ours, self.first_peer
        return peer / ours if ours and peer else None


@dataclass(frozen=True)
class _Matched:
    variant: str
    tol: float
    call: Call
    seconds: float


def _best_variant(case: Case, peer: Peer, target: float) -> _Matched:
    """The fastest of a peer's settings, each at the tolerance that gives the target error."""
    found, reasons = [], []
    for variant, maker in peer.variants.items():
        at = maker()
        try:
            tol = matched_tolerance(at, case.error, target, case.tol, peer.sweep_points)
        except NoMatch as reason:
            reasons.append(f"{variant}: {reason}")
            continue
        call = at(tol)
        seconds = interleaved({variant: call}, TRIAL_SECONDS)[variant]
        found.append(_Matched(variant, tol, call, seconds))
    if not found:
        raise NoMatch("; ".join(reasons))
    return min(found, key=lambda m: m.seconds)


def measure(case: Case, with_first_call: bool = True) -> list[Row]:
    """One row for each peer of the case."""
    at = case.ours()
    ours = at(case.tol)
    error_ours = case.error(ours())
    target = error_line(at, case.error, case.tol, points=9).error(case.tol)
    rows = []
    for peer in case.peers:
        if not peer.installed:
            rows.append(Row(case.name, peer.name, wanted=peer.wanted, note="not installed"))
            continue
        try:
            best = _best_variant(case, peer, target)
        except NoMatch as reason:
            rows.append(Row(case.name, peer.name, wanted=peer.wanted, note=str(reason)))
            continue
        run = interleaved({OURS: ours, peer.name: best.call})
        first: dict[str, float] = {}
        if with_first_call:
            contenders = {
                OURS: (OURS, "", case.tol),
                peer.name: (peer.name, best.variant, best.tol),
            }
            first = first_calls(case.name, contenders, rounds=1)
        rows.append(
            Row(
                case.name,
                peer.name,
                variant=best.variant,
                error_ours=error_ours,
                error_peer=case.error(best.call()),
                run_ours=run[OURS],
                run_peer=run[peer.name],
                first_ours=first.get(OURS),
                first_peer=first.get(peer.name),
                wanted=peer.wanted,
                note=f"tol {case.tol:.1e} / {best.tol:.1e}",
            )
        )
    return rows
