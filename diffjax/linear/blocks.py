"""Wide bands, block by block: of a field in a plane the neighbours in the next row are far away.

A band of half width m falls into blocks of m rows and columns, of which each row has three. They
are eliminated a block at a time, by libraries for dense matrices, as LAPACK's `gbtrf` does
(Anderson et al., LAPACK Users' Guide, section 5.3.3). The pivots are those of a dense elimination:
they are taken from all rows that the columns of a block have entries in, which are those of two
blocks.
"""

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
from jaxtyping import Array, Float, Int

Vector = Float[Array, " n"]


def block_rows(rows: Float[Array, "n width"], lower: int, upper: int) -> Float[Array, "b m 3m"]:
    """The blocks left of, on and right of the diagonal, of a band as `Band.rows` has it.

    The last rows are filled up with those of an identity.
    """
    m = max(lower, upper)
    n, width = rows.shape
    missing = -n % m
    last = jnp.zeros((missing, width), rows.dtype).at[:, lower].set(1)
    blocks = jnp.concatenate([rows, last]).reshape(-1, m, width)
    # Each row starts a column further right than the one above: it is one place longer.
    sides = (m - lower, 2 * m + 1 + lower - width)
    skewed = jnp.pad(blocks, ((0, 0), (0, 0), sides)).reshape(len(blocks), -1)
    return skewed[:, : 3 * m * m].reshape(-1, m, 3 * m)


def eliminate(
    blocks: Float[Array, "b m 3m"],
) -> tuple[Float[Array, "b 2m m"], Int[Array, "b 2m"], Float[Array, "b m 2m"]]:
    """Of each column of blocks its factors, the order of the rows, and the rows that are done."""
    m = blocks.shape[1]

    def column(above: Array, row: Array) -> tuple[Array, tuple[Array, Array, Array]]:
        window = jnp.concatenate([jnp.pad(above, ((0, 0), (0, m))), row])
        panel, _, order = jax.lax.linalg.lu(window[:, :m])
        others = window[order, m:]
        done = _unit_lower(panel, others[:m])
        return others[m:] - panel[m:] @ done, (panel, order, done)

    following = jnp.concatenate([blocks[1:], jnp.zeros_like(blocks[:1])])
    return jax.lax.scan(column, blocks[0, :, m:], following)[1]


def substitute(panels: Array, orders: Array, upper: Array, b: Vector) -> Vector:
    """Both triangular solves. It is linear in `b`."""
    n, m = b.shape[0], panels.shape[2]
    pieces = jnp.pad(b, (0, -n % m)).reshape(-1, m)

    def forwards(above: Array, xs: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        panel, order, new = xs
        both = jnp.concatenate([above, new])[order]
        done = _unit_lower(panel, both[:m])
        return both[m:] - panel[m:] @ done, done

    following = jnp.concatenate([pieces[1:], jnp.zeros_like(pieces[:1])])
    _, y = jax.lax.scan(forwards, pieces[0], (panels, orders, following))

    def backwards(below: Array, xs: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        panel, right, y = xs
        x = jsl.solve_triangular(panel[:m], y - right @ below)
        return jnp.concatenate([x, below[:m]]), x

    none = jnp.zeros_like(jnp.concatenate([y[0], y[0]]))
    _, x = jax.lax.scan(backwards, none, (panels, upper, y), reverse=True)
    return x.reshape(-1)[:n]


def _unit_lower(panel: Array, b: Array) -> Array:
    """The solve with the upper square of a panel's lower factor."""
    square = panel[: panel.shape[1]]
    return jsl.solve_triangular(square, b, lower=True, unit_diagonal=True)
