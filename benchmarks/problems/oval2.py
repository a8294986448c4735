"""Oval2: 19 species of the epithelial-mesenchymal transition, with noise on four of them.

The network of Hong et al., PLoS Comput. Biol. 11 (2015) e1004569, with the noise, the parameters
and the start of Rackauckas and Nie, Discrete Contin. Dyn. Syst. B 22 (2017), section 5.4. Its
complexes bind and fall apart a thousand times faster than the rest, which bounds explicit steps by
stability; the paths themselves are smooth but for their noise.

The state is (snail mRNA, snail, miR-34, their complex, zeb mRNA, zeb, miR-200, the five complexes
of zeb mRNA with 1 to 5 of miR-200, TGF mRNA, TGF, its complex with miR-200, E-cadherin, N-cadherin,
ovol2, ovol2 delayed); amounts of RNA count what is bound in complexes too. The signal that starts
the transition at t = 100 is left out.
"""

from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np

TSPAN = (0.0, 1.0)
PATHS = 1_000
# fmt: off
U0 = np.array([
    0.128483, 1.256853, 0.0030203, 0.0027977, 0.0101511, 0.0422942, 0.2391346,
    0.0008014, 0.0001464, 2.67e-05, 4.8e-06, 9e-07,
    0.0619917, 1.2444292, 0.0486676, 199.9383546, 137.4267984, 1.5180203, 1.5180203,
])
# fmt: on
STRENGTH = np.zeros(19)
STRENGTH[[0, 15, 16, 17]] = 0.02, 0.02, 0.02, 0.2

BINDING = 1_000.0
"""The rate of falling apart of every complex."""
COPIES = np.arange(1.0, 6.0)
WAYS = np.array([5.0, 10.0, 10.0, 5.0, 1.0])
"""In which 1 to 5 of five sites are taken."""


def drift(u: Any, p: Any, t: Any, xp: ModuleType = jnp) -> Any:
    """The rates, of the same shape as `u`, (19,), for any array package."""
    snail_rna, snail, mir34, pair, zeb_rna, zeb, mir200 = (u[i] for i in range(7))
    complexes, (tgf_rna, tgf, tgf_pair, ecad, ncad, ovol, delayed) = u[7:12], u[12:]
    bound = WAYS * complexes
    snail_free, mir34_free = snail_rna - pair, mir34 - pair
    zeb_free = zeb_rna - xp.sum(bound)
    mir200_free = mir200 - xp.sum(COPIES * bound) - tgf_pair

    signal = (tgf / 0.6) ** 2
    induced = (snail / 3.0) ** 2
    repressed_ecad, repressed_ncad = (snail / 0.1) ** 2, (snail / 0.4) ** 2
    by_zeb = (zeb / 0.4) ** 2
    regulated = [
        0.0005
        + 0.05 * signal / (1 + signal + (delayed / 0.5) ** 2) / (1 + snail / 1.8)
        - 0.09 * snail_free
        - 0.9 * pair,
        16.0 * snail_free - 1.6 * snail,
        0.001
        + 0.019 / (1 + (snail / 0.15) ** 2 + (zeb / 0.35) ** 2)
        - 0.035 * mir34_free
        - 0.5 * 0.9 * pair,
        BINDING * (100.0 * snail_free * mir34_free - pair),
        0.003
        + 0.06 * induced / (1 + induced + (delayed / 0.9) ** 6)
        - 0.1 * zeb_free
        - 0.5 * xp.sum(bound),
        16.0 * zeb_free - 1.66 * zeb,
        0.0002
        + 0.02 / (1 + (snail / 3.0) ** 3 + (zeb / 0.2) ** 2)
        - 0.035 * mir200_free
        - 0.5 * 0.5 * xp.sum(COPIES * bound)
        - 0.2 * tgf_pair,
    ]
    smaller = xp.concatenate([zeb_free[None], complexes[:-1]])
    binding = BINDING * (mir200_free * smaller - complexes)
    rest = [
        0.05 - 0.1 * (tgf_rna - tgf_pair) - tgf_pair,
        1.1 + 1.5 * (tgf_rna - tgf_pair) - 0.9 * tgf,
        BINDING * (20.0 * mir200_free * (tgf_rna - tgf_pair) - tgf_pair),
        5.0 + 15.0 / (repressed_ecad + 1) + 5.0 / ((zeb / 0.3) ** 2 + 1) - 0.05 * ecad,
        5.0
        + 2.0 * repressed_ncad / (repressed_ncad + 1)
        + 5.0 * by_zeb / ((by_zeb + 1) * (1 + delayed / 2.0))
        - 0.05 * ncad,
        0.35 + 1.2 / (1 + (zeb / 0.918) ** 2) - ovol,
        10.0 * ovol - 10.0 * delayed,
    ]
    return xp.concatenate([xp.stack(regulated), binding, xp.stack(rest)])


def diffusion(u: Any, p: Any, t: Any) -> Any:
    """Diagonal, Ito."""
    return STRENGTH * u


def stratonovich_drift(u: Any, p: Any, t: Any) -> Any:
    """The drift of the same equation in Stratonovich's sense."""
    return drift(u, p, t) - 0.5 * STRENGTH**2 * u
