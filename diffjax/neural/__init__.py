"""Differential equations as layers of a network. This room uses only the public interface."""

from .jump_diffusion import NeuralJumpDiffusion as NeuralJumpDiffusion
from .ode import NeuralODE as NeuralODE
from .ode import neural_ode as neural_ode
from .sde import NeuralDSDE as NeuralDSDE
from .sde import NeuralSDE as NeuralSDE
from .sde import neural_dmsde as neural_dmsde
