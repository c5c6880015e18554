from __future__ import annotations

import pytest

from hvdspark.collectives import LocalCollective, ThreadedCollective, run_threaded
from hvdspark.train.of_rank import OfRank, gather, restored


def own(rank: int) -> OfRank:
    return OfRank([0.1 + rank, 1.0], [rank / 3], bytes([rank, 255]))


@pytest.mark.parametrize("size", [1, 3])
def test_as_many_ranks_take_up_what_was_theirs(size: int) -> None:
    def body(collective: ThreadedCollective) -> OfRank:
        return restored(gather(own(collective.rank), collective), collective)

    assert run_threaded(size, body) == [own(rank) for rank in range(size)]


def test_of_another_number_rank_0_takes_all_sums() -> None:
    saved = run_threaded(3, lambda collective: gather(own(collective.rank), collective))[0]
    total = OfRank(pytest.approx([3.3, 3.0]), pytest.approx([1.0]))  # type: ignore[arg-type]
    assert restored(saved, LocalCollective()) == total
    nothing = OfRank([0.0, 0.0], [0.0])
    assert run_threaded(2, lambda collective: restored(saved, collective)) == [total, nothing]
