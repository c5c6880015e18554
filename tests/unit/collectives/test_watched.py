"""How long a rank waits for the others."""

from __future__ import annotations

import threading

import torch

from hvdspark.collectives import LocalCollective, ThreadedCollective, run_threaded
from hvdspark.collectives.watched import Waiting, WatchedCollective, watched

ONE = torch.tensor([1], dtype=torch.int32)


def test_what_is_watched_is_not_watched_twice() -> None:
    collective = WatchedCollective(LocalCollective())
    assert watched(collective) is collective
    assert isinstance(watched(LocalCollective()), WatchedCollective)


def test_every_exchange_counts() -> None:
    collective = watched(LocalCollective())
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    collective.allreduce_sum(ONE, "sum")
    collective.broadcast(ONE, 0, "broadcast")
    collective.alltoall(ONE, ONE, "alltoall")
    collective.broadcast_parameters({"a": ONE})
    assert collective.waiting.calls == 4
    finish = collective.alltoall_async(ONE, ONE, "alltoall")
    finish()
    assert collective.waiting.calls == 6, "its beginning and its end"
    distributed = collective.distributed_optimizer(optimizer, [])
    distributed.synchronize()
    distributed.step()
    assert collective.waiting.calls == 8, "a step on sums that are there waits for nobody"
    assert distributed.optimizer is optimizer


def test_a_rank_that_is_late_waits_least() -> None:
    here, waits = threading.Event(), threading.Event()

    def rank(threaded: ThreadedCollective) -> tuple[float, tuple[str, float] | None]:
        collective = watched(threaded)
        seen = None
        if threaded.rank == 0:
            first.append(collective.waiting)
            here.set()
        else:
            assert here.wait(30)
            while (seen := first[0].inside()) is None or seen[1] < 0.3:
                waits.wait(0.01)
        collective.allreduce_sum(ONE, "late")
        return collective.waiting.seconds, seen

    first: list[Waiting] = []
    (early_s, _), (late_s, seen) = run_threaded(2, rank)
    assert seen is not None
    assert seen[0] == "late"
    assert early_s >= 0.3
    assert late_s < early_s - 0.2
    assert first[0].inside() is None


def test_the_oldest_exchange_is_told() -> None:
    now = [0.0]
    waiting = Waiting(lambda: now[0])
    entered, leave = threading.Event(), threading.Event()

    def first() -> None:
        with waiting("first"):
            entered.set()
            leave.wait(30)

    thread = threading.Thread(target=first)
    thread.start()
    assert entered.wait(30)
    now[0] = 2.0
    with waiting("second"):
        now[0] = 3.0
        assert waiting.inside() == ("first", 3.0)
        leave.set()
        thread.join(30)
        assert waiting.inside() == ("second", 1.0)
