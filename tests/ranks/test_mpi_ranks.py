"""Real MPI processes: the same bits as threads."""

from __future__ import annotations

from pathlib import Path

import pytest

from hvdspark.collectives import run_threaded
from tests.ranks.mpi_cases import caught, on_rank, until_alone
from tests.ranks.mpi_gang import needs_mpirun, run_mpi_ranks

pytestmark = needs_mpirun


@pytest.mark.slow  # the other tests launch ranks of MPI, too
@pytest.mark.parametrize("size", [2, 3])
def test_mpi_ranks_are_threads_bit_for_bit(size: int, tmp_path: Path) -> None:
    expected = run_threaded(size, on_rank)
    outcomes, status = run_mpi_ranks(on_rank, size, tmp_path)
    for outcome, wanted in zip(outcomes, expected, strict=True):
        assert outcome.error is None, outcome.output
        assert outcome.value == wanted
        assert not outcome.value["embedding"]["broken promises"]
    assert status == 0


def test_nobody_waits_for_ever_for_a_rank_that_left(tmp_path: Path) -> None:
    outcomes, status = run_mpi_ranks(until_alone, 2, tmp_path, timeout_s=60)
    assert status != 0
    assert outcomes[1].value == "left"
    assert outcomes[0].error is not None
    assert outcomes[0].error.startswith("CollectiveTimeoutError: not all ranks came to the exchange 'alone' within 1 s")


def test_a_launch_in_which_a_rank_gave_up_fails(tmp_path: Path) -> None:
    outcomes, status = run_mpi_ranks(caught, 2, tmp_path, timeout_s=60)
    assert [outcome.error for outcome in outcomes] == [None, None]
    assert "not all ranks came" in outcomes[0].value
    assert status != 0
