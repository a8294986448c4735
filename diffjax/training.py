"""Fitting parameters to data: one loop around an optax optimizer."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice, repeat
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from .progress import Bar


class TrainResult(NamedTuple):
    """What `train` gives back.

    - `params`: the parameters after the last step.
    - `best`: the parameters with the lowest loss seen (of one batch, where there are batches).
    - `losses`: the loss before each step and after the last, shape `(steps + 1,)`.
    - `opt_state`: the optimizer's state; pass it to `train` again to go on.
    """

    params: PyTree
    best: PyTree
    losses: Float[np.ndarray, " steps_and_one"]
    opt_state: PyTree


class TrainingError(RuntimeError):
    """The loss or its gradient is not finite.

    `params` are the parameters with the lowest loss so far, `losses` all losses, the last included.
    """

    def __init__(self, message: str, params: PyTree, losses: Float[np.ndarray, " steps"]) -> None:
        super().__init__(message)
        self.params = params
        self.losses = losses


def train(
    loss: Callable[..., Float[Array, ""]],
    params: PyTree,
    optimizer: optax.GradientTransformation,
    steps: int,
    *,
    batches: Iterable[PyTree] | None = None,
    callback: Callable[[int, float, PyTree], Any] | None = None,
    callback_every: int = 1,
    progress: bool = True,
    opt_state: PyTree = None,
) -> TrainResult:
    """Minimise a loss by gradient descent; a step is compiled once.

    **Arguments:**

    - `loss`: a function `loss(params)`, or `loss(params, batch)` with `batches`, to a real scalar.
    - `params`: any pytree; its floating-point arrays are trained. In plain containers floats
        count as arrays, in an equinox module they are settings and stay as they are.
    - `optimizer`: from optax, for example `optax.adam(1e-2)` or `optax.lbfgs()`.
    - `steps`: how many steps to take.
    - `batches`: an iterable of pytrees of arrays of the same shapes. It is started again when it
        runs out; a generator, which cannot be, ends the training.
    - `callback`: called as `callback(step, loss, params)` before every `callback_every`-th step,
        the first included, and after the last if its number is one of these; `loss` is that of
        `params`. Returning True ends the training with these `params`.
    - `progress`: show a progress bar with the loss.
    - `opt_state`: the optimizer's state to start from.

    **Returns:** a `TrainResult` of `params`, `best`, `losses` and `opt_state`.

    **Raises:** `TrainingError` if the loss or its gradient is not finite; it holds the best
    parameters so far. `ValueError` if there is nothing to train.

    !!! example
        ```python
        def loss(network):
            u = dj.neural.neural_ode(network, u0, (0.0, 1.5), saveat=ts)
            return jnp.sum((u - data) ** 2)

        network, best, losses, _ = dj.train(loss, network, optax.adam(1e-2), 200)
        ```
    """
    trained, settings = eqx.partition(_as_arrays(params), eqx.is_inexact_array)
    if not jtu.tree_leaves(trained):
        raise ValueError("params holds no floating-point array, so there is nothing to train.")
    if steps < 1:
        raise ValueError(f"steps must be a positive integer, got {steps!r}.")
    step = _make_step(loss, optimizer, settings)
    state = _strongly_typed(optimizer.init(trained) if opt_state is None else opt_state)
    best, lowest, losses = trained, np.inf, []
    after = trained, state

    with Bar(steps, "train", progress) as bar:
        for i, batch in enumerate(_arguments(batches, steps)):
            trained, state = after
            *after, value, finite = step(trained, state, *batch)
            losses.append(float(value))
            if not finite:
                raise _failure(losses, eqx.combine(best, settings))
            if losses[-1] < lowest:
                best, lowest = trained, losses[-1]
            bar.advance(min(i, 1), f"loss {losses[-1]:.4g}")
            if callback is not None and i % callback_every == 0:
                stop = callback(i, losses[-1], eqx.combine(trained, settings))
                if stop is True:
                    break

    final, best = (eqx.combine(x, settings) for x in (trained, best))
    return TrainResult(final, best, np.asarray(losses), state)


def _as_arrays(params: PyTree) -> PyTree:
    """Numbers and NumPy arrays outside modules as JAX arrays, none of them weakly typed."""

    def array(x: Any) -> Any:
        is_number = isinstance(x, float | complex | np.ndarray | np.generic)
        return jnp.asarray(x) if is_number else x

    params = jtu.tree_map(array, params, is_leaf=lambda x: isinstance(x, eqx.Module))
    return _strongly_typed(params)


def _strongly_typed(tree: PyTree) -> PyTree:
    """A weakly typed array becomes an ordinary one in the first step: a second compilation."""
    return jtu.tree_map(
        lambda x: jax.lax.convert_element_type(x, x.dtype) if eqx.is_inexact_array(x) else x, tree
    )


def _arguments(batches: Iterable[PyTree] | None, steps: int) -> Iterator[tuple[PyTree, ...]]:
    """What the loss takes besides the parameters: for each step, and the last again at the end."""
    last = None
    for last in islice(_repeated(batches), steps):
        yield last
    if last is None:
        raise ValueError("batches must hold at least one batch, got none.")
    yield last


def _repeated(batches: Iterable[PyTree] | None) -> Iterator[tuple[PyTree, ...]]:
    if batches is None:
        yield from repeat(())
        return
    empty = False
    while not empty:
        empty = True
        for batch in batches:
            empty = False
            yield (batch,)


def _make_step(
    loss: Callable[..., Any], optimizer: optax.GradientTransformation, settings: PyTree
) -> Callable[..., tuple[PyTree, PyTree, Array, Array]]:
    optimizer = optax.with_extra_args_support(optimizer)

    @jax.jit
    def step(trained: PyTree, state: PyTree, *batch: PyTree) -> tuple[PyTree, PyTree, Array, Array]:
        def of_trained(trained: PyTree) -> Array:
            return loss(eqx.combine(trained, settings), *batch)

        value, gradient = jax.value_and_grad(of_trained)(trained)
        # For a complex parameter JAX gives the conjugate of the direction of steepest ascent.
        gradient = jtu.tree_map(jnp.conj, gradient)
        finite = [jnp.all(jnp.isfinite(x)) for x in jtu.tree_leaves((value, gradient))]
        # Optax counts steps in integers, which strict promotion forbids to mix with weights.
        with jax.numpy_dtype_promotion("standard"):
            # A line search (lbfgs) needs the loss itself.
            updates, state = optimizer.update(
                gradient, state, trained, value=value, grad=gradient, value_fn=of_trained
            )
            after = optax.apply_updates(trained, updates)
        return after, state, value, jnp.all(jnp.stack(finite))

    return step


def _failure(losses: list[float], best: PyTree) -> TrainingError:
    what = "the gradient is not finite" if np.isfinite(losses[-1]) else f"the loss is {losses[-1]}"
    lowest = min((x for x in losses if np.isfinite(x)), default=None)
    so_far = "" if lowest is None else f" (lowest loss so far: {lowest:.6g})"
    message = (
        f"training stopped at step {len(losses) - 1}: {what}{so_far}. A solve that fails under jit "
        "gives NaN: try a smaller learning rate, tighter tolerances or a larger max_steps. "
        "The best parameters so far are in the error's `params`."
    )
    return TrainingError(message, best, np.asarray(losses))
