"""The contract of a method that simulates jumps."""

from collections.abc import Callable
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from jaxtyping import Array, Bool, Float, Int, UInt32

from ..algorithms.base import Algorithm
from .aggregators import Aggregator
from .channels import ChannelArgs, Channels, Leaves

Carry = TypeVar("Carry", bound=Any)
Advance = Callable[[Carry, Array], Carry]


class Setting(NamedTuple):
    """What a simulation is given; `dt` is the size of fixed leaps."""

    channels: Channels
    args: ChannelArgs
    aggregator: Aggregator
    key: UInt32[Array, " 2"]
    u0: Leaves
    t0: Float[Array, ""]
    t1: Float[Array, ""]
    dt: Float[Array, ""] | None
    max_steps: int


class End(NamedTuple):
    """How a simulation ended: a `ReturnCode`, and the work by name of the statistic."""

    status: Int[Array, ""]
    naccept: Int[Array, ""]
    nreject: Int[Array, ""]
    nevents: Int[Array, ""]
    nf: Int[Array, ""]


class Process(Generic[Carry]):
    """How a state jumps, as the drivers see it: a simulation in its setting."""

    setting: Setting

    def init(self) -> Carry:
        """The carry at the start."""
        raise NotImplementedError

    def active(self, c: Carry) -> Bool[Array, ""]:
        """Whether there is something left to do, and nothing has failed."""
        raise NotImplementedError

    def advance(self, c: Carry, until: Float[Array, ""]) -> Carry:
        """The next jump; or a leap, which must not pass the time `until`."""
        raise NotImplementedError

    def holds(self, c: Carry, t: Float[Array, ""]) -> Bool[Array, ""]:
        """Whether the carry's state is that at a time, which is not before the carry's."""
        raise NotImplementedError

    def state(self, c: Carry) -> Leaves:
        """The state since the last jump or leap."""
        raise NotImplementedError

    def last(self, c: Carry) -> tuple[Float[Array, ""], Int[Array, ""]]:
        """The time of the last jump or leap, and the number of the jump (-1 if it was none)."""
        raise NotImplementedError

    def rows(self, c: Carry) -> Int[Array, ""]:
        """How many rows there are behind the start, if every jump or leap is saved."""
        raise NotImplementedError

    def outcome(self, c: Carry) -> End:
        """How it ended."""
        raise NotImplementedError


class JumpAlgorithm(Algorithm):
    """Base class: how a pure jump process is simulated, a `dj.JumpProblem` of a
    `dj.DiscreteProblem`.

    To add one, write a `Process`, and a subclass whose `process` makes it.
    """

    takes: ClassVar[frozenset[str]] = frozenset({"JumpProblem of a DiscreteProblem"})
    # Kinds of jumps it takes, by class name; None for all.
    jumps: ClassVar[frozenset[str] | None] = None
    # Whether dt= or steps= says how long its leaps are.
    has_fixed_steps: ClassVar[bool] = False

    def process(self, setting: Setting) -> Process[Any]:
        """The simulation that the drivers run."""
        raise NotImplementedError
