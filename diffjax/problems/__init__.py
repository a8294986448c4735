"""What to solve: one file a kind of problem. This room knows nobody else."""

from .base import Problem as Problem
from .base import remake as remake
from .dae import DAEProblem as DAEProblem
from .discrete import DiscreteProblem as DiscreteProblem
from .ensemble import EnsembleProblem as EnsembleProblem
from .jump import JumpProblem as JumpProblem
from .jump_kinds import ConstantRateJump as ConstantRateJump
from .jump_kinds import Jump as Jump
from .jump_kinds import MassActionJump as MassActionJump
from .jump_kinds import RegularJump as RegularJump
from .jump_kinds import VariableRateJump as VariableRateJump
from .ode import ODEProblem as ODEProblem
from .sde import SDEProblem as SDEProblem
from .steady_state import SteadyStateProblem as SteadyStateProblem
