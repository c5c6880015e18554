"""Where a fit is written to. Pure."""

from __future__ import annotations

from dataclasses import dataclass

_LONGEST_NAME = 200


@dataclass(frozen=True)
class ActiveRun:
    """A run that a user has started.

    Attributes:
        uri: of the tracking server.
        thread: in which it is active: MLflow's active runs are those of a thread.
    """

    uri: str
    run_id: str
    experiment_id: str
    thread: int


@dataclass(frozen=True)
class Caller:
    """What an estimator knows of who will call `fit`.

    Attributes:
        active: the run in which the estimator was copied: CrossValidator fits copies in threads that have none.
        candidate: whether it is one of several that are fitted for comparison.
        tried: what it has that the others may have otherwise, such as "learningRate=0.01"; the name of a nested run.
    """

    active: ActiveRun | None = None
    candidate: bool = False
    tried: str = ""


@dataclass(frozen=True)
class Target:
    """Where a fit is written to.

    Attributes:
        uri: of the tracking server.
        active: the user's run, or None for a new one.
        nested: into a new run below it.
    """

    uri: str
    active: ActiveRun | None = None
    nested: bool = False


def target_of(tracking_uri: str | None, here: ActiveRun | None, caller: Caller, thread: int) -> Target | None:
    """Where to write; None where nowhere.

    Args:
        tracking_uri: that the user asks for; "" for none at all.
        here: the run that is active in this thread.
        thread: this one.
    """
    if tracking_uri == "":
        return None
    active, nested = here, caller.candidate
    if here is None and caller.active is not None and caller.active.thread != thread:
        active, nested = caller.active, True
    if tracking_uri is not None and active is not None and not same_server(active.uri, tracking_uri):
        active = None
    if active is not None:
        return Target(active.uri, active, nested)
    return None if tracking_uri is None else Target(tracking_uri)


def name_of(target: Target, caller: Caller, fit: str) -> str:
    """Name of a run that is made for a fit: one of several is told from the others by what it tries."""
    return caller.tried[:_LONGEST_NAME] if caller.tried and (target.nested or caller.candidate) else fit


def same_server(one: str, other: str) -> bool:
    """Whether two tracking URIs are those of one server."""
    return one.rstrip("/") == other.rstrip("/")
