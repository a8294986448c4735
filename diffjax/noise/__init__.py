"""Paths that drive stochastic equations."""

from .base import NoiseProcess as NoiseProcess
from .coloured import OrnsteinUhlenbeck as OrnsteinUhlenbeck
from .grid import NoiseGrid as NoiseGrid
from .mixed import Correlated as Correlated
from .tree import VirtualBrownianTree as VirtualBrownianTree
