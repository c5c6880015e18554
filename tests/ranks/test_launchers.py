"""What every launcher promises: ranks know their place, failures are named within seconds, nothing is left behind."""

from __future__ import annotations

import functools
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from hvdspark.errors import (
    ClusterError,
    DataError,
    HvdSparkError,
    MemoryBudgetError,
    PreemptedError,
    RankFailedError,
    StartTimeoutError,
)
from hvdspark.launch.barrier import BarrierLauncher
from hvdspark.launch.preemption import Preemption
from hvdspark.launch.protocol import Launcher, LaunchSpec
from hvdspark.launch.same_host import SameHostLauncher
from hvdspark.launch.supervisor import supervise
from tests.ranks import launch_cases as cases

ROOT = Path(__file__).resolve().parent.parent.parent
ERROR_WITHIN_S = 10.0
BARRIER = pytest.param("barrier", marks=pytest.mark.spark)
SAME_HOST = "same host"


@pytest.fixture(params=[BARRIER, SAME_HOST])
def launcher(request: pytest.FixtureRequest) -> Launcher:
    if request.param == "barrier":
        return BarrierLauncher(request.getfixturevalue("spark"))
    return SameHostLauncher()


@pytest.fixture
def launch(launcher: Launcher, nothing_left_behind: None) -> Callable[..., list[Any]]:
    return functools.partial(supervise, launcher)


@dataclass(frozen=True)
class Slow:
    """A case of which another one proves almost the same."""

    case: Any


def split(on_spark: Sequence[Any], on_host: Sequence[Any]) -> list[Any]:
    """Parameters ("launcher", "case"): some cases for the barrier stage, others for the host; `Slow` ones are slow."""
    barrier = [_parameter("barrier", case, pytest.mark.spark) for case in on_spark]
    return [*barrier, *(_parameter(SAME_HOST, case) for case in on_host)]


def _parameter(launcher: str, case: Any, *marks: pytest.MarkDecorator) -> Any:
    if isinstance(case, Slow):
        case, marks = case.case, (*marks, pytest.mark.slow)
    return pytest.param(launcher, case, marks=marks, id=f"{launcher} {case}")


def seconds_since(marker: Path) -> float:
    """Time since a rank touched the file, which it does just before it dies."""
    return time.time() - marker.stat().st_mtime


@pytest.mark.parametrize(("launcher", "size"), split([3], [1, 2]), indirect=["launcher"])
def test_ranks_know_their_place(launch: Callable[..., list[Any]], size: int) -> None:
    events: queue.Queue[dict[str, Any]] = queue.Queue()
    results = launch(
        cases.describe_rank,
        ("hi",),
        {"punctuation": "!"},
        num_workers=size,
        store_uri="/tmp/x",
        on_event=events.put,
    )
    assert [result["context"] for result in results] == [(rank, size, rank, size) for rank in range(size)]
    assert all(result["horovod"] == result["context"] for result in results)
    assert all(result["collective"] == result["context"][:2] for result in results)
    assert {result["total"] for result in results} == {size * (size + 1) / 2}
    assert {result["text"] for result in results} == {"hi!"}
    assert {result["device"] for result in results} == {"cpu"}
    assert {result["generation"] for result in results} == {0}
    assert {result["store"] for result in results} == {"file:///tmp/x"}
    assert {result["stdin"] for result in results} == {""}
    assert len({result["pid"] for result in results}) == size
    assert events.get(timeout=1) == {"event": "generation", "generation": 0, "world_size": size}
    reported = [events.get(timeout=1) for _ in range(size)]
    assert sorted(event["rank"] for event in reported) == list(range(size))


def test_gangs_from_several_threads(launch: Callable[..., list[Any]]) -> None:
    launches: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
        "a": (cases.describe_rank, ("a",)),
        "b": (cases.describe_rank, ("b",)),
        "big": (cases.big_result, ()),
    }
    with ThreadPoolExecutor(3) as pool:
        begun = {name: pool.submit(launch, *given, num_workers=1) for name, given in launches.items()}
    results = {name: future.result() for name, future in begun.items()}
    assert [results[name][0]["text"] for name in ("a", "b")] == ["a", "b"]
    assert results["big"] == [bytes(range(256)) * 20_000]


KINDS = {
    "kill": ("signal", "killed by SIGKILL"),
    "segfault": ("signal", "killed by SIGSEGV"),
    "raise": ("exception", "ValueError: the user's own mistake"),
    "exit": ("exit", "exited with code 3"),
    "memory": ("memory", "can't allocate memory"),
}
# Every kind of failure on both launchers, and of both ranks. A task and a keeper look after a rank with the same
# code: on Spark, one that says why and one that cannot are enough where time counts.
ON_SPARK = ("kill rank 0", "raise rank 0", Slow("segfault rank 1"), Slow("exit rank 1"), Slow("memory rank 0"))
ON_HOST = ("kill rank 1", "segfault rank 0", "raise rank 1", "exit rank 0", "memory rank 1")


@pytest.mark.parametrize(("launcher", "case"), split(ON_SPARK, ON_HOST), indirect=["launcher"])
def test_a_failure_is_named(launch: Callable[..., list[Any]], tmp_path: Path, case: str) -> None:
    how, victim, marker = case.split()[0], int(case[-1]), tmp_path / "died"
    kind, cause = KINDS[how]
    with pytest.raises((RankFailedError, MemoryBudgetError), match=cause) as caught:
        launch(cases.die, (how, victim, marker), num_workers=2)
    assert seconds_since(marker) < ERROR_WITHIN_S
    error = caught.value.__cause__ if how == "memory" else caught.value
    assert isinstance(error, RankFailedError)
    assert (error.rank, error.kind) == (victim, kind)
    assert error.host in str(error)
    assert "last words" in error.tail
    if how == "raise":
        assert "in die" in error.traceback_text


def test_a_rank_that_hangs_is_named(launch: Callable[..., list[Any]]) -> None:
    with pytest.raises(RankFailedError, match=r"rank 0 .* lost the others: ranks \[1\] did not answer") as caught:
        launch(cases.hang, (1,), num_workers=2, env={"HOROVOD_GLOO_TIMEOUT_SECONDS": "2"})
    assert caught.value.kind == "peer_lost"


def test_a_rank_that_returned_early_is_named(launch: Callable[..., list[Any]]) -> None:
    with pytest.raises(RankFailedError, match=r"rank 1 .* lost the others: ranks \[0\] had already returned"):
        launch(cases.return_early_or_wait, (0,), num_workers=2)


def test_a_rank_dies_with_its_task(launch: Callable[..., list[Any]], tmp_path: Path) -> None:
    with pytest.raises(RankFailedError) as caught:
        launch(cases.kill_my_parent_and_wait, (tmp_path / "died",), num_workers=2)
    assert caught.value.kind == "executor_lost"
    assert seconds_since(tmp_path / "died") < ERROR_WITHIN_S


@pytest.mark.parametrize(("launcher", "limit_s"), split([Slow(8)], [5]), indirect=["launcher"])
def test_a_rank_that_never_gets_ready_ends_in_a_start_timeout(
    launch: Callable[..., list[Any]], tmp_path: Path, limit_s: int
) -> None:
    (tmp_path / "sitecustomize.py").write_text(cases.SLOW)
    environment = {"PYTHONPATH": str(tmp_path), "FIRST_ONE": str(tmp_path / "first"), "SLOW_S": "600"}
    # On a busy machine the other one may be late, too; tests of outcomes say which ones are named.
    late = rf"ranks \[([01]|0, 1)\] were not ready to train after {limit_s} s.*Hint: a rank may"
    with pytest.raises(StartTimeoutError, match=late):
        launch(time.time, num_workers=2, env=environment, start_timeout_s=limit_s)


@pytest.mark.parametrize(("launcher", "fatal"), split([True], [Slow(True), False]), indirect=["launcher"])
def test_not_even_what_left_its_process_group_stays(
    launch: Callable[..., list[Any]], tmp_path: Path, fatal: bool
) -> None:
    marker = tmp_path / "ended"
    if fatal:
        with pytest.raises(RankFailedError, match="SIGKILL"):
            launch(cases.start_a_session_of_its_own, (marker, True), num_workers=2)
        assert seconds_since(marker) < ERROR_WITHIN_S
        return
    pids = launch(cases.start_a_session_of_its_own, (marker, False), num_workers=2)
    assert seconds_since(marker) < ERROR_WITHIN_S
    assert len(pids) == 2
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_cancelled_ranks_are_ended(launcher: Launcher, nothing_left_behind: None, tmp_path: Path) -> None:
    spec = LaunchSpec(
        program=launcher.pickled((cases.wait, (tmp_path,), {})),
        world_size=2,
        secret="0123456789abcdef",
        generation=0,
        device="cpu",
        store_uri=None,
        channel=None,
        environment={},
        start_timeout_s=60,
    )
    job = launcher.job(spec)
    canceller = threading.Thread(target=lambda: (wait_for_ranks(tmp_path), job.cancel()))
    canceller.start()
    with pytest.raises(Exception, match="cancel"):
        job.run()
    canceller.join()


def wait_for_ranks(folder: Path) -> list[int]:
    """Pids of the two ranks in `cases.wait`."""
    deadline = time.monotonic() + 60
    while len(found := list(folder.glob("waiting-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    return [int(file.read_text()) for file in found]


@pytest.fixture
def on_host(nothing_left_behind: None) -> Callable[..., list[Any]]:
    """For what is the same for all launchers, or follows from what is above."""
    return functools.partial(supervise, SameHostLauncher())


def test_what_a_rank_started_goes_with_it(on_host: Callable[..., list[Any]], tmp_path: Path) -> None:
    with pytest.raises(RankFailedError, match="SIGKILL"):
        on_host(cases.fork_and_die, (tmp_path / "died",), num_workers=2)
    assert seconds_since(tmp_path / "died") < ERROR_WITHIN_S


@pytest.mark.slow  # those of the barrier stage are in tests/spark/test_launch.py
def test_errors_of_the_function(on_host: Callable[..., list[Any]], tmp_path: Path) -> None:
    """One rank each, started side by side."""
    calls = tmp_path / "calls"
    given: list[tuple[Callable[..., Any], tuple[Any, ...], type[HvdSparkError], str]] = [
        (cases.raise_unpicklable_error, (), RankFailedError, "still readable"),
        (cases.raise_own_error, (), DataError, "labels are odd: 3 .in label.*Hint: make them even"),
        (cases.return_what_cannot_be_pickled, (), RankFailedError, "pickle"),
        (cases.raise_after_counting, (calls,), RankFailedError, "always"),
    ]

    def run(case: tuple[Callable[..., Any], tuple[Any, ...], type[HvdSparkError], str]) -> None:
        function, arguments, kind, message = case
        with pytest.raises(kind, match=message) as caught:
            on_host(function, arguments, num_workers=1, max_restarts=3)
        if kind is not RankFailedError:
            assert isinstance(caught.value.__cause__, RankFailedError)
            assert caught.value.__cause__.rank == 0

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(run, given))
    assert calls.read_text() == "x", "exceptions are not retried"


def test_a_restart_is_counted(on_host: Callable[..., list[Any]]) -> None:
    events: list[dict[str, Any]] = []
    assert on_host(cases.die_in_generation, (1,), num_workers=2, max_restarts=2, on_event=events.append) == [1, 1]
    first, lost, second = events
    assert (first["event"], lost["event"], second["event"]) == ("generation", "rank_lost", "generation")
    assert (first["generation"], second["generation"]) == (0, 1)
    assert (lost["generation"], lost["lost"], lost["kind"]) == (0, 1, "signal")
    assert "SIGKILL" in lost["cause"]


def test_the_driver_asks_the_ranks_to_make_room(launch: Callable[..., list[Any]]) -> None:
    preemption = Preemption()

    def ask(event: dict[str, Any]) -> None:
        if event["event"] == "stepping":
            preemption.ask("a test wants it")

    with pytest.raises(PreemptedError, match=r"after step \d+") as caught:
        launch(cases.make_room, (9,), num_workers=2, on_event=ask, preemption=preemption)
    assert isinstance(caught.value.__cause__, RankFailedError)
    assert caught.value.__cause__.kind == "preempted"


def test_sigterm_of_a_rank_is_a_restart_that_does_not_count(on_host: Callable[..., list[Any]]) -> None:
    generations: list[int] = []

    def terminate(event: dict[str, Any]) -> None:
        if event["event"] == "stepping" and event["rank"] == 1 and event["generation"] == 0:
            os.kill(event["pid"], signal.SIGTERM)
        if event["event"] == "generation":
            generations.append(event["generation"])

    assert on_host(cases.make_room, (1,), num_workers=2, on_event=terminate) == [0, 0]
    assert generations == [0, 1]


def test_sigterm_ends_a_rank_that_does_not_ask(on_host: Callable[..., list[Any]], tmp_path: Path) -> None:
    def terminate() -> None:
        os.kill(wait_for_ranks(tmp_path)[0], signal.SIGTERM)

    killer = threading.Thread(target=terminate)
    killer.start()
    with pytest.raises(RankFailedError, match="killed by SIGTERM"):
        on_host(cases.wait, (tmp_path,), num_workers=2)
    killer.join()


def test_cuda_without_a_gpu(on_host: Callable[..., list[Any]]) -> None:
    with pytest.raises(ClusterError, match="no GPU for this rank.*Hint"):
        on_host(cases.describe_rank, ("hi",), num_workers=1, device="cuda")


# A driver whose ranks wait; it says by what it was left.
DRIVER = """
import sys
from pathlib import Path
from hvdspark.launch.same_host import SameHostLauncher
from hvdspark.launch.supervisor import supervise
from tests.ranks.launch_cases import wait
try:
    supervise(SameHostLauncher(), wait, (Path(sys.argv[1]),), num_workers=2, max_restarts=1)
except BaseException as error:
    print(type(error).__name__)
"""


@pytest.mark.parametrize(
    ("how", "within_s", "said"), [(signal.SIGKILL, 10, ""), (signal.SIGINT, 5, "KeyboardInterrupt")]
)
def test_ranks_do_not_outlive_their_driver(
    nothing_left_behind: None, tmp_path: Path, how: signal.Signals, within_s: float, said: str
) -> None:
    command = [sys.executable, "-c", DRIVER, str(tmp_path)]
    driver = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        ranks = [psutil.Process(pid) for pid in wait_for_ranks(tmp_path)]
        keepers = psutil.Process(driver.pid).children()
        driver.send_signal(how)
        _, alive = psutil.wait_procs([*ranks, *keepers], timeout=within_s)
        assert (len(ranks), len(keepers)) == (2, 2)
        assert not alive
        assert driver.communicate(timeout=10)[0].strip() == said
    finally:
        driver.kill()
        driver.communicate()
