"""Many trajectories: tiles of them, devices, what is kept of them, and their statistics."""

from .reductions import Reduction as Reduction
from .solution import EnsembleSolution as EnsembleSolution
