"""Which ranks this process belongs to."""

from __future__ import annotations

import sys

from hvdspark.collectives.horovod import HorovodCollective
from hvdspark.collectives.local import LocalCollective
from hvdspark.collectives.protocol import Collective


def current_collective() -> Collective:
    """Horovod's ranks if Horovod is initialised in this process, else a world of one."""
    horovod = sys.modules.get("horovod.torch")
    return HorovodCollective() if horovod is not None and horovod.is_initialized() else LocalCollective()
