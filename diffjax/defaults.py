"""Which algorithm solves a problem when nobody names one."""

import math
from typing import Any

import jax
import jax.tree_util as jtu
from jaxtyping import PyTree

from .algorithms.base import Algorithm
from .algorithms.dae_methods import DFBDF
from .algorithms.esdirk_methods import KenCarp4
from .algorithms.euler_maruyama import LambaEM, LambaEulerHeun
from .algorithms.explicit_methods import Tsit5, Vern7
from .algorithms.milstein import RKMil, RKMilCommute, RKMilGeneral
from .algorithms.rosenbrock_methods import Rodas5P
from .algorithms.sra import SOSRA
from .algorithms.sri import SOSRI
from .algorithms.switch import AutoSwitch
from .arguments import value_of
from .linear.reuse import KEPT
from .noise.base import NoiseProcess
from .problems.base import Problem
from .problems.ensemble import EnsembleProblem
from .problems.jump import is_pure_jump
from .stepping.controllers import PIController, PIDController
from .stepping.steady_state import RootfindOrDynamicSS

# Below this relative tolerance the explicit method is of order 7.
_TIGHT = 1e-6
# Up to this many real unknowns Rosenbrock steps, with a dense Jacobian each, are the fastest.
_SMALL = 50
# Beyond so many with a dense Jacobian, matrices that are kept for every lane fill the memory: 1,000
# unknowns of 100 lanes take 1 GB, and a step that is not stiff ten times as long.
_DENSE = KEPT
# The most steps, and the most jumps of a pure jump process of which not all are kept.
_MAX_STEPS, _MAX_JUMPS = 4096, 10_000_000


def default_algorithm(
    prob: Problem, rtol: PyTree, *, restarts: bool, path: NoiseProcess | None = None
) -> Algorithm:
    """The algorithm for a problem; `path` is what the user gives to drive a stochastic one.

    Where steps restart often (`restarts`), too often for votes on stiffness, an explicit method.
    """
    if not prob.evolves:
        return RootfindOrDynamicSS()
    if prob.stochastic:
        return _default_stochastic(prob, path)
    if "F" in prob.arguments():
        return DFBDF()
    if prob.arguments().get("mass_matrix") is not None:
        return Rodas5P()
    tight = isinstance(rtol, float) and rtol < _TIGHT
    explicit = Vern7() if tight else Tsit5()
    if restarts:
        return explicit
    count = _unknowns(prob)
    if count <= _SMALL:
        return AutoSwitch(explicit, Rodas5P())
    # At 100 unknowns FBDF takes 2 to 4 times as long as KenCarp4, 1.3 to 2 times if banded.
    sparse = prob.arguments().get("jac_sparsity") is not None
    return AutoSwitch(explicit, KenCarp4()) if sparse or count <= _DENSE else explicit


def default_max_steps(prob: Problem, saveat: Any) -> int:
    """The most steps of a solve; each jump of a pure jump process is one, and all cheap."""
    prob = prob.prob if isinstance(prob, EnsembleProblem) else prob
    jumps = is_pure_jump(prob) and not isinstance(saveat, str)
    return _MAX_JUMPS if jumps else _MAX_STEPS


def default_controller(prob: Problem) -> PIDController:
    """The step controller for a problem.

    Of a stochastic one the errors scatter, so the step grows slowly (the exponents 7/10 and 2/5 and
    the bound 9/8 of StochasticDiffEq.jl).
    """
    if not prob.stochastic:
        return PIController()
    return PIController(0.7, -0.4, max_factor=9 / 8, first_max_factor=9 / 8)


def _default_stochastic(prob: Problem, path: NoiseProcess | None) -> Algorithm:
    """A method of strong order 1 or 3/2: its steps leave out less than the state moves by, so that
    a relative tolerance can be met where an element passes zero. Methods of order 1/2 would take
    steps of the square of the tolerance there."""
    given = prob.arguments()
    ito = given["interpretation"] == "ito"
    if given["noise"] == "additive":
        return SOSRA()
    if given["noise"] in ("diagonal", "scalar"):
        return SOSRI() if ito else RKMil()
    if given["noise"] == "commutative":
        return RKMilCommute()
    known = path is None or (path.has_area and path.has_extra and path.covariance is None)
    if known and given["correlation"] is None:
        return RKMilGeneral()
    return LambaEM() if ito else LambaEulerHeun()


def _unknowns(prob: Problem) -> int:
    """How many real numbers the state has."""
    given = prob.arguments()

    def state() -> PyTree:
        tspan = value_of(given["tspan"], given["p"])
        return value_of(given["u0"], given["p"], tspan[0])

    leaves = jtu.tree_leaves(jax.eval_shape(state))
    return sum(math.prod(x.shape) * (2 if x.dtype.kind == "c" else 1) for x in leaves)
