from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from hvdspark.collectives import LocalCollective, ThreadedCollective, run_threaded
from hvdspark.train.decisions import NOTHING, POINT_STEPS, Decision, DecisionPoints, Wish, spacing


def ticks(step_s: float) -> Callable[[], float]:
    """A clock that is looked at once when it is made, and then at each point; each step takes so long."""
    return iter(point * step_s for point in range(10_000)).__next__


def decisions(points: DecisionPoints, wishes: Callable[[int], Wish], steps: int) -> Iterator[Decision]:
    for step in range(1, steps + 1):
        yield points.after_step(lambda step=step: wishes(step))  # type: ignore[misc]
    points.close()


def on_ranks(size: int, wishes: Callable[[int, int], Wish], steps: int, clock: Callable[[], float]) -> list[Decision]:
    """What `size` ranks decide behind each step; all of them the same. Wishes by (rank, step)."""

    def body(collective: ThreadedCollective) -> list[Decision]:
        points = DecisionPoints(collective, clock if collective.rank == 0 else ticks(123.0))
        return list(decisions(points, lambda step: wishes(collective.rank, step), steps))

    first, *others = run_threaded(size, body, timeout_s=20)
    assert all(other == first for other in others)
    return first


@pytest.mark.parametrize("size", [1, 2, 3])
def test_one_rank_that_wants_to_stop_stops_all_behind_the_same_step(size: int) -> None:
    made = on_ranks(size, lambda rank, step: Wish(stop=rank == size - 1 and step >= 3), 6, ticks(1.0))
    assert [decision.stop for decision in made] == [False, False, False, True, True, True]


def test_a_checkpoint_is_rank_0s_word_and_waits_for_every_rank_that_still_writes() -> None:
    def wish(rank: int, step: int) -> Wish:
        return Wish(checkpoint=rank == 1 or step >= 3, writing=rank == 1 and step < 5)

    made = on_ranks(2, wish, 7, ticks(1.0))
    assert [decision.checkpoint for decision in made] == [False, False, False, False, False, True, True]


def test_busy_seconds_are_those_between_two_points_of_each_rank() -> None:
    made = on_ranks(2, lambda rank, step: Wish(busy=step * (1.0 + rank)), 4, ticks(1.0))
    assert [decision.busy for decision in made] == [(), (1.0, 2.0), (1.0, 2.0), (1.0, 2.0)]
    assert [decision.steps for decision in made] == [0, 1, 1, 1]


def test_short_steps_have_a_point_now_and_then_and_rank_0_alone_looks_at_the_clock() -> None:
    asked: list[int] = []
    made = on_ranks(2, lambda rank, step: asked.append(step) or Wish(), 40, ticks(0.001))  # type: ignore[func-returns-value]
    assert sorted(set(asked)) == [1, 1 + POINT_STEPS, 1 + 2 * POINT_STEPS]
    assert [step for step, decision in enumerate(made, 1) if decision != NOTHING] == [2, 18, 34]


@pytest.mark.parametrize(("step_s", "steps"), [(0.0, 16), (0.001, 16), (0.05, 5), (0.25, 1), (7.0, 1)])
def test_points_are_a_quarter_of_a_second_apart_but_never_many_steps(step_s: float, steps: int) -> None:
    assert spacing(step_s) == steps


def test_what_still_travels_is_taken_in_at_the_end() -> None:
    left: list[bool] = []

    def body(ranks: ThreadedCollective) -> None:
        taken = []
        begin = ranks.alltoall_async
        ranks.alltoall_async = lambda *given: (lambda wait: lambda: taken.append(1) or wait())(begin(*given))  # type: ignore
        points = DecisionPoints(ranks)
        points.after_step(Wish)
        points.close()
        points.close()
        left.append(len(taken) == 1)

    run_threaded(2, body, timeout_s=20)
    assert left == [True, True]


def test_one_rank_alone_decides_in_the_same_way() -> None:
    points = DecisionPoints(LocalCollective(), ticks(1.0))
    made = list(decisions(points, lambda step: Wish(stop=step == 2, checkpoint=step == 1), 4))
    assert [(decision.checkpoint, decision.stop) for decision in made] == [
        (False, False),
        (True, False),
        (False, True),
        (False, False),
    ]
