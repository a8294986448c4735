"""How a solve ended."""

from enum import IntEnum


class ReturnCode(IntEnum):
    """Why a solve stopped.

    - `success`: it reached the end of `tspan`.
    - `terminated`: a callback ended it.
    - `max_steps`: it used up `max_steps`.
    - `dt_underflow`: the step size fell under `dtmin` or the resolution of time.
    - `unstable`: the state or the vector field was not finite.
    - `newton_failed`, `initial_failed`, `event_failed`: a nonlinear solve, the initialisation, an
        event could not be completed.
    """

    success = 0
    terminated = 1
    max_steps = 2
    dt_underflow = 3
    unstable = 4
    newton_failed = 5
    initial_failed = 6
    event_failed = 7
