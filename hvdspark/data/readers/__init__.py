"""From row groups in the store to columns in memory."""

from __future__ import annotations

from collections.abc import Sequence

from hvdspark.data.readers.protocol import RowGroupReader, Sink
from hvdspark.specs import ColumnSpec
from hvdspark.store import Store


def open_reader(store: Store, dataset: str, columns: Sequence[ColumnSpec], sink: Sink) -> RowGroupReader:
    """The reader of every loader that is not given another one: Petastorm's, imported at first use.

    See `protocol.OpenReader` and `protocol.RowGroupReader`.
    """
    from hvdspark.data.readers.petastorm import PetastormReader

    return PetastormReader(store, dataset, columns, sink)
