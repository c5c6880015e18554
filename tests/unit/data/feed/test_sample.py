"""The first rows, and that looking at them leaves nothing open."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import psutil
import pytest

from hvdspark.data.feed.sample import first_rows
from hvdspark.data.readers import slices
from hvdspark.store import Store
from tests.unit.train.datasets import write_dataset


@pytest.mark.parametrize(("wanted", "got"), [(8, 8), (1000, 250)])
def test_they_are_the_first_and_no_file_stays_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: int, got: int
) -> None:
    monkeypatch.setattr(slices, "_SLICE_BYTES", 400)  # the row group is decoded in several slices
    store = Store(tmp_path.as_uri())
    dataset = write_dataset(store, {"id": np.arange(500), "x": np.ones((500, 3), np.float32)}, group_rows=(250, 250))
    gc.disable()  # what only the collector would close stays open for as long as it pleases
    try:
        batch = first_rows(store, dataset, ["id", "x", "id"], wanted)
        opened = [file.path for file in psutil.Process().open_files() if file.path.endswith(".parquet")]
    finally:
        gc.enable()
    assert opened == []
    assert (batch.rows, tuple(batch.columns["x"].shape)) == (got, (got, 3))
    assert batch.columns["id"].tolist() == list(range(got))
