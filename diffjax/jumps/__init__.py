"""Jump processes: how they are simulated, and gradients of what is expected of them."""

from .aggregators import Aggregator as Aggregator
from .aggregators import Direct as Direct
from .aggregators import FirstReaction as FirstReaction
from .aggregators import NextReaction as NextReaction
from .exact import SSAStepper as SSAStepper
