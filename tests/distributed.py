"""One of two processes of an ensemble: `python -m tests.distributed ADDRESS FOLDER RANK`."""

import sys
from pathlib import Path

import jax


def main(address: str, folder: str, rank: str) -> None:
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, num_processes=2, process_id=int(rank))
    import numpy as np

    from tests.test_ensemble_devices import MOMENTS, solve

    assert (jax.device_count(), jax.local_device_count()) == (4, 2)
    mesh = jax.make_mesh((4,), ("a",))
    u = solve(8, mesh=mesh).u
    moments = solve(6, reduction=MOMENTS, mesh=mesh).u
    shards = sorted(u.addressable_shards, key=lambda shard: shard.index[0].start)
    mine = np.concatenate([np.asarray(shard.data) for shard in shards])
    np.savez(Path(folder) / rank, u=mine, mean=moments.mean, var=moments.var)


if __name__ == "__main__":
    main(*sys.argv[1:])
