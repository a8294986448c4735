"""Many trajectories: tiles of them, devices, what is kept of them, and their statistics."""

from .reductions import EnsembleMoments as EnsembleMoments
from .reductions import Histogram as Histogram
from .reductions import HistogramSketch as HistogramSketch
from .reductions import Moments as Moments
from .reductions import Reduction as Reduction
from .solution import EnsembleSolution as EnsembleSolution
from .summary import EnsembleSummary as EnsembleSummary
