"""What folds a tile of trajectories into an accumulator of fixed size.

What is NaN, because a trajectory did not reach it, is left out entry by entry; each entry of an
accumulator has its own count.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
from jaxtyping import Array, PyTree

from ..solution import concrete


class Reduction(eqx.Module):
    """Base class of reductions that bring their own accumulator and can put two of them together.

    Call it with an accumulator and the outputs of a tile, stacked along a first axis; the result
    is the next accumulator, of the same shapes. A subclass says how in three methods.
    """

    def init(self, out: PyTree) -> PyTree:
        """The accumulator of no trajectory, for outputs like `out` (shapes and dtypes)."""
        raise NotImplementedError

    def __call__(self, acc: PyTree, outs: PyTree) -> PyTree:
        raise NotImplementedError

    def merge(self, a: PyTree, b: PyTree) -> PyTree:
        """The accumulator of the trajectories of both."""
        raise NotImplementedError


class Together(Reduction):
    """Several reductions of the same outputs; the accumulator is the tuple of theirs."""

    parts: tuple[Reduction, ...]

    def init(self, out: PyTree) -> PyTree:
        return tuple(part.init(out) for part in self.parts)

    def __call__(self, acc: PyTree, outs: PyTree) -> PyTree:
        return tuple(part(a, outs) for part, a in zip(self.parts, acc, strict=True))

    def merge(self, a: PyTree, b: PyTree) -> PyTree:
        pairs = zip(self.parts, a, b, strict=True)
        return tuple(part.merge(x, y) for part, x, y in pairs)


class Moments(eqx.Module):
    """What `EnsembleMoments` accumulates; every leaf is shaped like the output of one trajectory.

    - `mean`: the mean, NaN of nothing; `var`: the unbiased variance, NaN of fewer than two;
        `std`: its root.
    - `count`: how many values entered.
    """

    count: PyTree
    _mean: PyTree
    _squares: PyTree

    @property
    def mean(self) -> PyTree:
        return jtu.tree_map(lambda n, m: jnp.where(n > 0, m, jnp.nan), self.count, self._mean)

    @property
    def var(self) -> PyTree:
        def one(n: Array, s: Array) -> Array:
            return jnp.where(n > 1, s / jnp.maximum(n - 1, 1).astype(s.dtype), jnp.nan)

        return jtu.tree_map(one, self.count, self._squares)

    @property
    def std(self) -> PyTree:
        return jtu.tree_map(jnp.sqrt, self.var)


class EnsembleMoments(Reduction):
    """Mean and variance of the outputs of all trajectories, as a `Moments`.

    Differentiable. What is NaN is left out, entry by entry.

    !!! example
        ```python
        ensemble = dj.EnsembleProblem(prob, prob_func, reduction=dj.EnsembleMoments())
        moments = dj.solve(ensemble, trajectories=10_000_000, saveat=0.1, key=key).u
        moments.mean, moments.var, moments.count
        ```

    Source: the sums of squared deviations are put together as by Chan, Golub and LeVeque,
    "Updating formulae and a pairwise algorithm for computing sample variances" (1979), equation
    2.1; no difference of large sums is taken.
    """

    def init(self, out: PyTree) -> Moments:
        _check_real("EnsembleMoments", out)

        def zeros(dtype: jnp.dtype | None) -> PyTree:
            return jtu.tree_map(lambda x: jnp.zeros(x.shape, dtype or x.dtype), out)

        return Moments(zeros(jnp.dtype(jnp.int32)), zeros(None), zeros(None))

    def __call__(self, acc: Moments, outs: PyTree) -> Moments:
        known = jtu.tree_map(lambda x: ~jnp.isnan(x), outs)
        count = jtu.tree_map(lambda k: jnp.sum(k, axis=0, dtype=jnp.int32), known)

        def mean(x: Array, k: Array, n: Array) -> Array:
            return jnp.sum(jnp.where(k, x, 0), axis=0) / jnp.maximum(n, 1).astype(x.dtype)

        def squares(x: Array, k: Array, m: Array) -> Array:
            return jnp.sum(jnp.where(k, x - m[None], 0) ** 2, axis=0)

        means = jtu.tree_map(mean, outs, known, count)
        return self.merge(acc, Moments(count, means, jtu.tree_map(squares, outs, known, means)))

    def merge(self, a: Moments, b: Moments) -> Moments:
        def share(n: Array, m: Array, mean: Array) -> Array:
            """The part that the second has in the sum."""
            return m.astype(mean.dtype) / jnp.maximum(n + m, 1).astype(mean.dtype)

        def mean(n: Array, m: Array, x: Array, y: Array) -> Array:
            return x + share(n, m, x) * (y - x)

        def squares(n: Array, m: Array, x: Array, y: Array, s: Array, r: Array) -> Array:
            return s + r + n.astype(x.dtype) * share(n, m, x) * (y - x) ** 2

        counts = a.count, b.count
        return Moments(
            jtu.tree_map(jnp.add, *counts),
            jtu.tree_map(mean, *counts, a._mean, b._mean),
            jtu.tree_map(squares, *counts, a._mean, b._mean, a._squares, b._squares),
        )


class Histogram(eqx.Module):
    """What `HistogramSketch` accumulates.

    - `counts`: each leaf of shape (bins + 2, ...): values under `low`, in each bin, and from
        `high` on.
    - `count`: how many values entered, shaped like the output of one trajectory.
    - `error`: the most by which a quantile is wrong, the width of a bin.
    """

    counts: PyTree
    low: PyTree
    high: PyTree

    @property
    def count(self) -> PyTree:
        return jtu.tree_map(lambda c: jnp.sum(c, axis=0, dtype=c.dtype), self.counts)

    @property
    def error(self) -> PyTree:
        def one(c: Array, low: Array, high: Array) -> Array:
            return (high - low) / (c.shape[0] - 2)

        return jtu.tree_map(one, self.counts, self.low, self.high)

    def quantile(self, q: float) -> PyTree:
        """The quantile `q`, 0 to 1, wrong by at most `error`.

        It is the middle of the bin with the value of rank `ceil(q n)` of the n values: infinite
        where that value lies outside `low` and `high`, NaN of nothing.

        **Raises:** `ValueError` for a `q` outside [0, 1].
        """
        if not 0 <= q <= 1:
            raise ValueError(f"q must lie in [0, 1], got {q!r}.")

        def one(c: Array, low: Array, high: Array) -> Array:
            n = jnp.sum(c, axis=0, dtype=c.dtype)
            rank = jnp.clip(jnp.ceil(q * n.astype(low.dtype)).astype(c.dtype), 1, None)
            bin = jnp.argmax(jnp.cumsum(c, axis=0, dtype=c.dtype) >= rank[None], axis=0)
            width = (high - low) / (c.shape[0] - 2)
            middle = low + (bin.astype(low.dtype) - 0.5) * width
            inside = jnp.where(bin == 0, -jnp.inf, jnp.where(bin > c.shape[0] - 2, jnp.inf, middle))
            return jnp.where(n > 0, inside, jnp.nan)

        return jtu.tree_map(one, self.counts, self.low, self.high)


class HistogramSketch(Reduction):
    """Quantiles of the outputs of all trajectories from a histogram of each, as a `Histogram`.

    The range must be given: a quantile is exact to the width of a bin, `(high - low) / bins`. It
    has no derivative. What is NaN is left out.

    **Arguments:**

    - `low`, `high`: the range, numbers or pytrees of arrays that broadcast to the output of one
        trajectory.
    - `bins`: the number of bins. The memory is `bins` integers for every number of an output.

    **Raises:** `ValueError` for fewer than one bin or an empty range.

    !!! example
        ```python
        reduction = dj.EnsembleMoments(), dj.HistogramSketch(0.0, 10.0, 1000)
        ensemble = dj.EnsembleProblem(prob, prob_func, reduction=reduction)
        moments, histogram = dj.solve(ensemble, trajectories=1_000_000, saveat=1.0, key=key).u
        moments.mean, histogram.quantile(0.95), histogram.error
        ```
    """

    low: PyTree
    high: PyTree
    bins: int = eqx.field(static=True)

    def __init__(self, low: PyTree, high: PyTree, bins: int = 1000) -> None:
        if not isinstance(bins, int) or bins < 1:
            raise ValueError(f"bins must be a positive integer, got {bins!r}.")
        for a, b in zip(jtu.tree_leaves(low), jtu.tree_leaves(high), strict=True):
            ends = concrete(a), concrete(b)
            if ends[0] is not None and ends[1] is not None and not (ends[0] < ends[1]).all():
                raise ValueError(f"low must be less than high, got {low} and {high}.")
        self.low, self.high, self.bins = low, high, bins

    def init(self, out: PyTree) -> Histogram:
        _check_real("HistogramSketch", out)

        def counts(x: Array) -> Array:
            return jnp.zeros((self.bins + 2, *x.shape), jnp.int32)

        low, high = self._range(self.low, out), self._range(self.high, out)
        return Histogram(jtu.tree_map(counts, out), low, high)

    @staticmethod
    def _range(end: PyTree, out: PyTree) -> PyTree:
        """One end for every number of an output."""
        if jtu.tree_structure(end) != jtu.tree_structure(out):
            end = jtu.tree_map(lambda _: end, out)
        return jtu.tree_map(
            lambda e, x: jnp.broadcast_to(jnp.asarray(e, x.dtype), x.shape), end, out
        )

    def __call__(self, acc: Histogram, outs: PyTree) -> Histogram:
        def one(counts: Array, low: Array, high: Array, x: Array) -> Array:
            x = jax.lax.stop_gradient(x)
            scaled = (x - low[None]) / (high - low)[None] * self.bins
            place = jnp.clip(jnp.floor(scaled), -1, self.bins)
            # NaN goes beyond the last row, where it is dropped.
            row = jnp.where(jnp.isnan(x), self.bins + 2, place + 1).astype(jnp.int32)
            flat = counts.reshape(self.bins + 2, -1)
            columns = jnp.broadcast_to(jnp.arange(flat.shape[1])[None], (x.shape[0], flat.shape[1]))
            flat = flat.at[row.reshape(columns.shape), columns].add(1, mode="drop")
            return flat.reshape(counts.shape)

        counts = jtu.tree_map(one, acc.counts, acc.low, acc.high, outs)
        return Histogram(counts, acc.low, acc.high)

    def merge(self, a: Histogram, b: Histogram) -> Histogram:
        return Histogram(jtu.tree_map(jnp.add, a.counts, b.counts), a.low, a.high)


def _check_real(name: str, out: PyTree) -> None:
    for leaf in jtu.tree_leaves(out):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"reduction={name} takes real floating-point outputs, got dtype {leaf.dtype}; "
                "let output_func convert them."
            )
