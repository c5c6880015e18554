"""A rank starts with an environment in which nothing is by chance."""

from __future__ import annotations

from typing import Any

import pytest

from hvdspark.errors import ConfigurationError
from hvdspark.launch.environment import (
    check_environment,
    number_of_threads,
    rank_environment,
    search_path,
)
from hvdspark.launch.wiring import RESERVED


def test_nothing_of_an_earlier_launch_leaks_in() -> None:
    stale = {"HOROVOD_RANK": "7", "OMPI_COMM_WORLD_SIZE": "9", "PMI_RANK": "1", "PMIX_ID": "x", "HOME": "/h"}
    environment = rank_environment(stale, threads=3, extra={"MINE": "1", "HOROVOD_CYCLE_TIME": "5"})
    assert environment["HOME"] == "/h"
    assert environment["MINE"] == "1"
    assert environment["HOROVOD_CYCLE_TIME"] == "5", "what the user sets on purpose stays"
    assert not {"HOROVOD_RANK", "OMPI_COMM_WORLD_SIZE", "PMI_RANK", "PMIX_ID"} & set(environment)


def test_threads_follow_the_task_unless_the_executor_says_otherwise() -> None:
    assert rank_environment({}, threads=3, extra={})["OMP_NUM_THREADS"] == "3"
    assert rank_environment({"OMP_NUM_THREADS": "8"}, threads=3, extra={})["OMP_NUM_THREADS"] == "8"


def test_settings_of_the_executors_reach_ranks_unless_they_say_who_a_rank_is() -> None:
    theirs = {"HOROVOD_FUSION_THRESHOLD": "1", "HOROVOD_GLOO_TIMEOUT_SECONDS": "7", "NCCL_DEBUG": "INFO"}
    wrong = {"HOROVOD_SIZE": "9", "HOROVOD_CONTROLLER": "mpi", "HOROVOD_GLOO_RENDEZVOUS_ADDR": "elsewhere"}
    environment = rank_environment({**theirs, **wrong}, threads=3, extra={"NCCL_DEBUG": "WARN"})
    assert environment.items() >= {**theirs, "NCCL_DEBUG": "WARN", "HOROVOD_CONTROLLER": "gloo"}.items()
    assert not {"HOROVOD_SIZE", "HOROVOD_GLOO_RENDEZVOUS_ADDR"} & set(environment)


def test_ranks_keep_freed_memory_unless_they_are_told_otherwise_or_address_space_is_limited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environment = rank_environment({}, threads=1, extra={})
    assert int(environment["MALLOC_MMAP_THRESHOLD_"]) <= 32 << 20, "glibc ignores what is larger"
    assert int(environment["MALLOC_TRIM_THRESHOLD_"]) > int(environment["MALLOC_MMAP_THRESHOLD_"])
    of_executors = rank_environment({"MALLOC_TRIM_THRESHOLD_": "1"}, threads=1, extra={})
    assert of_executors["MALLOC_TRIM_THRESHOLD_"] == "1"
    of_user = rank_environment({"MALLOC_TRIM_THRESHOLD_": "1"}, threads=1, extra={"MALLOC_TRIM_THRESHOLD_": "2"})
    assert of_user["MALLOC_TRIM_THRESHOLD_"] == "2"
    monkeypatch.setattr("hvdspark.launch.environment.address_space_is_limited", lambda: True)
    assert "MALLOC_TRIM_THRESHOLD_" not in rank_environment({}, threads=1, extra={})


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        *[({name: "1"}, f"own value of this variable: '{name}'") for name in sorted(RESERVED)],
        ({"A": 1}, "environment variables are strings.*Hint"),
        ({1: "A"}, "environment variables are strings"),
        *[({"OMP_NUM_THREADS": text}, "not a number of threads") for text in ("0", "-2", "all", "", "4;2", "x,2")],
    ],
)
def test_variables_that_cannot_be_set_are_refused(extra: dict[Any, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        check_environment(extra)


@pytest.mark.parametrize(("text", "threads"), [("4", 4), ("4,2", 4), (" 8 ", 8)])
def test_numbers_of_threads(text: str, threads: int) -> None:
    assert number_of_threads(text) == threads


@pytest.mark.parametrize(("path", "folders"), [("/a:/b", ["/a", "/b"]), ("", []), (":/a:", ["/a"])])
def test_a_path_that_is_asked_for_comes_first(path: str, folders: list[str]) -> None:
    assert search_path({"PYTHONPATH": path}) == folders
