"""The oscillator of van der Pol with mu = 1000 on [0, 2000], in float64."""

from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np

P = np.array(1000.0)
U0 = np.array([2.0, 0.0])
TSPAN = (0.0, 2000.0)
TOL = 1e-6

# The IVP test set of Bari and CWI (Mazzia, Magherini), problem VDPOL.
END = np.array([[1.706167732170469, -0.0008928097010248125]])


def field(u: Any, p: Any, t: Any, xp: ModuleType = jnp) -> Any:
    """The vector field in diffjax's argument order, for any array package."""
    return xp.stack(rates(u, p, t))


def rates(u: Any, p: Any, t: Any) -> list[Any]:
    """The same as a list of numbers."""
    x, y = u
    return [y, p * (1 - x * x) * y - x]


def reference() -> np.ndarray:
    """The final state, (1, 2)."""
    return END
