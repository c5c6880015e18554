"""What ranks can do together, behind one narrow interface.

`HorovodCollective` is the real thing, `MpiCollective` is for programs that an MPI launcher starts, `LocalCollective` is
a single process without either, `ThreadedCollective` runs N ranks as threads of one process so that distributed logic
is tested in milliseconds. Call sites never ask for the number of ranks to decide what to do: one rank is just another
implementation.

Every method that says *Collective* must be called by all ranks in the same order with the same name; a name must
be stable from step to step, because Horovod's response cache is keyed by it.
"""

from hvdspark.collectives.current import current_collective
from hvdspark.collectives.horovod import HorovodCollective
from hvdspark.collectives.local import LocalCollective
from hvdspark.collectives.mpi import MpiCollective
from hvdspark.collectives.protocol import Collective, DistributedOptimizer
from hvdspark.collectives.threaded import ThreadedCollective, run_threaded

__all__ = [
    "Collective",
    "DistributedOptimizer",
    "HorovodCollective",
    "LocalCollective",
    "MpiCollective",
    "ThreadedCollective",
    "current_collective",
    "run_threaded",
]
