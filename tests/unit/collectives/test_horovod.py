from __future__ import annotations

import subprocess
import sys

HOROVOD_WORLD_OF_ONE = """
import horovod.torch as hvd
from hvdspark.collectives import HorovodCollective, current_collective
from tests.unit.collectives.conformance import broken_promises

hvd.init()
collective = HorovodCollective()
assert (collective.rank, collective.size) == (0, 1)
assert isinstance(current_collective(), HorovodCollective)
broken = broken_promises(collective)
for traceback in broken.values():
    print(traceback)
assert not broken
print("all promises kept")
"""


def test_horovod_in_a_world_of_one() -> None:
    # In a process of its own: Horovod starts threads and cannot be taken back.
    result = subprocess.run([sys.executable, "-c", HOROVOD_WORLD_OF_ONE], capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "all promises kept" in result.stdout
