"""`python -m benchmarks.scaling [--quick] [--out DIR]`: what a gradient costs as a problem grows.

Time and memory of every adjoint against the number of parameters (2 to 10,000, some 15 steps) and
against the number of steps (100 to 10,000, fixed, 20 parameters). Writes `adjoints.png` and
`adjoints.json`.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diffjax as dj
from benchmarks.report import environment
from benchmarks.timing import interleaved

U0 = (1.0, 0.5)
TSPAN = (0.0, 3.0)
TOL = 1e-6
MAX_STEPS = 64
PARAMETERS = (2, 10, 100, 1000, 10_000)
STEPS = (100, 1000, 10_000)
FORWARD_MOST = 1000
"""Forward mode takes seconds a gradient beyond so many parameters."""

SECONDS = 2.0
Gradient = Callable[[jax.Array], jax.Array]


def field(u: jax.Array, p: jax.Array, t: jax.Array) -> jax.Array:
    """Two states driven by a random-feature network with `p.size` parameters, of shape (2, k)."""
    k = p.shape[1]
    frequency, phase = jnp.linspace(0.5, 2.0, k), jnp.linspace(0.0, 3.0, k)
    features = jnp.cos(frequency * (u[0] + u[1]) + phase)
    return jnp.tanh(p @ features) - jnp.stack([u[1], -u[0]])


def parameters(count: int) -> jax.Array:
    k = count // 2
    return jnp.asarray(np.random.default_rng(0).normal(0.0, 1 / np.sqrt(k), (2, k)))


def gradient(adjoint: dj.Adjoint, **options: Any) -> Gradient:
    """The gradient of a cost at the end and at ten save times."""

    def loss(p: jax.Array) -> jax.Array:
        prob = dj.ODEProblem(field, jnp.asarray(U0), TSPAN, p)
        sol = dj.solve(prob, dj.Tsit5(), saveat=0.3, adjoint=adjoint, **options)
        return jnp.sum(sol.u**2)

    return jax.jit(jax.grad(loss))


def adjoints(rows: int) -> dict[str, dj.Adjoint]:
    """Every adjoint, with checkpoints for so many steps."""
    few = max(2, int(np.sqrt(rows)))
    return {
        "Discrete": dj.DiscreteAdjoint(),
        f"Discrete, checkpoints={few}": dj.DiscreteAdjoint(checkpoints=few),
        "Backsolve": dj.BacksolveAdjoint(),
        "Interpolating": dj.InterpolatingAdjoint(),
        "Gauss": dj.GaussAdjoint(),
        "Reversible": dj.ReversibleAdjoint(),
        "ForwardMode": dj.ForwardMode(),
    }


def measure(functions: dict[str, Gradient], p: jax.Array) -> dict[str, tuple[float, int]]:
    """Seconds, and bytes of temporary memory, of each."""
    compiled = {name: f.lower(p).compile() for name, f in functions.items()}
    calls = {name: lambda c=c: jax.block_until_ready(c(p)) for name, c in compiled.items()}
    seconds = interleaved(calls, SECONDS)
    return {
        name: (seconds[name], c.memory_analysis().temp_size_in_bytes)
        for name, c in compiled.items()
    }


def by_parameters(counts: tuple[int, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for count in counts:
        functions = {
            name: gradient(adjoint, rtol=TOL, atol=TOL, max_steps=MAX_STEPS)
            for name, adjoint in adjoints(MAX_STEPS).items()
            if name != "ForwardMode" or count <= FORWARD_MOST
        }
        record(found, count, measure(functions, parameters(count)))
    return found


def by_steps(counts: tuple[int, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for count in counts:
        functions = {
            name.split("=")[0]: gradient(adjoint, steps=count)
            for name, adjoint in adjoints(count).items()
        }
        record(found, count, measure(functions, parameters(20)))
    return found


def record(found: dict[str, Any], count: int, measured: dict[str, tuple[float, int]]) -> None:
    for name, (seconds, size) in measured.items():
        found.setdefault(name, []).append({"count": count, "seconds": seconds, "bytes": size})
        print(f"{count:6d}  {name:28s} {seconds * 1e3:9.3f} ms {size / 1024:10.1f} KiB", flush=True)


def draw(parameters: dict[str, Any], steps: dict[str, Any], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(10, 7), sharex="col", layout="constrained")
    for column, (found, label) in enumerate(((parameters, "parameters"), (steps, "fixed steps"))):
        for row, (key, scale, unit) in enumerate(
            (("seconds", 1e3, "gradient, ms"), ("bytes", 1 / 1024, "temporary memory, KiB"))
        ):
            axis = axes[row, column]
            for name, points in found.items():
                x, y = [q["count"] for q in points], [q[key] * scale for q in points]
                axis.loglog(x, y, marker="o", markersize=3, label=name)
            axis.set_ylabel(unit)
            axis.grid(alpha=0.3)
        axes[1, column].set_xlabel(label)
        axes[0, column].legend(fontsize=7)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two sizes of each")
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR")
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    sizes = slice(0, 2) if arguments.quick else slice(None)
    parameters, steps = by_parameters(PARAMETERS[sizes]), by_steps(STEPS[sizes])
    draw(parameters, steps, arguments.out / "adjoints.png")
    table = {"environment": environment(), "parameters": parameters, "steps": steps}
    (arguments.out / "adjoints.json").write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
