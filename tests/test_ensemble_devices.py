"""An ensemble on several devices, and what its compiled program holds."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffjax as dj
from tests.problems import LOTKA_VOLTERRA, lotka_volterra

P = jnp.asarray(LOTKA_VOLTERRA.p)
PROB = dj.ODEProblem(lotka_volterra, jnp.asarray(LOTKA_VOLTERRA.u0), (0.0, 3.0), P)
KEY = jax.random.key(3)
MOMENTS = dj.EnsembleMoments()


def varied(prob: dj.ODEProblem, i: jax.Array, key: jax.Array) -> dj.ODEProblem:
    noise = jax.random.normal(key, (4,), prob.p.dtype)
    return dj.remake(prob, p=prob.p * (1 + 0.1 * noise))


def solve(count: int, p: jax.Array = P, reduction: Any = None, **options: Any) -> Any:
    ensemble = dj.EnsembleProblem(dj.remake(PROB, p=p), varied, reduction=reduction)
    options = {"saveat": 0.5, "rtol": 1e-4, "atol": 1e-4, "max_steps": 64, **options}
    # A small method, which makes small programs.
    return dj.solve(ensemble, dj.BS3(), trajectories=count, key=KEY, **options)


def close(got: Any, wanted: Any) -> None:
    np.testing.assert_allclose(np.asarray(got), np.asarray(wanted), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("count", [8, 11])
def test_four_devices_are_one(count: int) -> None:
    """A number that the mesh divides, which stays spread over it, and one that it does not."""
    mesh = jax.make_mesh((2, 2), ("a", "b"))
    sol = solve(count, mesh=mesh, batch_size=2, save_idxs=[1, 0])
    alone = solve(count, save_idxs=[1, 0])
    close(sol.u, alone.u)
    np.testing.assert_array_equal(sol.retcode, alone.retcode)
    assert int(sol.returned[0]) == count
    if count == 8:
        assert not sol.u.is_fully_replicated


BALL = dj.ContinuousCallback(lambda u, p, t: u[0], lambda u, p, t: -0.8 * u)
FALL = dj.ODEProblem(lambda u, p, t: jnp.stack([u[1], -p]), jnp.array([1.0, 0.0]), (0.0, 1.5), 9.8)
CHAIN = dj.DAEProblem(
    lambda du, u, p, t: jnp.stack([du[0] + p * u[0], u[1] - u[0] ** 2]),
    jnp.zeros(2),
    jnp.ones(2),
    (0.0, 1.0),
    1.0,
)
DEATH = dj.ConstantRateJump(lambda u, p, t: p * u[0].astype(float), lambda u, p, t: u - 1)
DEATHS = dj.JumpProblem(dj.DiscreteProblem(jnp.array([20]), (0.0, 1.0), 1.0), DEATH)
GROWTH = dj.ODEProblem(lambda u, p, t: p * u, jnp.ones(1), (0.0, 1.0), 1.0)
GUSTS = dj.JumpProblem(GROWTH, dj.ConstantRateJump(lambda u, p, t: 2.0, lambda u, p, t: u / 2))


@pytest.mark.parametrize(
    ("problem", "alg", "options"),
    [
        (FALL, dj.BS3(), {"callback": BALL, "saveat": 0.5}),
        (FALL, dj.BS3(), {"callback": BALL, "dt": 0.1, "adaptive": False}),
        (GROWTH, dj.BS3(), {"callback": dj.PresetTimeCallback([0.5], lambda u, p, t: 2 * u)}),
        (CHAIN, dj.DImplicitEuler(), {"rtol": 1e-2, "atol": 1e-2}),
        (GROWTH, dj.QNDF(max_order=2), {"saveat": 0.3}),
        (DEATHS, None, {"saveat": 0.5}),
        (GUSTS, dj.BS3(), {}),
    ],
    ids=["event", "fixed-event", "preset", "dae", "bdf", "jumps", "hybrid"],
)
def test_every_kind_on_a_mesh(problem: Any, alg: Any, options: dict[str, Any]) -> None:
    """Their loops are given types that vary over the mesh as what they give back does."""

    def member(prob: Any, i: jax.Array, key: jax.Array) -> Any:
        p = prob.prob.p if isinstance(prob, dj.JumpProblem) else prob.p
        return dj.remake(prob, p=p * (1 + 0.1 * i.astype(float)))

    ensemble = dj.EnsembleProblem(problem, member)
    options = {"trajectories": 6, "key": KEY, "max_steps": 128, **options}
    spread = dj.solve(ensemble, alg, mesh=jax.make_mesh((4,), ("a",)), **options)
    close(spread.u, dj.solve(ensemble, alg, **options).u)


def test_reduction_and_gradient_on_four_devices() -> None:
    """11 trajectories are 3, 3, 3 and 2; in tiles of 2 no two devices end alike."""
    mesh = jax.make_mesh((4,), ("a",))

    def spread(p: jax.Array, **options: Any) -> Any:
        moments = solve(11, p, MOMENTS, batch_size=2, **options).u
        return jnp.sum(moments.var), moments

    (_, moments), gradient = jax.value_and_grad(spread, has_aux=True)(P, mesh=mesh)
    (_, wanted), wanted_gradient = jax.value_and_grad(spread, has_aux=True)(P)
    close(moments.mean, wanted.mean)
    close(moments.var, wanted.var)
    np.testing.assert_array_equal(moments.count, 11)
    np.testing.assert_allclose(gradient, wanted_gradient, rtol=1e-10)


def compiled(function: Any) -> Any:
    return jax.jit(function).lower(P).compile()


def test_memory_does_not_grow_with_the_trajectories() -> None:
    """Of moments and of their gradient; and nothing in the program calls the host."""

    def mean(p: jax.Array, count: int) -> jax.Array:
        return jnp.sum(solve(count, p, MOMENTS, batch_size=20).u.mean)

    def temporary(program: Any) -> int:
        return program.memory_analysis().temp_size_in_bytes

    few, many = (compiled(lambda p, n=n: mean(p, n)) for n in (100, 10_000_000))
    assert temporary(many) == temporary(few)
    assert "callback" not in many.as_text()
    tiles = (compiled(jax.grad(lambda p, n=n: mean(p, n))) for n in (40, 400))
    two, twenty = map(temporary, tiles)
    # What grows is the accumulator before each tile, three times 7 x 2 numbers.
    assert twenty - two <= 18 * 2 * (3 * 14 * 8 + 64)


def test_two_processes(tmp_path: Path) -> None:
    """The same script under `jax.distributed`, two processes of two devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    flags = "--xla_force_host_platform_device_count=2"
    env = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "tests.distributed", address, str(tmp_path)]
    root = Path(__file__).parent.parent
    running = [subprocess.Popen([*command, str(rank)], env=env, cwd=root) for rank in range(2)]
    assert [process.wait(300) for process in running] == [0, 0]
    wanted = solve(6, reduction=MOMENTS).u
    states = np.concatenate([np.load(tmp_path / f"{rank}.npz")["u"] for rank in range(2)])
    close(states, solve(8).u)
    for rank in range(2):
        with np.load(tmp_path / f"{rank}.npz") as got:
            close(got["mean"], wanted.mean)
            close(got["var"], wanted.var)
