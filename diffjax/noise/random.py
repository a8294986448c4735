"""Normal numbers by counting: a draw is a pure function of a key and of the numbers that name it.

No generator state is carried along, so that a step's noise is the same when the step is taken
again on the way back, and a node of a Brownian tree the same whoever asks for it. The rounds are
written out, which XLA fuses with what is made of the numbers; the loop that `jax.random` compiles
to on a CPU costs several times as much within a small step.

Source: Salmon, Moraes, Dror, Shaw, Parallel random numbers: as easy as 1, 2, 3, SC 2011 (section
4.2 and table 2, Threefry-2x32 with 20 rounds, which is also the generator of `jax.random`).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt32

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)


def threefry(
    key: UInt32[Array, " 2"], first: UInt32[Array, "*shape"], second: UInt32[Array, "*shape"]
) -> tuple[UInt32[Array, "*shape"], UInt32[Array, "*shape"]]:
    """64 random bits, as two words, for each pair of counters."""
    words = (key[0], key[1], key[0] ^ key[1] ^ _PARITY)
    x, y = first + words[0], second + words[1]
    for i in range(5):
        for distance in _ROTATIONS[i % 2]:
            x = x + y
            y = (y << np.uint32(distance)) | (y >> np.uint32(32 - distance))
            y = y ^ x
        x = x + words[(i + 1) % 3]
        y = y + words[(i + 2) % 3] + np.uint32(i + 1)
    return x, y


def uniform(word: UInt32[Array, "*shape"], dtype: jnp.dtype) -> Float[Array, "*shape"]:
    """A number between 0 and 1, and neither of them, from 32 random bits.

    In double precision its distribution function is right to 2**-33, far below the sampling error
    of any ensemble.
    """
    if jnp.finfo(dtype).bits < 64:
        # 24 bits are all that a number of this precision holds.
        return ((word >> np.uint32(9)).astype(dtype) + 0.5) * 2.0**-23
    return (word.astype(dtype) + 0.5) * 2.0**-32


def exponential(word: UInt32[Array, "*shape"], dtype: jnp.dtype) -> Float[Array, "*shape"]:
    """A number with the exponential distribution of mean one, never 0, from 32 random bits."""
    return -jnp.log(uniform(word, dtype))


def _normal(word: UInt32[Array, "*shape"], dtype: jnp.dtype) -> Float[Array, "*shape"]:
    """A standard normal number from 32 random bits; symmetric, and never infinite.

    It is cut at 6.3 standard deviations (5.4 in single precision).
    """
    return float(np.sqrt(2.0)) * jax.lax.erf_inv(2.0 * uniform(word, dtype) - 1.0)


def normal_pairs(
    key: UInt32[Array, " 2"], counter: Array, count: int, dtype: jnp.dtype, start: int = 0
) -> tuple[Float[Array, " count"], Float[Array, " count"]]:
    """Two vectors of independent standard normal numbers, named by a counter and by their places,
    which begin with `start`."""
    number = jnp.asarray(counter).astype(jnp.uint32)
    places = jnp.arange(start, start + count, dtype=jnp.uint32)
    first, second = threefry(key, jnp.broadcast_to(number, places.shape), places)
    return _normal(first, dtype), _normal(second, dtype)


def normals(
    key: UInt32[Array, " 2"], counter: Array, count: int, dtype: jnp.dtype, start: int = 0
) -> Float[Array, " count"]:
    """As many independent standard normal numbers, of half as many places."""
    pairs = normal_pairs(key, counter, (count + 1) // 2, dtype, start)
    return jnp.concatenate(pairs)[:count]


def key_from(key: UInt32[Array, " 2"], t0: Float[Array, ""]) -> UInt32[Array, " 2"]:
    """The key of a solve that starts at t0: one that goes on from where another ended has noise of
    its own, though the user's key be the same."""
    start = jax.lax.bitcast_convert_type(t0.astype(jnp.float32) + 0.0, jnp.uint32)
    return jnp.stack(threefry(key, start, jnp.zeros((), jnp.uint32)))


def key_words(key: Array) -> UInt32[Array, " 2"]:
    """The words of a key of `jax.random`, typed or raw; of a generator with another size of key,
    two words drawn from it."""
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    words = jax.random.key_data(key)
    return words if words.shape == (2,) else jax.random.bits(key, (2,), jnp.uint32)
