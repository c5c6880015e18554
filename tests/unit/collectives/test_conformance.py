from __future__ import annotations

import pytest

from hvdspark.collectives import LocalCollective, run_threaded
from hvdspark.collectives.watched import WatchedCollective
from tests.unit.collectives.conformance import CASES, Case


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_one_rank(case: Case) -> None:
    case(LocalCollective())


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_watched(case: Case) -> None:
    run_threaded(2, lambda collective: case(WatchedCollective(collective)))


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_threads(case: Case, size: int) -> None:
    run_threaded(size, case)
