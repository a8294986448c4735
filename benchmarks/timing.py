"""Timing: interleaved medians in this process, first calls in fresh ones."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Call = Callable[[], Any]
"""A run with its arguments bound; the result is ready when it returns."""

TURN_SECONDS = 2e-3
"""One turn repeats a call until about this long, far above the clock's grain."""

MIN_TURNS = 7
WARM_CALLS = 5
LONG_SECONDS = 1.0
"""A call that takes longer is warm after one, and a median of three says what it takes."""

LONG_TURNS = 3
REPOSITORY = Path(__file__).resolve().parents[1]
FRESH_TIMEOUT_SECONDS = 600


def _seconds(call: Call, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def _warm_seconds(call: Call) -> float:
    """The least time of some calls, after one that may compile."""
    call()
    once = _seconds(call, 1)
    more = 0 if once > LONG_SECONDS else WARM_CALLS - 1
    return min([once, *(_seconds(call, 1) for _ in range(more))])


def interleaved(calls: Mapping[str, Call], seconds: float = 4.0) -> dict[str, float]:
    """The median time of each call, all taking turns until `seconds` have passed.

    Turns make a slow spell of a shared machine fall on every contender alike.
    """
    # Guessed from warm calls: a cold one would make a short call's turn too short to get warm.
    alone = {name: _warm_seconds(call) for name, call in calls.items()}
    repeats = {name: max(1, round(TURN_SECONDS / taken)) for name, taken in alone.items()}
    least = LONG_TURNS if max(alone.values()) > LONG_SECONDS else MIN_TURNS
    samples: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    turn = 0
    while turn < least or time.perf_counter() < end:
        for name, call in calls.items():
            samples[name].append(_seconds(call, repeats[name]))
        turn += 1
    return {name: statistics.median(times) for name, times in samples.items()}


def first_call(case: str, peer: str, variant: str, tol: float) -> float:
    """Seconds of one first call in a fresh Python process (`benchmarks.fresh`)."""
    command = [sys.executable, "-m", "benchmarks.fresh", case, peer, variant, repr(tol)]
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=FRESH_TIMEOUT_SECONDS
    )
    if done.returncode != 0:
        raise RuntimeError(f"first call of {case}/{peer}/{variant} failed:\n{done.stderr[-2000:]}")
    return float(json.loads(done.stdout.splitlines()[-1])["seconds"])


def first_calls(case: str, contenders: Mapping[str, tuple[str, str, float]], rounds: int = 3):
    """The median first call of each contender `(peer, variant, tol)`, processes taking turns."""
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, (peer, variant, tol) in contenders.items():
            samples[name].append(first_call(case, peer, variant, tol))
    return {name: statistics.median(times) for name, times in samples.items()}
