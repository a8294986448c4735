"""Stochastic Runge-Kutta methods of Roessler's forms SRI and SRA.

Sources: SRIW1, SRA1, SRA3: Roessler, Runge-Kutta methods for the strong approximation of solutions
of stochastic differential equations, SIAM J. Numer. Anal. 48 (2010), tables 6.2 and 6.3. SOSRI,
SOSRI2, SOSRA: Rackauckas and Nie, Stability-optimized high order methods and stiffness detection
for pathwise stiff stochastic differential equations, arXiv 1804.04344, appendix. SKenCarp: the
same, on the ESDIRK method of Kennedy and Carpenter 2003 (ARK3(2)4L[2]SA).
"""

from dataclasses import dataclass

Row = tuple[float, ...]
Rows = tuple[Row, ...]


@dataclass(frozen=True)
class SRITableau:
    """A method for Ito equations with diagonal or scalar noise (Roessler 2010, equation 6.2).

    Stages H0_i = u + dt sum_j a0_ij f(H0_j) + I_(1,0)/dt sum_j b0_ij g(H1_j) and
    H1_i = u + dt sum_j a1_ij f(H0_j) + sqrt(dt) sum_j b1_ij g(H1_j); rows are strictly lower.
    """

    name: str
    a0: Rows
    a1: Rows
    b0: Rows
    b1: Rows
    alpha: Row
    beta1: Row
    beta2: Row
    beta3: Row
    beta4: Row

    @property
    def stages(self) -> int:
        return len(self.alpha)

    @property
    def c0(self) -> Row:
        return tuple(sum(row) for row in self.a0)

    @property
    def c1(self) -> Row:
        return tuple(sum(row) for row in self.a1)

    @property
    def drifts(self) -> tuple[int, ...]:
        """The stages at which the drift is used."""
        rows = (self.alpha, *self.a0, *self.a1)
        return tuple(j for j in range(self.stages) if any(len(r) > j and r[j] for r in rows))


@dataclass(frozen=True)
class SRATableau:
    """A method for additive noise (Roessler 2010, equation 6.6): stages as in `SRITableau`, with
    g at the times t + c1_i dt. Rows that reach the diagonal are implicit in the drift."""

    name: str
    a0: Rows
    b0: Rows
    c0: Row
    c1: Row
    alpha: Row
    beta1: Row
    beta2: Row

    @property
    def stages(self) -> int:
        return len(self.alpha)


SRIW1 = SRITableau(
    name="SRIW1",
    a0=((), (3 / 4,), (0.0, 0.0), (0.0, 0.0, 0.0)),
    a1=((), (1 / 4,), (1.0, 0.0), (0.0, 0.0, 1 / 4)),
    b0=((), (3 / 2,), (0.0, 0.0), (0.0, 0.0, 0.0)),
    b1=((), (1 / 2,), (-1.0, 0.0), (-5.0, 3.0, 1 / 2)),
    alpha=(1 / 3, 2 / 3, 0.0, 0.0),
    beta1=(-1.0, 4 / 3, 2 / 3, 0.0),
    beta2=(-1.0, 4 / 3, -1 / 3, 0.0),
    beta3=(2.0, -4 / 3, -2 / 3, 0.0),
    beta4=(-2.0, 5 / 3, -2 / 3, 1.0),
)

SOSRI = SRITableau(
    name="SOSRI",
    a0=(
        (),
        (-0.04199224421316468,),
        (2.842612915017106, -2.0527723684000727),
        (4.338237071435815, -2.8895936137439793, 2.3017575594644466),
    ),
    a1=(
        (),
        (0.26204282091330466,),
        (0.20903646383505375, -0.1502377115150361),
        (0.05836595312746999, 0.6149440396332373, 0.08535117634046772),
    ),
    b0=(
        (),
        (-0.21641093549612528,),
        (1.5336352863679572, 0.26066223492647056),
        (-1.0536037558179159, 1.7015284721089472, -0.20725685784180017),
    ),
    b1=(
        (),
        (-0.5119011827621657,),
        (2.67767339866713, -4.9395031322250995),
        (0.15580956238299215, 3.2361551006624674, -1.4223118283355949),
    ),
    alpha=(1.140099274172029, -0.6401334255743456, 0.4736296532772559, 0.026404498125060714),
    beta1=(-1.8453464565104432, 2.688764531100726, -0.2523866501071323, 0.40896857551684956),
    beta2=(0.4969658141589478, -0.5771202869753592, -0.12919702470322217, 0.2093514975196336),
    beta3=(2.8453464565104425, -2.688764531100725, 0.2523866501071322, -0.40896857551684945),
    beta4=(0.11522663875443433, -0.57877086147738, 0.2857851028163886, 0.17775911990655704),
)

SOSRI2 = SRITableau(
    name="SOSRI2",
    a0=(
        (),
        (0.13804532298278663,),
        (0.5818361298250374, 0.4181638701749618),
        (0.4670018408674211, 0.8046204792187386, -0.27162232008616016),
    ),
    a1=(
        (),
        (0.45605532163856893,),
        (0.7555807846451692, 0.24441921535482677),
        (0.6981181143266059, 0.3453277086024727, -0.04344582292908241),
    ),
    b0=(
        (),
        (0.08852381537667678,),
        (1.0317752458971061, 0.4563552922077882),
        (1.73078280444124, -0.46089678470929774, -0.9637509618944188),
    ),
    b1=(
        (),
        (0.6753186815412179,),
        (-0.07452812525785148, -0.49783736486149366),
        (-0.5591906709928903, 0.022696571806569924, -0.8984927888368557),
    ),
    alpha=(-0.15036858140642623, 0.7545275856696072, 0.686995463807979, -0.2911544680711602),
    beta1=(-0.45315689727309133, 0.8330937231303951, 0.3792843195533544, 0.24077885458934192),
    beta2=(-0.4994383733810986, 0.9181786186154077, -0.25613778661003145, -0.16260245862427797),
    beta3=(1.4531568972730915, -0.8330937231303933, -0.3792843195533583, -0.24077885458934023),
    beta4=(-0.4976090683622265, 0.9148155835648892, -1.4102107084476505, 0.9930041932449877),
)

SRA1 = SRATableau(
    name="SRA1",
    a0=((), (3 / 4,)),
    b0=((), (3 / 2,)),
    c0=(0.0, 3 / 4),
    c1=(1.0, 0.0),
    alpha=(1 / 3, 2 / 3),
    beta1=(1.0, 0.0),
    beta2=(-1.0, 1.0),
)

SRA3 = SRATableau(
    name="SRA3",
    a0=((), (1.0,), (1 / 4, 1 / 4)),
    b0=((), (0.0,), (1.0, 1 / 2)),
    c0=(0.0, 1.0, 1 / 2),
    c1=(1.0, 0.0, 0.0),
    alpha=(1 / 6, 1 / 6, 2 / 3),
    beta1=(1.0, 0.0, 0.0),
    beta2=(-1.0, 1.0, 0.0),
)

SOSRA = SRATableau(
    name="SOSRA",
    a0=((), (0.6923962376159507,), (-3.1609142252828395, 4.1609142252828395)),
    b0=((), (1.3371632704399763,), (1.442371048468624, 1.8632741501139225)),
    c0=(0.0, 0.6923962376159507, 1.0),
    c1=(0.0, 0.041248171110700504, 1.0),
    alpha=(0.2889874966892885, 0.6859880440839937, 0.025024459226717772),
    beta1=(-16.792534242221663, 17.514995785380226, 0.27753845684143835),
    beta2=(0.4237535769069274, 0.6010381474428539, -1.0247917243497813),
)

_GAMMA = 0.435866521508459

SKENCARP = SRATableau(
    name="SKenCarp",
    a0=(
        (),
        (_GAMMA, _GAMMA),
        (0.2576482460664272, -0.09351476757488625, _GAMMA),
        (0.18764102434672383, -0.595297473576955, 0.9717899277217721, _GAMMA),
    ),
    b0=((), (-12.246764387585056,), (0.0, 0.0), (0.0, 0.0, -14.432096958608753)),
    c0=(0.0, 2 * _GAMMA, 3 / 5, 1.0),
    c1=(0.0, 0.0, 0.0, 1.0),
    alpha=(0.18764102434672383, -0.595297473576955, 0.9717899277217721, _GAMMA),
    beta1=(0.0, 0.0, 0.0, 1.0),
    beta2=(1.0, 0.0, 0.0, -1.0),
)
# Of the drift stages the difference to the embedded method of order two.
SKENCARP_ERROR = (
    0.027099261876665316,
    0.11013520969201586,
    -0.10306492520138458,
    -0.0341695463672966,
)


@dataclass(frozen=True)
class WeakTableau:
    """A method of weak order 2 with three stages (Debrabant and Roessler 2009, equation (2)): the
    diffusion's own stages are at the time t + c1 dt, moved by b1 along their column, and those
    along another column by the rows b2. The first stage is the state itself."""

    a0: Rows
    b0: Row
    c0: Row
    c1: float
    b1: tuple[float, float]
    b2: tuple[Row, Row]
    alpha: Row
    beta1: Row
    beta2: Row
    beta3: Row
    beta4: Row


_B22 = (-214 / 513 * (1105 / 991) ** 0.5, *(2 * (-491 / 513 * (221 / 4955) ** 0.5,)))

DRI1 = WeakTableau(
    a0=((), (1 / 2,), (-1.0, 2.0)),
    b0=(0.0, (6 - 6**0.5) / 10, (3 + 2 * 6**0.5) / 5),
    c0=(0.0, 1 / 2, 1.0),
    c1=342 / 491,
    b1=(3 * (38 / 491) ** 0.5, -3 * (38 / 491) ** 0.5),
    b2=(_B22, tuple(-b for b in _B22)),
    alpha=(1 / 6, 2 / 3, 1 / 6),
    beta1=(193 / 684, 491 / 1368, 491 / 1368),
    beta2=(0.0, (491 / 38) ** 0.5 / 6, -((491 / 38) ** 0.5) / 6),
    beta3=(-4955 / 7072, 4955 / 14144, 4955 / 14144),
    beta4=(0.0, -((4955 / 221) ** 0.5) / 8, (4955 / 221) ** 0.5 / 8),
)
