"""Pictures of solutions, with matplotlib."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jaxtyping import Float, PyTree

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .ensembles.solution import EnsembleSolution
    from .ensembles.summary import EnsembleSummary
    from .solution import Solution

# How many names a legend can hold before it hides the picture.
_LEGEND_MOST = 12
# How dense a band of quantiles and single paths are drawn.
_BAND_ALPHA, _PATH_ALPHA = 0.2, 0.5


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


def plot_ensemble(
    summary: "EnsembleSummary",
    *,
    sim: "EnsembleSolution | None" = None,
    paths: int = 0,
    vars: int | str | Sequence[int | str] | None = None,
    ax: "Axes | None" = None,
    labels: Sequence[str] | None = None,
    **options: Any,
) -> "Axes":
    """Draw the mean of an ensemble over time, in a ribbon from its lower to its upper quantile.

    **Arguments:**

    - `summary`: a `dj.EnsembleSummary`.
    - `sim`: the ensemble, needed for `paths`.
    - `paths`: how many single trajectories to draw as thin lines.
    - `vars`: which components, by index or name, by default all; `labels`: names for them.
    - `ax`: the axes to draw on, by default those of a new figure.
    - `options`: passed to `ax.plot` for the means, for example `color`.

    **Returns:** the matplotlib axes.

    **Raises:** `ImportError` without matplotlib; `ValueError` for an unknown component, or for
    `paths` without `sim`.

    !!! example
        `dj.solve(ensemble, trajectories=1000, saveat=0.1).plot(vars=0, paths=5)`
    """
    if paths and sim is None:
        raise ValueError("paths are those of an ensemble: call plot on the solution, or give sim=.")
    t = np.asarray(summary.t)
    mean, low, high = (_components(u) for u in (summary.mean, summary.qlow, summary.qhigh))
    chosen = _chosen(list(mean), vars)
    names = chosen if labels is None else list(labels)
    if len(names) != len(chosen):
        raise ValueError(f"labels must name {len(chosen)} curves, got {len(names)}.")
    axes: Any = _new_axes(None) if ax is None else ax
    # The ensemble's own times, which a summary at others does not have.
    rows = [sim[i] for i in range(min(paths, len(sim)))] if sim is not None else []
    singles = [(np.asarray(row.t), _components(row.u)) for row in rows]
    for name, label in zip(chosen, names, strict=True):
        (line,) = axes.plot(t, mean[name], **{"label": label, **options})
        color = line.get_color()
        axes.fill_between(t, low[name], high[name], color=color, alpha=_BAND_ALPHA, linewidth=0)
        for times, single in singles:
            axes.plot(times, single[name], color=color, alpha=_PATH_ALPHA, linewidth=0.6)
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
