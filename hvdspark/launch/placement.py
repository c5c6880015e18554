"""Which partition becomes which rank. Pure: the same list of peers gives the same worlds on every executor.

Ranks are host-major, as `horovodrun` gives them out, so that Horovod's local and cross communicators are right
and ring neighbours sit on one host. Partition 0 is always rank 0.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from hvdspark.specs import World

# Ranks can share memory and loopback only inside one set of these (horovod#1497: a YARN container is a host).
_NAMESPACES = ("ipc", "net", "pid", "uts")


@dataclass(frozen=True)
class Peer:
    """What one task tells the others about itself.

    Attributes:
        partition: partition id of the task.
        host_key: equal for two tasks exactly when they share a host, its namespaces and its container.
        hostname: name for people.
        address: the executor's address as Spark knows it: routable from every other executor.
    """

    partition: int
    host_key: str
    hostname: str
    address: str


def host_key(hostname: str | None = None, container: str | None = None) -> str:
    """Key of the host this process runs on: host name, kernel namespaces, YARN container id."""
    namespaces = []
    for namespace in _NAMESPACES:
        try:
            namespaces.append(os.readlink(f"/proc/self/ns/{namespace}"))
        except OSError:  # no /proc: macOS
            namespaces.append("")
    return "|".join(
        [
            hostname or socket.gethostname(),
            *namespaces,
            os.environ.get("CONTAINER_ID", "") if container is None else container,
        ]
    )


def assign(peers: Sequence[Peer]) -> dict[int, World]:
    """World of every partition.

    Hosts are ordered by their lowest partition, ranks within a host by partition. Hosts may hold different
    numbers of ranks; `cross_size` then counts only the hosts that have a rank with that `local_rank`.
    """
    hosts: dict[str, list[Peer]] = {}
    for peer in sorted(peers, key=lambda peer: peer.partition):
        hosts.setdefault(peer.host_key, []).append(peer)
    worlds: dict[int, World] = {}
    for cross_position, members in enumerate(hosts.values()):
        for local_rank, peer in enumerate(members):
            earlier_hosts = list(hosts.values())[:cross_position]
            worlds[peer.partition] = World(
                rank=len(worlds),
                size=len(peers),
                local_rank=local_rank,
                local_size=len(members),
                cross_rank=sum(len(others) > local_rank for others in earlier_hosts),
                cross_size=sum(len(others) > local_rank for others in hosts.values()),
                hostname=peer.hostname,
            )
    return worlds


def one_host(peers: Sequence[Peer]) -> bool:
    """Whether every rank can reach every other one over loopback."""
    return len({peer.host_key for peer in peers}) == 1
