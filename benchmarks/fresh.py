"""One first call in this process: `python -m benchmarks.fresh CASE PEER VARIANT TOL`.

Run by `timing.first_call`. Counted: building the contender, tracing, compiling, running once. Not
counted: importing packages and starting JAX's backend, paid once whatever a program solves.
"""

import importlib
import json
import sys
import time

import jax
import jax.numpy as jnp


def main(case_name: str, peer_name: str, variant: str, tol: float) -> None:
    jax.config.update("jax_enable_x64", True)
    from benchmarks.case import OURS
    from benchmarks.cases import adaptive_cases

    case = adaptive_cases()[case_name]()
    if peer_name == OURS:
        maker = case.ours
    else:
        peer = case.peer(peer_name)
        for package in peer.packages:
            importlib.import_module(package)
        maker = peer.variants[variant]
    jnp.zeros(()).block_until_ready()
    start = time.perf_counter()
    maker()(tol)()
    print(json.dumps({"seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    main(*sys.argv[1:4], float(sys.argv[4]))
