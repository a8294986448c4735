"""The cases, by the name that `--only` takes.

An adaptive case is solved by us and by peers at equal error and measured by `case.measure`; the
other cases measure something else and make their own rows.
"""

from collections.abc import Callable

from benchmarks.case import Case, Row, measure
from benchmarks.cases import (
    adjoints,
    bruss1d,
    dense_memory,
    ensemble,
    events,
    first_call,
    fisher,
    forward,
    gradient,
    jump_diffusion,
    jumps,
    neural,
    oval2,
    stiff,
    stochastic,
    stochastic_gradient,
)


def adaptive_cases() -> dict[str, Callable[[], Case]]:
    """Builders of the cases with an error, by name."""
    builders = (
        forward.lv_one,
        forward.lv_final,
        forward.lv_vmap,
        ensemble.lv_ensemble,
        gradient.lv_grad,
        gradient.lv_grad_vmap,
        fisher.fisher_one,
        fisher.fisher_grad,
        neural.node_grad,
        neural.node_grad_joint,
        stiff.rober_one,
        stiff.rober_vmap,
        stiff.rober_grad,
        stiff.vdpol,
        bruss1d.bruss1d,
        stochastic.sde_adaptive,
        stochastic.sde_adaptive_em,
    )
    return {builder.__name__: builder for builder in builders} | adjoints.builders()


def all_cases() -> dict[str, Callable[[], list[Row]]]:
    """What measures each case, by name."""
    adaptive = {
        name: lambda builder=builder: measure(builder())
        for name, builder in adaptive_cases().items()
    }
    others = {
        "first_call": first_call.rows,
        "dense_memory": dense_memory.rows,
        "bruss1d": bruss1d.rows,
        "ensemble_scaling": ensemble.rows,
        "sde_euler": stochastic.euler_rows,
        "sde_oval2": oval2.rows,
        "sde_gradient": stochastic_gradient.rows,
        "jump_sir": jumps.rows,
        "jump_diffusion": jump_diffusion.rows,
        "events": events.rows,
    }
    return adaptive | others
