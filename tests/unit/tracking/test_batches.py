"""Requests within the limits of one log_batch."""

from __future__ import annotations

import json

import pytest
from mlflow.utils import validation

from hvdspark.tracking.batches import MOST_BYTES, MOST_ENTITIES, MOST_PARAMS, MOST_TAGS, Batch, entries_of, requests_of
from hvdspark.tracking.entries import Entry, Metric, Param, Tag, Text

PARAMS = [Param(f"p{number}", "v") for number in range(250)]
TAGS = [Tag(f"t{number}", "v") for number in range(101)]
METRICS = [Metric("loss", 0.5, number, 1) for number in range(2500)]


def test_the_limits_are_mlflows() -> None:
    assert validation.MAX_PARAMS_TAGS_PER_BATCH == MOST_PARAMS == MOST_TAGS
    assert validation.MAX_METRICS_PER_BATCH == validation.MAX_ENTITIES_PER_BATCH == MOST_ENTITIES
    assert validation.MAX_BATCH_LOG_REQUEST_SIZE > MOST_BYTES


@pytest.mark.parametrize(
    ("entries", "sizes"),
    [
        ([], []),
        (PARAMS[:100], [100]),
        (PARAMS, [100, 100, 50]),
        (TAGS, [100, 1]),
        (METRICS, [1000, 1000, 500]),
        ([*PARAMS[:60], *TAGS[:60], *METRICS[:900]], [1000, 20]),
        ([*PARAMS[:100], *TAGS[:100], *METRICS[:800]], [1000]),
    ],
)
def test_as_few_requests_as_the_limits_allow(entries: list[Entry], sizes: list[int]) -> None:
    requests = list(requests_of(entries))
    assert [len(entries_of(request)) for request in requests] == sizes
    assert sorted(map(repr, (entry for request in requests for entry in entries_of(request)))) == sorted(
        map(repr, entries)
    )


def test_a_request_stays_below_a_megabyte_in_any_alphabet() -> None:
    entries = [Param(f"p{number}", "漢" * 6000) for number in range(100)]
    requests = list(requests_of(entries))
    assert all(isinstance(request, Batch) for request in requests)
    sizes = [len(json.dumps([entry.__dict__ for entry in entries_of(request)])) for request in requests]
    assert max(sizes) <= validation.MAX_BATCH_LOG_REQUEST_SIZE
    assert len(requests) == 5


def test_files_are_requests_of_their_own_between_what_came_before_and_after() -> None:
    text = Text("a.txt", "a")
    entries = [*PARAMS[:2], text, *TAGS[:2]]
    assert list(requests_of(entries)) == [Batch(params=tuple(PARAMS[:2])), text, Batch(tags=tuple(TAGS[:2]))]
