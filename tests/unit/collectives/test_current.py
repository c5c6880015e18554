from __future__ import annotations

from hvdspark.collectives import LocalCollective, current_collective


def test_without_horovod_this_process_is_the_world() -> None:
    assert isinstance(current_collective(), LocalCollective)
