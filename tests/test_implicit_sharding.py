"""Methods that iterate or switch, inside `jax.shard_map` with its checks on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

import diffjax as dj

METHODS = (
    dj.TRBDF2(),
    dj.FBDF(max_order=2),
    dj.RadauIIA5(),
    dj.AutoTsit5(dj.Rosenbrock23()),
)


@pytest.mark.slow
@pytest.mark.parametrize("alg", METHODS, ids=lambda alg: alg.name)
def test_lanes_on_several_devices(alg: dj.Algorithm) -> None:
    """The solutions are those of a `vmap`, their gradients those of each lane alone."""
    mesh = Mesh(np.array(jax.devices()[:4]), ("lanes",))
    ps = jnp.linspace(1.0, 20.0, 8)

    def end(p: jax.Array) -> jax.Array:
        prob = dj.ODEProblem(lambda u, p, t: -p * u**3, jnp.ones(1), (0.0, 1.0), p)
        return dj.solve(prob, alg, rtol=1e-3, max_steps=128, throw=False).u[-1, 0]

    spec = PartitionSpec("lanes")
    sharded = jax.shard_map(jax.vmap(end), mesh=mesh, in_specs=spec, out_specs=spec)
    ends, alone = jax.jit(jax.vmap(jax.value_and_grad(end)))(ps)
    np.testing.assert_allclose(jax.jit(sharded)(ps), ends, rtol=1e-12)
    gradient = jax.jit(jax.grad(lambda ps: jnp.sum(sharded(ps))))(ps)
    np.testing.assert_allclose(gradient, alone, rtol=1e-9)
