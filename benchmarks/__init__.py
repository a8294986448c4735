"""Run times of diffjax beside its peers: `python -m benchmarks [--only NAME] [--json FILE]`.

The rules that make a row mean something, and where each is kept:

* one process, turns taken one after the other, median of many warm runs (`timing.py`);
* equal error, not equal tolerance: a peer runs at the tolerance that gives our error
  (`matching.py`);
* a peer runs in the best of several settings, found anew in each run, its default beside it
  (`peers/`);
* the first call (trace, compile, run) is timed in a fresh process each time (`fresh.py`);
* parameters and tolerances are arguments of the compiled function, so nothing folds to a constant.

Ratios are the result. Absolute times move from machine to machine.
"""

import os

# Read once, when equinox is first imported: a failing solve in a peer gives NaN instead of a host
# callback, the faster of its settings. It holds for the peer's default rows too, in their favour.
os.environ.setdefault("EQX_ON_ERROR", "nan")
