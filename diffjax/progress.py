"""Progress shown on the terminal (or in a notebook) while something long runs.

`Bar` is a tqdm bar, or lines of text where tqdm is not installed: `progress=True` never fails for
want of it. A solve runs inside a compiled program, so its loop calls `report` while it is traced;
the program then calls back to one bar on the host, at most once a percent: every call costs time.
"""

import sys
import time
from threading import Lock
from typing import Any

import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

try:
    from tqdm.auto import tqdm
except ImportError:
    tqdm = None

_PERCENT = 100
# Without tqdm a line is printed at most this often, in seconds.
_LINE_INTERVAL = 5.0
_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


class _Lines:
    """What tqdm does, in lines of text."""

    def __init__(self, total: int, desc: str, bar_format: str) -> None:
        self.total, self.desc, self.n, self.note = total, desc, 0, ""
        self.printed = time.monotonic()
        self._write("started (for a progress bar: pip install 'diffjax[progress]')")

    def _write(self, text: str) -> None:
        print(f"{self.desc}: {text}", file=sys.stderr, flush=True)
        self.printed = time.monotonic()

    def _state(self) -> str:
        return f"{self.n}/{self.total} {self.note}".rstrip()

    def set_postfix_str(self, s: str, refresh: bool = True) -> None:
        self.note = s

    def update(self, n: int) -> None:
        self.n += n
        if time.monotonic() - self.printed > _LINE_INTERVAL:
            self._write(self._state())

    def close(self) -> None:
        self._write(self._state())


class Bar:
    """A progress bar over `total` steps; a context manager.

    **Arguments:** `total`, the number of steps; `label`, a word in front; `show=False` for none.

    !!! example
        ```python
        with Bar(100, "train") as bar:
            bar.advance(1, "loss 0.1")
        ```
    """

    def __init__(self, total: int, label: str, show: bool = True) -> None:
        self._bar: Any = None
        if show:
            kind = _Lines if tqdm is None else tqdm
            self._bar = kind(total=total, desc=label, bar_format=_FORMAT)

    def advance(self, steps: int, note: str = "") -> None:
        """Count `steps` more as done; `note` is shown behind the bar."""
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(steps)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class SolveProgress:
    """The bar of a running solve, on the host: percents of the span of time.

    It may be opened and closed any number of times, since a compiled solve may be run any number
    of times. Falling behind what is shown means that a new run began after one that was broken
    off. Calls may come from any thread.
    """

    def __init__(self, label: str = "solve") -> None:
        self._label = label
        self._bar: Bar | None = None
        self._shown = 0
        self._lock = Lock()

    def update(self, fraction: float) -> None:
        """Show that `fraction` of the span, 0 to 1, is done."""
        percent = int(_PERCENT * min(max(float(fraction), 0.0), 1.0))
        with self._lock:
            if self._bar is None or percent < self._shown:
                self._restart()
            assert self._bar is not None
            self._bar.advance(percent - self._shown)
            self._shown = percent

    def close(self) -> None:
        """The run has ended, at the end of the span or before it."""
        with self._lock:
            self._close()

    def _restart(self) -> None:
        self._close()
        self._bar, self._shown = Bar(_PERCENT, self._label), 0

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar = None


# One for all solves: whatever a compiled program calls must outlive it and compare equal.
_progress = SolveProgress()


def progress_callback(fraction: Any, done: Any) -> None:
    """Show how far a solve is: the host's end of `report`, a function that never changes.

    **Arguments:** `fraction`, a scalar from 0 to 1; `done`, True if the solve has ended.
    """
    _progress.update(float(fraction))
    if done:
        _progress.close()


def report(before: Float[Array, ""], after: Float[Array, ""], active: Bool[Array, ""]) -> None:
    """Inside a traced loop over steps: show what the step just taken has done.

    Under `vmap` the slowest lane counts, and the host is called once for all of them.

    **Arguments:**

    - `before`, `after`: the fraction of the span, 0 to 1, that was done before and after the step.
    - `active`: whether the solve goes on after it; a lane that has ended counts as done.

    !!! example
        ```python
        def body(carry):
            new = step(carry)
            report((carry.t - t0) / span, (new.t - t0) / span, new.status == RUNNING)
            return new
        ```
    """
    ended_earlier = ~active & (after <= before)
    shown = _slowest(jnp.where(ended_earlier, 1.0, before))
    done = ~eqxi.unvmap_any(active)
    # A solve that failed half way leaves its bar there.
    reached = _slowest(jnp.where(active | done, after, 1.0))
    jax.lax.cond(
        done | (jnp.floor(_PERCENT * reached) > jnp.floor(_PERCENT * shown)),
        lambda: jax.debug.callback(progress_callback, reached, done),
        lambda: None,
    )


def _slowest(fraction: Float[Array, ""]) -> Float[Array, ""]:
    """The smallest in all lanes of the `vmap`s around; itself never batched."""
    return -eqxi.unvmap_max(-jax.lax.stop_gradient(fraction))
