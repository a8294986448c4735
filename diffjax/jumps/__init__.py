"""Jump processes: how they are simulated, and gradients of what is expected of them."""

from .aggregators import Aggregator as Aggregator
from .aggregators import Direct as Direct
from .aggregators import FirstReaction as FirstReaction
from .aggregators import NextReaction as NextReaction
from .exact import SSAStepper as SSAStepper
from .leaping import CaoTauLeaping as CaoTauLeaping
from .leaping import TauLeaping as TauLeaping
from .likelihood import ScoreGradient as ScoreGradient
from .likelihood import log_likelihood as log_likelihood
from .likelihood import score_gradient as score_gradient
