"""A run belongs to one driver at a time."""

from __future__ import annotations

import json
import os
import queue
import threading
from pathlib import Path
from typing import Any

import pytest

from hvdspark.errors import ConfigurationError
from hvdspark.store import Store
from hvdspark.train.claim import claimed

LEASE = "leases/mine.json"
BEAT_S = 0.05


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path.as_uri())


def lease(store: Store) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(store.read_text(LEASE))
    return found


def test_one_fit_of_a_process_at_a_time(store: Store) -> None:
    with claimed(store, "mine", pytest.fail):
        with pytest.raises(ConfigurationError, match="another fit of this process.*'mine'.*Hint: wait"):
            claimed(store, "mine", pytest.fail).__enter__()
        with claimed(store, "yours", pytest.fail):
            pass
    assert not store.exists(LEASE)
    with claimed(store, "mine", pytest.fail):
        assert store.exists(LEASE)


def test_of_this_host_it_is_known_who_lives(store: Store) -> None:
    with claimed(store, "mine", pytest.fail):
        left = lease(store)
    for gone in ({"pid": 2**22 + 1}, {"pid": os.getppid(), "started": 1.0}):  # its number was given out again
        store.write_text(LEASE, json.dumps(left | gone))
        with claimed(store, "mine", pytest.fail):
            pass
    started = float(Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[19])
    store.write_text(LEASE, json.dumps(left | {"pid": os.getppid(), "started": started}))
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=f"process {os.getppid()} of this host is at it"):
            claimed(store, "mine", pytest.fail).__enter__()


def test_of_another_host_one_looks_whether_its_heart_beats(store: Store) -> None:
    with claimed(store, "mine", pytest.fail):
        left = lease(store) | {"host": "elsewhere", "token": "theirs"}
    store.write_text(LEASE, json.dumps(left))
    over = threading.Event()

    def beat() -> None:
        number = 0
        while not over.wait(BEAT_S):
            number += 1
            store.write_text(LEASE, json.dumps(left | {"beat": number}))

    heart = threading.Thread(target=beat)
    heart.start()
    try:
        with pytest.raises(ConfigurationError, match="a process of another host is at it"):
            claimed(store, "mine", pytest.fail, beat_s=BEAT_S).__enter__()
    finally:
        over.set()
        heart.join()
    with claimed(store, "mine", pytest.fail, beat_s=BEAT_S):
        assert lease(store)["token"] != "theirs"


def test_it_is_renewed_and_who_loses_it_is_told(store: Store) -> None:
    lost: queue.Queue[str] = queue.Queue()
    with claimed(store, "mine", lost.put, beat_s=BEAT_S) as claim:
        first = lease(store)
        while lease(store)["beat"] == first["beat"]:
            threading.Event().wait(BEAT_S)  # the store has no events
        assert lease(store)["token"] == first["token"]
        while lost.empty():  # a beat may come between
            store.write_text(LEASE, json.dumps(first | {"token": "theirs"}))
            threading.Event().wait(BEAT_S / 5)
        assert "another driver has claimed it" in lost.get()
        with pytest.raises(ConfigurationError, match="another driver"):
            claim.check()
    assert lease(store)["token"] == "theirs", "what is another's is not deleted"


def test_a_lease_that_somebody_deleted_is_written_again(store: Store) -> None:
    with claimed(store, "mine", pytest.fail, beat_s=BEAT_S) as claim:
        first = lease(store)
        store.delete(LEASE)
        claim.check()
        while not store.exists(LEASE):
            threading.Event().wait(BEAT_S)  # the store has no events
        assert lease(store)["token"] == first["token"]
    assert not store.exists(LEASE)


def test_a_damaged_lease_is_nobodys(store: Store) -> None:
    for damage in ("", "{", "{}", '{"host": 3}', "[]"):
        store.write_text(LEASE, damage)
        with claimed(store, "mine", pytest.fail):
            assert lease(store)["beat"] == 1
