"""The wait for a first call (trace, compile, run), the median of fresh processes taking turns.

The tolerance is nominal on both sides: it hardly matters to what is nearly all compilation.
"""

from benchmarks.case import OURS, Case, Row
from benchmarks.cases.forward import lv_one
from benchmarks.cases.gradient import lv_grad
from benchmarks.timing import first_calls

ROUNDS = 3
WANTED = 3.0

# Of a peer's settings those that compile fastest here; the fastest of them counts.
FORWARD_SETTINGS = {
    "Diffrax": (
        "ForwardMode, max_steps=None, I",
        "RecursiveCheckpointAdjoint, max_steps=256, I",
    ),
    "Diffrax default": ("",),
}
GRADIENT_SETTINGS = {
    "Diffrax": ("checkpoints=default, I", "checkpoints=max_steps, I", "DirectAdjoint, I"),
    "Diffrax jacfwd": ("ForwardMode, I",),
    "Diffrax default": ("",),
}


def _rows_of(case: Case, settings: dict[str, tuple[str, ...]], kind: str) -> list[Row]:
    peers = [case.peer(name) for name in settings]
    contenders = {OURS: (OURS, "", case.tol)}
    for peer in peers:
        if peer.installed:
            for variant in settings[peer.name]:
                contenders[f"{peer.name}/{variant}"] = (peer.name, variant, case.tol)
    seconds = first_calls(case.name, contenders, ROUNDS)
    rows = []
    for peer in peers:
        name = f"first_call {kind}"
        wanted = WANTED if peer.wanted else None
        if not peer.installed:
            rows.append(Row(name, peer.name, wanted=wanted, note="not installed"))
            continue
        times = {v: seconds[f"{peer.name}/{v}"] for v in settings[peer.name]}
        best = min(times, key=lambda v: times[v])
        rows.append(
            Row(
                name,
                peer.name,
                variant=best,
                first_ours=seconds[OURS],
                first_peer=times[best],
                wanted=wanted,
            )
        )
    return rows


def rows() -> list[Row]:
    return [
        *_rows_of(lv_one(), FORWARD_SETTINGS, "forward"),
        *_rows_of(lv_grad(), GRADIENT_SETTINGS, "gradient"),
    ]
