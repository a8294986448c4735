"""Coefficients, and nothing else: one file a family, each number with its source."""

from .bogacki_shampine import BS3 as BS3
from .bogacki_shampine import BS5 as BS5
from .dop853 import DP8 as DP8
from .dormand_prince import DP5 as DP5
from .low_order import EULER as EULER
from .low_order import HEUN as HEUN
from .low_order import MIDPOINT as MIDPOINT
from .low_order import RALSTON as RALSTON
from .low_order import RK4 as RK4
from .rodas import RODAS3P as RODAS3P
from .rodas import RODAS4 as RODAS4
from .rodas import RODAS4P as RODAS4P
from .rodas import ROSENBROCK23 as ROSENBROCK23
from .rodas5 import RODAS5 as RODAS5
from .rodas5 import RODAS5P as RODAS5P
from .ssp import SSPRK33 as SSPRK33
from .ssp import SSPRK43 as SSPRK43
from .tsitouras import TSIT5 as TSIT5
from .verner6 import VERN6 as VERN6
from .verner7 import VERN7 as VERN7
from .verner8 import VERN8 as VERN8
from .verner9 import VERN9 as VERN9
