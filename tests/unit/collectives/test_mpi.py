"""What can be said about MPI ranks without MPI; tests/ranks/test_mpi_ranks.py has the real ones."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from hvdspark.collectives import LocalCollective, MpiCollective, current_collective
from hvdspark.collectives.mpi import launched_size
from hvdspark.errors import ConfigurationError, DependencyError


class World:
    """Stands in for the communicator of an MPI library that counts its ranks by itself."""

    def __init__(self, size: int) -> None:
        self.size = size

    def Get_rank(self) -> int:
        return 0

    def Get_size(self) -> int:
        return self.size


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        monkeypatch.delenv(name, raising=False)


def mpi4py_that_sees(size: int) -> SimpleNamespace:
    return SimpleNamespace(
        MPI=SimpleNamespace(COMM_WORLD=World(size), Get_library_version=lambda: "Some MPI v1\nbuilt by somebody")
    )


@pytest.mark.parametrize(
    ("environment", "size"),
    [
        ({}, 1),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, 4),
        ({"PMI_SIZE": "3", "PMI_RANK": "0"}, 3),
        ({"PMI_SIZE": "1"}, 1),
        ({"PMI_SIZE": ""}, 1),
    ],
)
def test_launched_size(environment: dict[str, str], size: int) -> None:
    assert launched_size(environment) == size


@pytest.mark.parametrize("name", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_an_mpi_launcher_decides(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", mpi4py_that_sees(2))
    monkeypatch.setenv(name, "1")
    assert isinstance(current_collective(), LocalCollective)
    monkeypatch.setenv(name, "2")
    collective = current_collective()
    assert isinstance(collective, MpiCollective)
    assert (collective.rank, collective.size) == (0, 2)


def test_a_launcher_without_mpi4py(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with pytest.raises(DependencyError, match=r"mpi4py does not work.*one of 2 ranks.*hvdspark\[mpi\]"):
        current_collective()


def test_ranks_that_would_each_be_alone_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    # Open MPI's mpirun with an mpi4py that loads MPICH: every process takes itself for the only rank.
    monkeypatch.setitem(sys.modules, "mpi4py", mpi4py_that_sees(1))
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with pytest.raises(DependencyError, match=r"started 2 ranks, and mpi4py sees 1: Some MPI v1\. Hint"):
        current_collective()


def test_compression_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", mpi4py_that_sees(1))
    weight = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(ConfigurationError, match="compression"):
        MpiCollective().distributed_optimizer(torch.optim.SGD([weight]), [("weight", weight)], compression="fp16")
