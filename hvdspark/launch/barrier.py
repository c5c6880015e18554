"""The barrier task: one per rank, on the executors. Meets the others, starts the rank, reports how it ended.

A task never raises for what happens inside its rank. It returns rows, so that all outcomes reach the driver, which
then names the rank that failed first; raising would make Spark abort the stage with whichever error came first.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import pyarrow as pa
from pyspark import BarrierTaskContext

from hvdspark.launch.channel import ChannelSender
from hvdspark.launch.child import RankProcess, rank_environment
from hvdspark.launch.devices import cuda_environment
from hvdspark.launch.placement import Peer, assign, host_key, one_host
from hvdspark.launch.rendezvous import RendezvousClient, RendezvousServer
from hvdspark.specs import World

SCHEMA = "rank int, outcome string, sequence int, chunk binary"
_ARROW_SCHEMA = pa.schema(
    [("rank", pa.int32()), ("outcome", pa.string()), ("sequence", pa.int32()), ("chunk", pa.binary())]
)
# Spark Connect caps a message at 4 MiB (TorchDistributor sends 4 KiB rows for the same reason).
_CHUNK_BYTES = 1 << 20
_LOOPBACK = "127.0.0.1"
# After the decision to stop, how long partition 0 keeps the server for reports of the other ranks.
_LAST_REPORTS_S = 10.0


@dataclass(frozen=True)
class LaunchSpec:
    """What every task of one generation of the gang is given.

    Attributes:
        program: cloudpickled (fn, args, kwargs).
        secret: of this generation; for the rendezvous and the channel.
        channel: (host, port) of the driver's listener, or None.
        local_mode: Spark runs in the driver's process and does not schedule GPUs.
        environment: extra variables for the ranks.
    """

    program: bytes
    size: int
    secret: str
    generation: int
    device: str
    store_uri: str | None
    channel: tuple[str, int] | None
    local_mode: bool
    environment: dict[str, str]


def run_task(spec: LaunchSpec) -> Iterator[pa.RecordBatch]:
    """Body of one barrier task; yields the rows of `SCHEMA`."""
    context = BarrierTaskContext.get()
    gpus = context.resources().get("gpu")
    assigned = list(gpus.addresses) if gpus else []
    cuda = cuda_environment(spec.device, assigned, os.environ.get("CUDA_VISIBLE_DEVICES"))
    environment = rank_environment(os.environ, threads=context.cpus(), extra={**cuda, **spec.environment})
    channel_holder: list[ChannelSender] = []
    process = RankProcess(environment, on_event=lambda event: channel_holder[0].send(event))
    server: RendezvousServer | None = None
    channel = ChannelSender(spec.channel, spec.secret, on_closed=process.stop)
    channel_holder.append(channel)
    try:
        process.send_program(spec.program)
        peers, server = _meet(context, spec)
        world = assign([peer.peer for peer in peers])[context.partitionId()]
        # The worker's own record of the task, for the driver to name an executor that is lost later.
        channel.send({"event": "started", "rank": world.rank, "host": world.hostname})
        host = _rendezvous_host([peer.peer for peer in peers])
        client = RendezvousClient(host, peers[0].port, spec.secret)
        process.send_assignment(
            {
                "world": asdict(world),
                "environment": horovod_environment(world, client, host),
                "device": spec.device,
                "gpu_scheduled": bool(assigned) or spec.local_mode,
                "generation": spec.generation,
                "store_uri": spec.store_uri,
            },
            prefix=f"[rank {world.rank} {world.hostname}] ",
        )
        outcome = _watch(process, client, world.rank)
        if server is not None:
            _keep_until_all_reported(server, outcome)
    finally:
        process.end()
        channel.close()
        if server is not None:
            server.close()
    yield from _rows(world, outcome)


def horovod_environment(world: World, client: RendezvousClient, rendezvous_host: str) -> dict[str, str]:
    """Horovod's variables for one rank (names: horovod/runner/gloo_run.py `create_slot_env_vars`)."""
    return {
        "HOROVOD_HOSTNAME": world.hostname,
        "HOROVOD_RANK": str(world.rank),
        "HOROVOD_SIZE": str(world.size),
        "HOROVOD_LOCAL_RANK": str(world.local_rank),
        "HOROVOD_LOCAL_SIZE": str(world.local_size),
        "HOROVOD_CROSS_RANK": str(world.cross_rank),
        "HOROVOD_CROSS_SIZE": str(world.cross_size),
        "HOROVOD_GLOO_IFACE": _interface_towards(rendezvous_host),
        **client.horovod_environment(),
    }


@dataclass(frozen=True)
class _Introduction:
    peer: Peer
    port: int  # of the rendezvous server; 0 from every task but partition 0's


def _meet(context: BarrierTaskContext, spec: LaunchSpec) -> tuple[list[_Introduction], RendezvousServer | None]:
    """One allGather (it costs about a second: BarrierTaskContext polls once a second)."""
    addresses = [info.address.rpartition(":")[0] for info in context.getTaskInfos()]
    partition = context.partitionId()
    server = None
    if partition == 0:
        server = RendezvousServer(_bindable(addresses), spec.size, spec.secret)
    try:
        peer = Peer(partition, host_key(), socket.gethostname(), addresses[partition])
        mine = json.dumps({"peer": asdict(peer), "port": server.port if server else 0})
        answers = [json.loads(text) for text in context.allGather(mine)]
        return [_Introduction(Peer(**answer["peer"]), answer["port"]) for answer in answers], server
    except BaseException:
        if server is not None:
            server.close()
        raise


def _bindable(addresses: list[str]) -> str:
    """Loopback when every executor has one address, so that nothing is open to the network; else all interfaces.

    All interfaces, because the address under which others reach this executor may not exist on it (NAT, services
    in front of pods). Requests without the run's secret are refused.
    """
    return _LOOPBACK if len(set(addresses)) == 1 else ""


def _rendezvous_host(peers: list[Peer]) -> str:
    """Where ranks reach the server of partition 0; loopback exactly where `_bindable` or sharing a host allows it."""
    shared = one_host(peers) or len({peer.address for peer in peers}) == 1
    return _LOOPBACK if shared else peers[0].address


def _interface_towards(host: str) -> str:
    """Name of the network interface from which `host` is reached: what Gloo binds to."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # UDP: only looks up the route, sends nothing
        own = probe.getsockname()[0]
    names = psutil.net_if_addrs()
    return next((name for name, entries in names.items() if any(entry.address == own for entry in entries)), "")


def _watch(process: RankProcess, client: RendezvousClient, rank: int) -> dict[str, Any]:
    """Wait for the rank to end, stop it when the gang must stop, and report its outcome to the server."""
    ended = threading.Event()

    def stop_with_the_gang() -> None:
        failures = 0
        while not ended.is_set():
            try:
                if client.must_stop() and not ended.is_set():
                    process.stop()
                    return
                failures = 0
            except OSError:
                # One lost request may be a hiccup; a server that stays away took partition 0 with it.
                failures += 1
                if failures == 3:
                    process.stop()
                    return
                ended.wait(0.5)

    watcher = threading.Thread(target=stop_with_the_gang, name="hvdspark-gang", daemon=True)
    watcher.start()
    outcome = process.wait()
    ended.set()
    with contextlib.suppress(OSError):  # without the server, the row that follows still tells the driver
        client.record(rank, {"status": outcome["status"], "kind": outcome.get("kind", "")})
    return outcome


def _keep_until_all_reported(server: RendezvousServer, outcome: dict[str, Any]) -> None:
    """Hold the server while ranks run. Unlimited while all is well; Spark ends this task if an executor is lost."""
    while not server.outcomes.wait_all(wait_s=1.0):
        if server.outcomes.must_stop(wait_s=0):
            server.outcomes.wait_all(wait_s=_LAST_REPORTS_S)
            return


def _rows(world: World, outcome: dict[str, Any]) -> Iterator[pa.RecordBatch]:
    result: bytes = outcome.pop("result", b"")
    outcome = {**outcome, "host": world.hostname, "ended_at_s": time.time()}
    for sequence, start in enumerate(range(0, max(len(result), 1), _CHUNK_BYTES)):
        yield pa.RecordBatch.from_pydict(
            {
                "rank": [world.rank],
                "outcome": [json.dumps(outcome) if sequence == 0 else ""],
                "sequence": [sequence],
                "chunk": [result[start : start + _CHUNK_BYTES]],
            },
            schema=_ARROW_SCHEMA,
        )
