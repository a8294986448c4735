"""What to solve: one file a kind of problem. This room knows nobody else."""

from .base import Problem as Problem
from .base import remake as remake
from .dae import DAEProblem as DAEProblem
from .ensemble import EnsembleProblem as EnsembleProblem
from .ode import ODEProblem as ODEProblem
from .sde import SDEProblem as SDEProblem
from .steady_state import SteadyStateProblem as SteadyStateProblem
