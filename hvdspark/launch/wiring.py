"""Which collective a rank gets: Horovod over Gloo. The only place of the launcher that calls it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvdspark.specs import World

if TYPE_CHECKING:
    from hvdspark.collectives import Collective

INTERFACE = "HOROVOD_GLOO_IFACE"
# Who a rank is and where it meets the others. Left by an earlier launch, they would be wrong.
RESERVED = frozenset(
    {
        "HOROVOD_CONTROLLER",
        "HOROVOD_CPU_OPERATIONS",
        "HOROVOD_CROSS_RANK",
        "HOROVOD_CROSS_SIZE",
        "HOROVOD_ELASTIC",
        "HOROVOD_GLOO_RENDEZVOUS_ADDR",
        "HOROVOD_GLOO_RENDEZVOUS_PORT",
        "HOROVOD_HOSTNAME",
        "HOROVOD_LOCAL_RANK",
        "HOROVOD_LOCAL_SIZE",
        "HOROVOD_RANK",
        "HOROVOD_SIZE",
    }
)
ALWAYS = {"HOROVOD_CONTROLLER": "gloo", "HOROVOD_CPU_OPERATIONS": "gloo"}
UNLESS_SET = {
    # The longest a rank waits for one that does not answer: Gloo then gives up, without a name. Stalls are found before
    # (`liveness`). It does not limit the start, because ranks only call `hvd.init` when all of them are ready to.
    "HOROVOD_GLOO_TIMEOUT_SECONDS": "120",
    # A collective that some ranks never call (a callback on rank 0 alone) would be waited for without end. Long
    # enough for one rank to write a large model while the others wait.
    "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "3600",
}
_LONGEST_CHAIN = 20


def rank_variables(world: World) -> dict[str, str]:
    """Horovod's variables for one rank (names: horovod/runner/gloo_run.py `create_slot_env_vars`)."""
    return {
        # Names the scope in which the ranks of a host meet: two containers may have one host name.
        "HOROVOD_HOSTNAME": f"{world.hostname}-{world.rank - world.local_rank}",
        "HOROVOD_RANK": str(world.rank),
        "HOROVOD_SIZE": str(world.size),
        "HOROVOD_LOCAL_RANK": str(world.local_rank),
        "HOROVOD_LOCAL_SIZE": str(world.local_size),
        "HOROVOD_CROSS_RANK": str(world.cross_rank),
        "HOROVOD_CROSS_SIZE": str(world.cross_size),
    }


def load() -> None:
    """Import what `join` needs: a second that overlaps with the meeting of the tasks."""
    import horovod.torch  # noqa: F401

    from hvdspark.collectives import HorovodCollective  # noqa: F401


def join() -> Collective:
    """Collective. Connect this rank to the others, whose addresses the environment leads to."""
    import horovod.torch as hvd

    from hvdspark.collectives import HorovodCollective

    hvd.init()
    return HorovodCollective()


def leave() -> None:
    """Collective. The end of `join`."""
    import horovod.torch as hvd

    hvd.shutdown()


def caused_by_peer(error: BaseException | None) -> bool:
    """Whether a vanished peer is behind an exception."""
    for _ in range(_LONGEST_CHAIN):
        if error is None:
            return False
        if type(error).__name__ == "HorovodInternalError":
            return True
        error = error.__cause__ or error.__context__
    return False
