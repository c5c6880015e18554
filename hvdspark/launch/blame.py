"""Which rank of a failed gang is to blame, and the error that says so. Pure."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping

from hvdspark.errors import HvdSparkError, RankFailedError
from hvdspark.launch.outcomes import Outcome
from hvdspark.launch.start_watch import SLOW, start_timeout


def first_failure(outcomes: Mapping[int, Outcome]) -> Exception:
    """The error to raise for a gang of which a rank failed.

    A rank that failed because a peer vanished is blamed only when no rank failed by itself; among equals, the one
    that reported first. Where a rank has made room, all were about to: they had agreed on it, and what happened to
    another one afterwards is no failure.

    Args:
        outcomes: by rank; at least one of them is not "ok".
    """
    failed = [(rank, outcome) for rank, outcome in outcomes.items() if outcome.status == "failed"]
    stopped = [outcome for outcome in outcomes.values() if (outcome.status, outcome.kind) == ("aborted", "stalled")]
    if stopped and all(outcome.kind == "peer_lost" for _, outcome in failed):
        return _stalled(outcomes, stopped[0])
    if not failed:
        rank, outcome = next((r, o) for r, o in outcomes.items() if o.status != "ok")
        if outcome.kind == "start_timeout":
            return start_timeout(outcome.cause, SLOW)
        return RankFailedError(rank, outcome.host, outcome.cause, kind="peer_lost")
    made_room = [(rank, outcome) for rank, outcome in failed if outcome.kind == "preempted"]
    failed = made_room or failed
    if all(outcome.kind == "peer_lost" for _, outcome in failed):
        return _only_victims(outcomes, *min(failed, key=lambda item: _when(item[1])))
    rank, outcome = min(failed, key=lambda item: (item[1].kind == "peer_lost", _when(item[1])))
    error = RankFailedError(
        rank,
        outcome.host,
        outcome.cause,
        kind=outcome.kind,
        traceback_text=outcome.traceback,
        tail=outcome.tail,
        step=outcome.step,
    )
    if outcome.error:
        import cloudpickle

        with contextlib.suppress(Exception):  # a subclass of the user's may not be importable here: the text must do
            own: HvdSparkError = cloudpickle.loads(bytes.fromhex(outcome.error))
            own.__cause__ = error
            return own
    return error


def _stalled(outcomes: Mapping[int, Outcome], stopped: Outcome) -> RankFailedError:
    """The gang was stopped because it got no further."""
    about = stopped if stopped.about is None else outcomes.get(stopped.about, stopped)
    return RankFailedError(stopped.about, about.host, stopped.cause, kind="stalled", step=about.step)


def _when(outcome: Outcome) -> tuple[float, float]:
    """Sorts outcomes: as the gang's server received them. Clocks of hosts differ, and only serve where it did not."""
    return math.inf if outcome.order is None else outcome.order, outcome.ended_at_s


def _only_victims(outcomes: Mapping[int, Outcome], rank: int, outcome: Outcome) -> RankFailedError:
    """No rank failed by itself: say what the others did, because one of them is the reason."""
    returned = sorted(other for other, item in outcomes.items() if item.status == "ok")
    silent = sorted(other for other, item in outcomes.items() if item.status == "aborted")
    suspects = []
    if returned:
        suspects.append(f"ranks {returned} had already returned")
    if silent:
        suspects.append(f"ranks {silent} did not answer any more (frozen, swapping, or cut off from the network)")
    return RankFailedError(
        rank,
        outcome.host,
        f"it lost the others: {' and '.join(suspects) or 'the connection between all ranks broke'}. "
        f"Horovod said: {outcome.cause}",
        kind="peer_lost",
        traceback_text=outcome.traceback,
        tail=outcome.tail,
        step=outcome.step,
        hint="every rank must call the same collectives, as often, in the same order",
    )
