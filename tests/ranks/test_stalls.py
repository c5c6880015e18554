"""Ranks and tasks that are frozen, and exchanges that do not get on, are found within the stall timeout."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hvdspark.errors import RankFailedError
from hvdspark.launch import same_host
from hvdspark.launch.same_host import SameHostLauncher
from hvdspark.launch.supervisor import supervise
from tests.ranks import light
from tests.ranks import stall_cases as cases

LIMIT_S = 3.0
# What the issue allows beyond the limit.
MORE_S = 5.0
# Real ranks import torch, beside whatever else runs on the machine.
_START_S = 150


class Ranks:
    """Ranks that run until they are told to end, in a thread of their own."""

    def __init__(self, function: Callable[..., Any], folder: Path, **more: Any) -> None:
        self.folder = folder
        self.error: BaseException | None = None
        self.results: list[Any] = []
        self.lost: tuple[float, dict[str, Any]] = (0.0, {})  # when the supervisor knew of it
        self.frozen_s = 0.0
        self._stopped: list[int] = []
        self._size = more.get("num_workers", 2)
        given = {"num_workers": 2, "stall_timeout_s": LIMIT_S, "on_event": self._hear, **more}
        given["env"] = {"FOLDER": str(folder), **given.get("env", {})}

        def run() -> None:
            try:
                self.results = supervise(SameHostLauncher(), function, (folder,), **given)
            except BaseException as error:
                self.error = error

        self._thread = threading.Thread(target=run)
        self._thread.start()

    def _hear(self, event: dict[str, Any]) -> None:
        if event["event"] == "rank_lost":
            self.lost = (time.monotonic(), event)

    def pid(self, who: str, rank: int, generation: int = 0) -> int:
        deadline = time.monotonic() + _START_S
        while (pid := light.pid_in(self.folder, who, rank, generation)) is None:
            assert time.monotonic() < deadline
            assert self._thread.is_alive(), self.error
            time.sleep(0.05)
        return pid

    def freeze(self, who: str, rank: int) -> None:
        for every in range(self._size):
            self.pid("rank", every)
        pid = self.pid(who, rank)
        os.kill(pid, signal.SIGSTOP)
        self._stopped.append(pid)
        self.frozen_s = time.monotonic()

    def thaw(self) -> None:
        for pid in self._stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def stalled(self) -> RankFailedError:
        self.join()
        assert isinstance(self.error, RankFailedError), self.error
        assert self.error.kind == "stalled"
        self.assert_in_time()
        return self.error

    def assert_in_time(self) -> None:
        assert self.lost[0] - self.frozen_s < LIMIT_S + MORE_S

    def join(self) -> None:
        self._thread.join(_START_S)
        assert not self._thread.is_alive()

    def end(self) -> None:
        (self.folder / "end").touch()
        self.join()

    def close(self) -> None:
        (self.folder / "end").touch()
        self.thaw()
        self._thread.join(_START_S)


@pytest.fixture
def start(tmp_path: Path, nothing_left_behind: None) -> Iterator[Callable[..., Ranks]]:
    started: list[Ranks] = []

    def begin(function: Callable[..., Any], **more: Any) -> Ranks:
        started.append(Ranks(function, tmp_path, **more))
        return started[-1]

    yield begin
    for ranks in started:
        ranks.close()


@pytest.fixture
def start_light(start: Callable[..., Ranks], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ranks]:
    light.use(monkeypatch)
    return lambda **more: start(print, **more)


def test_a_frozen_rank_is_named_and_started_again(start_light: Callable[..., Ranks]) -> None:
    ranks = start_light(max_restarts=1)
    ranks.freeze("rank", 1)
    ranks.pid("rank", 1, generation=1)
    ranks.end()
    assert ranks.results == [1, 1]
    ranks.assert_in_time()
    assert (ranks.lost[1]["lost"], ranks.lost[1]["kind"]) == (1, "stalled")
    assert "no sign of life for 3 s: its process was stopped" in ranks.lost[1]["cause"]


@pytest.mark.parametrize(
    ("victim", "said"),
    [(0, "driver has not heard of its task|could not be reached"), (1, "not heard of that of rank 1")],
)
def test_a_frozen_task_is_named(start_light: Callable[..., Ranks], victim: int, said: str) -> None:
    ranks = start_light()
    ranks.freeze("keeper", victim)
    error = ranks.stalled()
    assert error.rank == victim
    assert re.search(said, error.cause), error.cause


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "said"), [(0, "task of rank 0 could not be reached"), (1, "not heard of that of rank 1")]
)
def test_a_frozen_task_is_named_where_the_driver_hears_nobody(
    start_light: Callable[..., Ranks], monkeypatch: pytest.MonkeyPatch, victim: int, said: str
) -> None:
    monkeypatch.setattr(SameHostLauncher, "driver_address", lambda self: None)
    monkeypatch.setattr("hvdspark.launch.same_host._BOOTSTRAP", _soon(same_host._BOOTSTRAP))
    ranks = start_light()
    ranks.freeze("keeper", victim)
    ranks.join()
    assert isinstance(ranks.error, RankFailedError), ranks.error
    assert (ranks.error.rank, ranks.error.kind) == (victim, "stalled")
    assert said in ranks.error.cause


def _soon(bootstrap: str) -> str:
    """Tasks that wait 1 s for last reports."""
    return bootstrap.replace(
        "from hvdspark", "from hvdspark.launch import task; task._LAST_REPORTS_S = 1.0; from hvdspark", 1
    )


def test_the_frozen_task_of_an_only_rank_is_named(start_light: Callable[..., Ranks]) -> None:
    ranks = start_light(num_workers=1)
    ranks.freeze("keeper", 0)
    error = ranks.stalled()
    assert (error.rank, "driver has not heard of its task for 3 s" in error.cause) == (0, True)


@pytest.mark.parametrize(
    ("who", "victim", "said"),
    [
        ("rank", 1, "its process was stopped"),
        ("keeper", 1, "not heard of that of rank 1"),
        ("keeper", 0, "driver has not heard of its task|could not be reached"),
    ],
)
def test_who_is_frozen_while_ranks_start_is_named(
    start_light: Callable[..., Ranks], who: str, victim: int, said: str
) -> None:
    ranks = start_light(env={"HANG": "start"})
    ranks.freeze(who, victim)
    error = ranks.stalled()
    assert error.rank == victim
    assert re.search(said, error.cause), error.cause


def test_an_exchange_in_which_all_wait_is_named(start_light: Callable[..., Ranks]) -> None:
    ranks = start_light(env={"HANG": "exchange"})
    ranks.pid("rank", 0)
    ranks.frozen_s = time.monotonic()
    error = ranks.stalled()
    assert "ranks [0] in 'of rank 0'; ranks [1] in 'of rank 1'" in error.cause
    assert "same collectives" in error.cause


def test_a_short_pause_ends_nothing(start_light: Callable[..., Ranks]) -> None:
    ranks = start_light()
    for who, rank in (("rank", 1), ("keeper", 0)):
        ranks.freeze(who, rank)
        time.sleep(LIMIT_S / 2)  # the pause itself
        ranks.thaw()
    ranks.end()
    assert (ranks.error, ranks.results) == (None, [0, 0])


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("victim", [0, 1])
def test_real_ranks_go_on_without_a_frozen_one(start: Callable[..., Ranks], victim: int) -> None:
    ranks = start(cases.exchange_until_told, max_restarts=1)
    ranks.freeze("rank", victim)
    ranks.pid("rank", 0, generation=1)
    ranks.end()
    assert ranks.results == [1, 1]
    assert (ranks.lost[1]["lost"], ranks.lost[1]["kind"]) == (victim, "stalled")


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_real_ranks_in_different_exchanges(start: Callable[..., Ranks]) -> None:
    ranks = start(cases.exchange_what_the_others_do_not)
    ranks.join()
    assert isinstance(ranks.error, RankFailedError)
    assert "ranks [0] in 'of rank 0'; ranks [1] in 'of rank 1'" in ranks.error.cause


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_who_computes_or_sleeps_is_not_stalled(start: Callable[..., Ranks]) -> None:
    ranks = start(cases.let_rank_1_be_late, stall_timeout_s=1.0)
    ranks.join()
    assert ranks.error is None
    assert ranks.results == ["waited", "slept"]
