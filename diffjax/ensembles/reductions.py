"""What folds a tile of trajectories into an accumulator of fixed size."""

import equinox as eqx
from jaxtyping import PyTree


class Reduction(eqx.Module):
    """Base class of reductions that bring their own accumulator and can put two of them together.

    Call it with an accumulator and the outputs of a tile, stacked along a first axis; the result
    is the next accumulator, of the same shapes.
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
