"""Pictures of solutions, with matplotlib."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Float, PyTree

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .solution import Solution

# How many names a legend can hold before it hides the picture.
_LEGEND_MOST = 12


class _Curves(NamedTuple):
    """Times (T,), and the components of the state by name, each (T,)."""

    t: Float[np.ndarray, " T"]
    components: dict[str, Float[np.ndarray, " T"]]


def plot_solution(
    sol: "Solution",
    *,
    vars: int | str | Sequence[int | str] | None = None,
    ax: "Axes | None" = None,
    labels: Sequence[str] | None = None,
    points: int = 1000,
    **options: Any,
) -> "Axes":
    """Draw a solution: its components over time, or against each other.

    **Arguments:**

    - `sol`: a `Solution`. What was not reached is left out. A dense one is drawn as a smooth
        curve of its state, another as straight lines between what was saved.
    - `vars`: which components, by index or by name as in the legend (`"x[0]"` of a state
        `{"x": ...}`). A list draws them over time; a tuple of two or three draws them against
        each other (a phase plot). By default all over time.
    - `ax`: the axes to draw on, by default those of a new figure.
    - `labels`: names for the curves (of a phase plot: for the axes).
    - `points`: how many points make a smooth curve.
    - `options`: passed to `ax.plot`, for example `color`, `linestyle`.

    **Returns:** the matplotlib axes.

    **Raises:** `ImportError` without matplotlib; `ValueError` for a batch of solutions, a solution
    of one time only, or an unknown component.

    !!! example
        `sol = dj.solve(prob, dense=True); sol.plot(); sol.plot(vars=(0, 1))`
    """
    curves = _curves(sol, points)
    phase = isinstance(vars, tuple)
    if phase and len(vars) not in (2, 3):
        raise ValueError(f"vars as a tuple must name two or three components, got {vars!r}.")
    chosen = _chosen(list(curves.components), vars)
    values = [curves.components[name] for name in chosen]
    names = chosen if labels is None else list(labels)
    if len(names) != len(chosen):
        raise ValueError(f"labels must name {len(chosen)} curves, got {len(names)}.")
    axes: Any = ax
    if axes is None:
        axes = _new_axes("3d" if phase and len(chosen) == 3 else None)
    if phase:
        axes.plot(*values, **options)
        for axis, name in zip("xyz", names, strict=False):
            getattr(axes, f"set_{axis}label")(name)
        return axes
    for name, x in zip(names, values, strict=True):
        axes.plot(curves.t, x, **{"label": name, **options})
    axes.set_xlabel("t")
    if labels is not None or 1 < len(names) <= _LEGEND_MOST:
        axes.legend()
    elif len(names) == 1:
        axes.set_ylabel(names[0])
    return axes


def _new_axes(projection: str | None) -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise ImportError("plotting needs matplotlib: pip install 'diffjax[plot]'") from None
    figure = plt.figure(layout="constrained")
    return figure.add_subplot(projection=projection)


def _curves(sol: "Solution", points: int) -> _Curves:
    if np.ndim(sol.t) != 1:
        raise ValueError(
            f"plot draws one solution, got a batch of shape {np.shape(sol.t)[:-1]}; "
            "take one with jax.tree.map(lambda x: x[0], sol)."
        )
    steps = sol._interpolation
    if steps is not None:
        t = np.linspace(steps.t[0] * steps.direction, sol.t_end, points)
        return _reached(t, sol(jnp.asarray(t)))
    if len(sol.t) == 1:
        raise ValueError("the solution holds one time only; solve with saveat= or dense=True.")
    return _reached(np.asarray(sol.t), sol.u)


def _reached(t: Float[np.ndarray, " T"], u: PyTree) -> _Curves:
    """The rows that are not NaN, taken apart into components."""
    components = _components(u)
    known = np.isfinite(t) & ~np.all(np.isnan(list(components.values())), axis=0)
    return _Curves(t[known], {name: x[known] for name, x in components.items()})


def _components(u: PyTree) -> dict[str, Float[np.ndarray, " T"]]:
    """Every scalar of the state over time, by a name like `u[1]`, `x[0, 2]` or `Re z`."""
    components = {}
    for path, leaf in jtu.tree_leaves_with_path(u):
        rows = np.asarray(leaf)
        root = _name(path)
        for index in np.ndindex(rows.shape[1:]):
            inside = f"[{', '.join(map(str, index))}]" if index else ""
            values = rows[(slice(None), *index)]
            if np.iscomplexobj(values):
                components[f"Re {root}{inside}"] = np.real(values)
                components[f"Im {root}{inside}"] = np.imag(values)
            else:
                components[f"{root}{inside}"] = values
    return components


def _name(path: tuple[Any, ...]) -> str:
    """`x` for an entry of a dict or a field, `u[0]` of a tuple, `a.b[0]` for nested ones."""
    name = ""
    for key in path:
        inside = getattr(key, "key", getattr(key, "name", None))
        name += f"[{key.idx}]" if isinstance(key, jtu.SequenceKey) else f".{inside}"
    return name[1:] if name.startswith(".") else f"u{name}"


def _chosen(names: list[str], vars: Any) -> list[str]:
    """The names that `vars` stands for."""
    if vars is None:
        return names

    def name(var: int | str) -> str:
        if var in names:
            return str(var)
        if isinstance(var, int) and -len(names) <= var < len(names):
            return names[var]
        shown = ", ".join(names[:_LEGEND_MOST]) + (", ..." if len(names) > _LEGEND_MOST else "")
        raise ValueError(f"vars: there is no component {var!r}; there are {shown}.")

    return [name(var) for var in ([vars] if isinstance(vars, int | str) else vars)]
