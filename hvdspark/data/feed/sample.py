"""The first rows of a dataset, as a rank's loader would give them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from hvdspark.data.feed.batch import Batch
from hvdspark.data.feed.loader import load_batches
from hvdspark.data.feed.plan import plan_epoch
from hvdspark.specs import DatasetSpec, RowGroups
from hvdspark.store import Store


def first_rows(store: Store, dataset: DatasetSpec, columns: Sequence[str], rows: int) -> Batch:
    """At most `rows` training rows, from the first row group alone; one at least.

    Raises:
        StoreError, DataError: the files cannot be read, or are not what the spec says.
    """
    first = dataset.train[0]
    count = min(rows, first.rows)
    plan = plan_epoch([count], count, world_size=1, rank=0, seed=0, epoch=0, shuffle=False)
    only_first = dataclasses.replace(dataset, train=RowGroups.of([first]))
    batches = load_batches(
        store, only_first, "train", plan, columns, shuffle_rows=count, seed=0, epoch=0, shuffle=False, prefetch=1
    )
    with batches as iterator:
        return next(iterator)
