"""How fast batches can be fed: rows/s of our loader beside Petastorm's and beside a plain scan, on the same files.

    python benchmarks/loader.py [--rows 2000000] [--repeats 3] [--threads 2] [--data DIR]

The data looks like clicks: 13 float32 features, 26 int64 categories (Zipf-skewed, 10 to 5 million distinct values,
hashed to 64 bits) and a float32 label. The repetitions of the contestants are interleaved, so that a busy machine
slows all of them; medians are printed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import torch
from petastorm import make_batch_reader
from petastorm.pytorch import BatchedDataLoader

from hvdspark.data.dataset.footers import read_footers
from hvdspark.data.feed.loader import load_batches
from hvdspark.data.feed.plan import plan_epoch
from hvdspark.specs import ColumnSpec, DatasetSpec
from hvdspark.store import Store

FLOATS = [f"i{number}" for number in range(13)]
CATEGORIES = [f"c{number}" for number in range(26)]
CARDINALITIES = [10, 100, 1_000, 10_000, 100_000, 1_000_000, 5_000_000]
COLUMNS = [
    *(ColumnSpec(name, "float32", "scalar") for name in ["label", *FLOATS]),
    *(ColumnSpec(name, "int64", "scalar") for name in CATEGORIES),
]
NAMES = [column.name for column in COLUMNS]
BATCH_ROWS = 8192
FILES = 4
ROW_GROUP_ROWS = 1 << 17


def write_clicks(directory: Path, rows: int) -> None:
    """Write FILES Parquet files with `rows` rows in all, as Spark would: snappy, dictionaries, nullable columns."""
    rng = np.random.default_rng(0)
    directory.mkdir(parents=True, exist_ok=True)
    golden = np.int64(-7046029254386353131)  # 2**64 divided by the golden ratio: spreads ids over all 64 bits
    for file in range(FILES):
        count = rows * (file + 1) // FILES - rows * file // FILES
        table = {"label": (rng.random(count) < 0.25).astype(np.float32)}
        for name in FLOATS:
            table[name] = rng.lognormal(1.0, 1.5, count).astype(np.float32).round(1)
        for number, name in enumerate(CATEGORIES):
            rank = np.minimum(rng.zipf(1.2, count), CARDINALITIES[number % len(CARDINALITIES)])
            table[name] = rank * golden
        pq.write_table(pa.table(table), directory / f"part-{file}.parquet", row_group_size=ROW_GROUP_ROWS)


def ours(store: Store, dataset: DatasetSpec, epoch: int) -> int:
    plan = plan_epoch(dataset.train.rows, BATCH_ROWS, 1, 0, 0, epoch, True)
    with load_batches(
        store, dataset, "train", plan, NAMES, shuffle_rows=1 << 19, seed=0, epoch=epoch, shuffle=True
    ) as batches:
        return sum(batch.rows for batch in batches)


def arrow_scan(directory: Path) -> int:
    rows = 0
    for batch in ds.dataset(directory).to_batches(columns=NAMES):
        arrays = [column.to_numpy(zero_copy_only=False) for column in batch.columns]
        rows += len(arrays[0])
    return rows


def petastorm_raw(url: str) -> int:
    with make_batch_reader(url, workers_count=2, num_epochs=1, shuffle_row_groups=True) as reader:
        return sum(len(batch.label) for batch in reader)


def petastorm_batched(url: str, shuffling_queue_capacity: int) -> int:
    with (
        make_batch_reader(url, workers_count=2, num_epochs=1, shuffle_row_groups=True) as reader,
        BatchedDataLoader(reader, BATCH_ROWS, shuffling_queue_capacity=shuffling_queue_capacity) as loader,
    ):
        return sum(len(batch["label"]) for batch in loader)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="threads of torch and of Arrow")
    parser.add_argument("--data", type=Path, help="keep the files here and use them again")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(arguments.threads)
    pa.set_cpu_count(arguments.threads)
    with tempfile.TemporaryDirectory() as scratch:
        root = arguments.data or Path(scratch)
        if not (root / "clicks").exists():
            write_clicks(root / "clicks", arguments.rows)
        store, url = Store(str(root)), (root / "clicks").resolve().as_uri()
        (groups,) = read_footers(store, "clicks", ["."]).groups
        dataset = DatasetSpec("clicks", tuple(COLUMNS), groups)
        epochs = iter(range(1_000_000))
        contestants: dict[str, Callable[[], int]] = {
            "ours, full shuffle": lambda: ours(store, dataset, next(epochs)),
            "pyarrow.dataset scan to numpy": lambda: arrow_scan(root / "clicks"),
            "petastorm make_batch_reader": lambda: petastorm_raw(url),
            "petastorm BatchedDataLoader": lambda: petastorm_batched(url, 0),
            "petastorm BatchedDataLoader, shuffling queue": lambda: petastorm_batched(url, 1 << 19),
        }
        rates: dict[str, list[float]] = {name: [] for name in contestants}
        for repeat in range(arguments.repeats + 1):
            for name, contestant in contestants.items():
                started = time.perf_counter()
                rows = contestant()
                if rows != dataset.train_rows:
                    raise RuntimeError(f"{name}: {rows} rows of {dataset.train_rows}")
                if repeat:  # the first one warms the page cache and the allocators
                    rates[name].append(rows / (time.perf_counter() - started))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    first = next(iter(medians.values()))
    print(f"{dataset.train_rows} rows x {len(NAMES)} columns, {arguments.repeats} repeats, medians")
    for name, rate in medians.items():
        print(f"{name:46s} {rate / 1e6:7.2f} M rows/s   ours / this = {first / rate:6.2f}")


if __name__ == "__main__":
    main()
