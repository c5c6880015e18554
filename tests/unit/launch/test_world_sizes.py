"""Between which bounds a generation has its size."""

from __future__ import annotations

from typing import Any

import pytest

from hvdspark.errors import ConfigurationError
from hvdspark.launch.world_sizes import WorldSizes, world_sizes


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((2, None, None), (2, 2)),
        ((3, 1, None), (1, 3)),
        ((2, None, 4), (2, 4)),
        ((2, 1, 4), (1, 4)),
        ((9, 1, 1), (1, 1)),
    ],
)
def test_the_number_of_workers_is_each_bound_that_is_not_given(given: Any, expected: tuple[int, int]) -> None:
    assert world_sizes(*given) == WorldSizes(*expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((0, None, None), "not a positive number of ranks: 0.*in num_workers"),
        ((True, None, None), "not a positive number of ranks: True"),
        ((2, 0, None), "not a positive number of ranks: 0.*in min_workers"),
        ((2, None, 1.5), "not a positive number of ranks: 1.5.*in max_workers"),
        ((2, 3, None), "3 and 2.*in min_workers and num_workers"),
        ((2, None, 1), "2 and 1.*in num_workers and max_workers"),
        ((2, 5, 4), "5 and 4.*in min_workers and max_workers"),
    ],
)
def test_what_contradicts_itself_is_refused(given: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        world_sizes(*given)


@pytest.mark.parametrize(("slots", "ranks"), [(0, None), (1, None), (2, 2), (3, 3), (4, 4), (9, 4), (None, 4)])
def test_a_generation_takes_what_is_there(slots: int | None, ranks: int | None) -> None:
    assert WorldSizes(2, 4).fitting(slots) == ranks
