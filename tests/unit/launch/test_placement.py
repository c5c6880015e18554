"""Ranks are host-major and the same wherever they are computed."""

from __future__ import annotations

import random

import pytest

from hvdspark.launch.placement import Peer, assign, host_key, one_host


def peers(hosts: str) -> list[Peer]:
    return [Peer(partition, host, f"host-{host}", f"10.0.0.{ord(host)}") for partition, host in enumerate(hosts)]


@pytest.mark.parametrize("hosts", ["a", "ab", "aabb", "abab", "abcabcabc", "aaab", "baabcb", "abbbbbbb"])
def test_worlds_agree_with_each_other(hosts: str) -> None:
    worlds = assign(peers(hosts))
    by_rank = sorted(worlds.values(), key=lambda world: world.rank)
    assert [world.rank for world in by_rank] == list(range(len(hosts)))
    assert worlds[0].rank == 0, "partition 0 holds the rendezvous"
    names = [world.hostname for world in by_rank]
    assert names == sorted(names, key=names.index), "ranks of a host are consecutive"
    for world in by_rank:
        local = [other for other in by_rank if other.hostname == world.hostname]
        cross = [other for other in by_rank if other.local_rank == world.local_rank]
        assert (world.local_rank, world.local_size) == (local.index(world), len(local))
        assert (world.cross_rank, world.cross_size) == (cross.index(world), len(cross))
        assert world.size == len(hosts)


def test_the_order_in_which_peers_are_listed_does_not_matter() -> None:
    listed = peers("abcaabcc")
    shuffled = random.Random(1).sample(listed, len(listed))
    assert assign(shuffled) == assign(listed)


def test_a_container_is_a_host_of_its_own() -> None:
    assert host_key("node", "container_1") != host_key("node", "container_2")
    assert host_key("node", "container_1") == host_key("node", "container_1")
    assert host_key("node-1", "") != host_key("node-2", "")


def test_loopback_only_on_one_host() -> None:
    assert one_host(peers("aaa"))
    assert not one_host(peers("aab"))
