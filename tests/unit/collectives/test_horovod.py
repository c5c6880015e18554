from __future__ import annotations

import subprocess
import sys

HOROVOD_WORLD_OF_ONE = """
import torch, horovod.torch as hvd
from hvdspark.collectives import HorovodCollective, LocalCollective, current_collective
from tests.unit.collectives.dtypes import DTYPES, check_dtype
from tests.unit.collectives.toys import train

hvd.init()
collective = HorovodCollective()
assert (collective.rank, collective.size) == (0, 1)
mine = torch.tensor([1.0, 2.0])
assert collective.allreduce_sum(mine, "t").tolist() == [1.0, 2.0]
assert collective.allreduce_sum(torch.tensor([2**60 + 1]), "i").item() == 2**60 + 1
assert collective.broadcast(mine, 0, "b").tolist() == [1.0, 2.0]
assert isinstance(current_collective(), HorovodCollective)
for dtype in (torch.int64, torch.bfloat16):
    received, splits = collective.alltoall(mine.to(dtype), torch.tensor([1], dtype=torch.int32), "a")
    assert (received.tolist(), received.dtype, splits.tolist()) == ([1], dtype, [1])
for dtype in DTYPES:
    check_dtype(collective, dtype)
module = torch.nn.Linear(2, 1)
collective.broadcast_parameters(dict(module.named_parameters()))
for arguments in ({"steps": 3}, {"steps": 2, "accumulation_steps": 3}, {"steps": 2, "clip": 1.0}):
    assert train(collective, **arguments) == train(LocalCollective(), **arguments), arguments
print("same as LocalCollective")
"""


def test_horovod_in_a_world_of_one() -> None:
    # In a process of its own: Horovod starts threads and cannot be taken back.
    result = subprocess.run([sys.executable, "-c", HOROVOD_WORLD_OF_ONE], capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stderr
    assert "same as LocalCollective" in result.stdout
