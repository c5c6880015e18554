"""Entries in as few requests as MLflow's limits allow. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from hvdspark.tracking.entries import Curve, Entry, Metric, Param, Rows, Tag, Text

# Of one `log_batch` (mlflow/utils/validation.py); a request may have 1 MB.
MOST_PARAMS, MOST_TAGS, MOST_ENTITIES, MOST_BYTES = 100, 100, 1000, 900_000

_FIELDS_BYTES = 120  # names of fields, numbers and punctuation of one entity in a request


@dataclass(frozen=True)
class Batch:
    """What one `log_batch` takes."""

    params: tuple[Param, ...] = ()
    tags: tuple[Tag, ...] = ()
    metrics: tuple[Metric, ...] = ()

    @property
    def entries(self) -> tuple[Entry, ...]:
        return (*self.params, *self.tags, *self.metrics)


Request = Batch | Rows | Text | Curve


def requests_of(entries: Iterable[Entry]) -> Iterator[Request]:
    """The entries, in requests. What is no Param, tag or metric is one request, after those before it."""
    room = _Room()
    for entry in entries:
        if isinstance(entry, Rows | Text | Curve):
            yield from room.emptied()
            yield entry
        else:
            if not room.has_room(entry):
                yield from room.emptied()
            room.add(entry)
    yield from room.emptied()


def entries_of(request: Request) -> tuple[Entry, ...]:
    """What a request was made of."""
    return request.entries if isinstance(request, Batch) else (request,)


class _Room:
    """A batch that is being filled."""

    def __init__(self) -> None:
        self._entries: list[Param | Tag | Metric] = []
        self._bytes = 0

    def has_room(self, entry: Param | Tag | Metric) -> bool:
        same_kind = sum(type(other) is type(entry) for other in self._entries)
        most = {Param: MOST_PARAMS, Tag: MOST_TAGS, Metric: MOST_ENTITIES}[type(entry)]
        fits = len(self._entries) < MOST_ENTITIES and self._bytes + _size(entry) <= MOST_BYTES
        return same_kind < most and fits

    def add(self, entry: Param | Tag | Metric) -> None:
        self._entries.append(entry)
        self._bytes += _size(entry)

    def emptied(self) -> Iterator[Batch]:
        if self._entries:
            params = tuple(entry for entry in self._entries if isinstance(entry, Param))
            tags = tuple(entry for entry in self._entries if isinstance(entry, Tag))
            metrics = tuple(entry for entry in self._entries if isinstance(entry, Metric))
            yield Batch(params, tags, metrics)
        self._entries, self._bytes = [], 0


def _size(entry: Param | Tag | Metric) -> int:
    text = entry.key if isinstance(entry, Metric) else entry.key + entry.value
    return len(json.dumps(text)) + _FIELDS_BYTES
