"""Which rank is blamed, and what the error says."""

from __future__ import annotations

import pickle
from typing import Any

import cloudpickle

from hvdspark.errors import DataError, PreemptedError, RankFailedError, StartTimeoutError
from hvdspark.launch.blame import first_failure
from hvdspark.launch.outcomes import Outcome


def failed(kind: str, at_s: float, **more: Any) -> Outcome:
    return Outcome("failed", kind, f"{kind} at {at_s}", host="h", ended_at_s=at_s, **more)


ABORTED = Outcome("aborted", "stopped", "stopped", host="h", ended_at_s=9.0)
OK = Outcome("ok", host="h", ended_at_s=1.0)


def test_the_culprit_is_blamed_even_if_a_victim_was_faster() -> None:
    error = first_failure({0: failed("peer_lost", 1.0), 1: failed("signal", 2.0), 2: ABORTED})
    assert isinstance(error, RankFailedError)
    assert (error.rank, error.kind) == (1, "signal")


def test_the_first_of_several_culprits_is_blamed() -> None:
    error = first_failure({0: failed("exception", 3.0), 1: failed("exit", 2.0), 2: OK})
    assert isinstance(error, RankFailedError)
    assert error.rank == 1


def test_the_order_is_that_of_the_reports_whatever_the_hosts_clocks_say() -> None:
    error = first_failure({0: failed("exception", 1.0, order=1), 1: failed("exit", 9e9, order=0), 2: OK})
    assert isinstance(error, RankFailedError)
    assert error.rank == 1


def test_ranks_that_did_not_start_in_time() -> None:
    late = Outcome("aborted", "start_timeout", "ranks [1] were not ready", host="h", ended_at_s=9.0)
    error = first_failure({0: late, 1: late})
    assert isinstance(error, StartTimeoutError)
    assert "ranks [1] were not ready" in str(error)


def test_a_victim_is_named_when_nobody_else_is_left() -> None:
    error = first_failure({0: OK, 1: failed("peer_lost", 2.0)})
    assert isinstance(error, RankFailedError)
    assert (error.rank, error.kind) == (1, "peer_lost")


def test_the_others_are_described_when_only_victims_reported() -> None:
    error = first_failure({0: failed("peer_lost", 2.0), 1: ABORTED, 2: OK})
    assert "ranks [2] had already returned" in str(error)
    assert "ranks [1] did not answer any more" in str(error)
    assert "Horovod said: peer_lost at 2.0" in str(error)


def test_all_aborted() -> None:
    error = first_failure({0: OK, 1: ABORTED})
    assert isinstance(error, RankFailedError)
    assert error.rank == 1


def test_the_message_has_rank_host_cause_traceback_and_output() -> None:
    error = first_failure({0: failed("exception", 1.0, traceback="File x.py, line 3", tail="loss 0.3\nloss nan")})
    for part in ("rank 0", "host h", "exception at 1.0", "File x.py, line 3", "loss nan"):
        assert part in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_an_error_of_our_own_is_raised_as_itself() -> None:
    own = DataError("bad", value=3, where="x", hint="fix it")
    error = first_failure({0: failed("exception", 1.0, error=cloudpickle.dumps(own).hex())})
    assert isinstance(error, DataError)
    assert str(error) == str(own)
    assert isinstance(error.__cause__, RankFailedError)


def test_an_error_that_only_the_rank_can_make_is_told_in_words() -> None:
    """Its class may be where the driver's Python does not look."""
    error = first_failure({0: failed("exception", 1.0, error=b"cnowhere\nOwnError\n.".hex())})
    assert isinstance(error, RankFailedError)
    assert (error.rank, error.cause) == (0, "exception at 1.0")


def test_where_one_has_made_room_that_is_what_happened() -> None:
    own = cloudpickle.dumps(PreemptedError("stopped after step 3", run_id="r")).hex()
    killed, made_room = failed("signal", 1.0, order=0), failed("preempted", 2.0, order=1, error=own)
    for others in ({0: killed}, {0: failed("peer_lost", 1.0)}, {0: ABORTED}, {0: OK}, {0: made_room}):
        error = first_failure({**others, 1: made_room})
        assert isinstance(error, PreemptedError)
        assert (str(error), error.run_id) == ("stopped after step 3", "r")


def test_a_stalled_gang_is_blamed_on_whom_it_is_about() -> None:
    stopped = Outcome("aborted", "stalled", "rank 1 is silent", host="h0", about=1)
    silent = Outcome("aborted", "stopped", "stopped", host="h1")
    victim = failed("peer_lost", 1.0)
    for outcomes in ({0: stopped, 1: silent}, {0: stopped, 1: silent, 2: victim}, {2: victim, 1: silent, 0: stopped}):
        error = first_failure(outcomes)
        assert isinstance(error, RankFailedError)
        assert (error.rank, error.host, error.kind, error.cause) == (1, "h1", "stalled", "rank 1 is silent")


def test_a_stalled_exchange_is_nobodys() -> None:
    error = first_failure({0: Outcome("aborted", "stalled", "all wait", host="h0")})
    assert isinstance(error, RankFailedError)
    assert (error.rank, error.host, error.kind) == (None, "h0", "stalled")


def test_one_that_failed_by_itself_comes_before_a_stalled_gang() -> None:
    stopped = Outcome("aborted", "stalled", "rank 1 is silent", host="h0", about=1)
    error = first_failure({0: stopped, 1: failed("signal", 1.0)})
    assert isinstance(error, RankFailedError)
    assert error.kind == "signal"
