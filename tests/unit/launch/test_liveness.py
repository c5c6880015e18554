"""When a gang is stalled, and what is said of it."""

from __future__ import annotations

import pytest

from hvdspark.launch.liveness import Liveness, SignOfLife
from hvdspark.launch.pulse import Pulse

LIMIT_S = 20.0


class Gang:
    """Ranks whose tasks give a sign every second, until a test says otherwise."""

    def __init__(self, size: int) -> None:
        self.now = 0.0
        self.liveness = Liveness(size, LIMIT_S)
        self.liveness.hosts = [f"host-{rank}" for rank in range(size)]
        self.liveness._clock._clock = lambda: self.now
        self.liveness._clock._last = 0.0
        self.signs: dict[int, SignOfLife | None] = dict.fromkeys(range(size))
        for rank in range(size):
            self.outside(rank)

    def outside(self, rank: int) -> None:
        self.signs[rank] = SignOfLife(Pulse(calls=3))

    def inside(
        self,
        rank: int,
        since_s: float,
        name: str = "x",
        sent: int = 0,
        age_s: float = 0.0,
        unanswered: tuple[str, ...] = (),
    ) -> None:
        self.signs[rank] = SignOfLife(Pulse(3, name, self.now - since_s, sent), age_s, unanswered)

    def second(self) -> str | None:
        """What is said after one more."""
        self.now += 1
        for rank, sign in self.signs.items():
            if sign is not None:
                self.liveness.heard(rank, sign)
        found = self.liveness.verdict()
        return None if found is None else f"rank {found.rank}: {found.cause}"


@pytest.fixture
def gang() -> Gang:
    return Gang(3)


def test_ranks_that_compute_for_minutes_are_not_stalled(gang: Gang) -> None:
    assert not any(gang.second() for _ in range(600))


def test_a_silent_task_is_named_with_both_hosts(gang: Gang) -> None:
    gang.second()
    gang.signs[2] = None
    said = [gang.second() for _ in range(25)]
    assert said[:20] == [None] * 20
    assert said[20] is not None
    assert said[20].startswith("rank 2: the task of rank 0 on host host-0 has not heard of that of rank 2 for 20 s")
    assert "the network between hosts host-2 and host-0 is cut" in said[20]


def test_a_task_that_is_frozen_before_its_first_sign_is_named(gang: Gang) -> None:
    gang.signs[1] = None
    gang.liveness.begin()
    said = [gang.second() for _ in range(25)]
    assert said[19] is None
    assert str(said[-1]).startswith("rank 1: ")


def test_one_that_was_never_heard_of_or_has_ended_is_not_silent(gang: Gang) -> None:
    gang.signs[1] = None
    assert not any(gang.second() for _ in range(60)), "the start has a limit of its own"
    gang.liveness.over(2)
    gang.signs[2] = None
    assert not any(gang.second() for _ in range(60))


def test_a_server_that_was_stopped_itself_blames_nobody(gang: Gang) -> None:
    gang.second()
    gang.now += 600
    assert gang.liveness.verdict() is None


def test_ranks_that_wait_for_one_that_computes_are_not_stalled(gang: Gang) -> None:
    for _ in range(600):
        gang.inside(0, since_s=0)
        gang.inside(1, since_s=0)
        assert gang.second() is None


def test_an_exchange_that_does_not_get_on_is_named(gang: Gang) -> None:
    said = []
    for _ in range(25):
        for rank in range(3):
            gang.inside(rank, since_s=0)
        said.append(gang.second())
    assert said[:20] == [None] * 20
    assert said[-1] is not None
    assert "waited for 20 s without getting on (ranks [0, 1, 2] in 'x'): a connection between them broke" in said[-1]
    assert said[-1].startswith("rank None")


def test_hosts_that_do_not_answer_each_other_are_named(gang: Gang) -> None:
    said = None
    for _ in range(25):
        gang.inside(0, since_s=0)
        gang.inside(1, since_s=0, unanswered=("host-2",))
        gang.inside(2, since_s=0)
        said = gang.second()
    assert said is not None
    assert said.startswith("rank 2: ")
    assert "no answer between host host-1 (rank 1) and host host-2" in said


def test_ranks_in_different_exchanges_are_told_apart(gang: Gang) -> None:
    said = None
    for _ in range(25):
        gang.inside(0, since_s=0, name="loss")
        gang.inside(1, since_s=0, name="gradients")
        gang.inside(2, since_s=0, name="gradients")
        said = gang.second()
    assert said is not None
    assert "(ranks [0] in 'loss'; ranks [1, 2] in 'gradients'): every rank must call the same collectives" in said


def test_a_large_exchange_on_a_slow_network_gets_on(gang: Gang) -> None:
    for second in range(600):
        for rank in range(3):
            gang.inside(rank, since_s=0, sent=second * 1_000_000)
        assert gang.second() is None
    said = [gang.second() for _ in range(25)]
    assert said[18] is None
    assert said[-1] is not None, "and then it does not"


def test_an_old_sign_says_nothing_of_where_a_rank_is(gang: Gang) -> None:
    for age_s in range(60):
        for rank in range(3):
            gang.inside(rank, since_s=-60, age_s=float(age_s))
        if age_s > LIMIT_S:
            assert gang.second() is None


def test_signs_travel_as_text() -> None:
    sign = SignOfLife(Pulse(3, "x/y z", 1.5, 7), 0.25, ("a", "b"))
    assert SignOfLife.from_plain(sign.to_plain()) == sign


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"pulse": {}}', b'{"pulse": 3, "age_s": 1}', b"\xff"])
def test_what_is_no_sign_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match="sign of life|line 1|decode"):
        SignOfLife.from_plain(text)
