"""Which ranks this process belongs to."""

from __future__ import annotations

import os
import sys

from hvdspark.collectives.horovod import HorovodCollective
from hvdspark.collectives.local import LocalCollective
from hvdspark.collectives.mpi import MpiCollective, launched_size
from hvdspark.collectives.protocol import Collective


def current_collective() -> Collective:
    """Horovod's ranks if Horovod is initialised in this process, MPI's if an MPI launcher started it as one of several,
    else this process alone.

    Raises:
        DependencyError: an MPI launcher started this process, and mpi4py does not work with it.
    """
    horovod = sys.modules.get("horovod.torch")
    if horovod is not None and horovod.is_initialized():
        return HorovodCollective()
    return MpiCollective() if launched_size(os.environ) > 1 else LocalCollective()
