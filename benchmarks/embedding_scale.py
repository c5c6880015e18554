"""How large a sharded table may be on one machine: memory against the plan, saving, loading at another world size.

    python benchmarks/embedding_scale.py                  # 10^8 rows x 16 float32, rowwise Adagrad
    python benchmarks/embedding_scale.py --unbounded      # ids from [0, 10^18): memory grows with touched rows
    python benchmarks/embedding_scale.py --rows 1000000000 --dim 4 --dtype float16 --steps 50
    python benchmarks/embedding_scale.py --fit            # 10^8 rows through fit and transform, driver with 1 GB

Every rank looks up 8192 x 26 uniform ids a step: the worst case, in which hardly an id occurs twice.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import sys
import tempfile
import time
from typing import Any

import cloudpickle
import torch
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from torch import Tensor, nn

import hvdspark
from hvdspark import launch
from hvdspark.embedding import Initialization, ShardedEmbeddingCollection, TableConfig
from hvdspark.embedding.plan.sharding import Traffic, format_bytes, plan_sharding
from hvdspark.estimators import TorchEstimator

FEATURES = [f"c{k}" for k in range(26)]
UNBOUNDED_IDS = 10**18
SAMPLE = 100_000


def table(arguments: argparse.Namespace) -> TableConfig:
    rows = None if arguments.unbounded else arguments.rows
    init = Initialization("uniform", 0.01)
    return TableConfig("ids", arguments.dim, rows, init=init, dtype=arguments.dtype, placement="row")


def train(config: TableConfig, batch: int, steps: int, directory: str | None) -> dict[str, Any]:
    """On every rank: train, say what memory it took, save, and give a hash of a sample of rows."""
    rank = hvdspark.context().rank
    embeddings = ShardedEmbeddingCollection([config], dict.fromkeys(FEATURES, config.name), seed=1)
    before = peak_bytes()
    random = torch.Generator().manual_seed(rank)
    limit = config.num_embeddings or UNBOUNDED_IDS
    targets = torch.randn(batch, config.dim, generator=random)
    started = time.perf_counter()
    for _ in range(steps):
        outputs = embeddings({name: torch.randint(limit, (batch,), generator=random) for name in FEATURES})
        loss = sum((vectors * targets).sum() for vectors in outputs.values())
        (loss / batch).backward()  # type: ignore[union-attr]
        embeddings.apply_gradients()
    seconds = time.perf_counter() - started
    (shard,) = embeddings.shards
    result: dict[str, Any] = {
        "seconds": seconds,
        "touched": shard.row_counts()[0],
        "table_bytes": shard.bytes_used(),
        "peak_before": before,
        "peak_trained": peak_bytes(),
        "sample": hash_of_rows(embeddings, config, batch),
    }
    if directory is not None:
        started = time.perf_counter()
        store = hvdspark.context().store
        result["files"] = embeddings.write_rows(store, directory, state=True)
        result["description"] = embeddings.description()
        result["save_seconds"] = time.perf_counter() - started
        result["peak_saved"] = peak_bytes()
    return result


def load(
    config: TableConfig, batch: int, directory: str, description: dict[str, Any], files: list[Any]
) -> dict[str, Any]:
    """On one rank: read what all ranks saved."""
    embeddings = ShardedEmbeddingCollection([config], dict.fromkeys(FEATURES, config.name), seed=1)
    started = time.perf_counter()
    embeddings.read_rows(hvdspark.context().store, directory, description, files)
    seconds = time.perf_counter() - started
    sample = hash_of_rows(embeddings, config, batch)
    return {"seconds": seconds, "sample": sample, "touched": embeddings.shards[0].row_counts()[0]}


def hash_of_rows(embeddings: ShardedEmbeddingCollection, config: TableConfig, batch: int) -> str:
    """Collective. Of the rows of SAMPLE ids, about half of which rank 0 met in its first step."""
    random, limit = torch.Generator().manual_seed(0), config.num_embeddings or UNBOUNDED_IDS
    torch.randn(batch, config.dim, generator=random)  # as `train` does
    sample = torch.cat([torch.randint(limit, (batch,), generator=random) for _ in range(SAMPLE // 2 // batch)])
    sample = torch.cat([sample, torch.randint(limit, (SAMPLE - len(sample),), generator=random)])
    none = torch.zeros(0, dtype=torch.int64)
    with torch.no_grad():
        outputs = embeddings({name: sample if name == FEATURES[0] else none for name in FEATURES})
    return hashlib.sha256(outputs[FEATURES[0]].numpy().tobytes()).hexdigest()


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def scale(spark: SparkSession, arguments: argparse.Namespace, scratch: str) -> None:
    config, ranks = table(arguments), arguments.ranks
    results = hvdspark.run(
        train,
        (config, arguments.batch, arguments.steps, None if arguments.no_save else "saved"),
        num_workers=ranks,
        spark=spark,
        store_uri=f"file://{scratch}",
    )
    lookups = arguments.batch * len(FEATURES)
    traffic = Traffic(ids=lookups * ranks, rows=sum(result["touched"] for result in results))
    plan = plan_sharding([config], ranks, batch_size=arguments.batch * ranks, traffic={config.name: traffic})
    print(plan.explain())
    row_bytes = sum(plan.tables[0].bytes_per_row())
    for rank, result in enumerate(results):
        planned = plan.rank_bytes[rank].total
        used = result["peak_trained"]
        print(
            f"rank {rank}: {result['touched']:,} rows touched, "
            f"{lookups * arguments.steps / result['seconds'] / 1e6:.2f} M lookups/s; "
            f"peak {format_bytes(used)} (of it {format_bytes(result['peak_before'])} before the first step), "
            f"plan {format_bytes(planned)}: 1.15 x plan + 0.7 GB = {format_bytes(1.15 * planned + 0.7e9)}"
        )
        if config.num_embeddings is None:
            touched = result["touched"] * config.dim * config.torch_dtype.itemsize
            print(
                f"        table {format_bytes(result['table_bytes'])} for "
                f"{format_bytes(result['touched'] * row_bytes)} planned for its rows "
                f"({format_bytes(touched)} of embeddings alone)"
            )
        if not arguments.no_save:
            size, peak = sum(file["bytes"] for file in result["files"]), result["peak_saved"]
            print(f"        saved in {result['save_seconds']:.1f} s, {format_bytes(size)}, peak {format_bytes(peak)}")
    assert len({result["sample"] for result in results}) == 1
    if not arguments.no_save:
        files = [file for result in results for file in result["files"]]
        (loaded,) = hvdspark.run(
            load,
            (config, arguments.batch, "saved", results[0]["description"], files),
            num_workers=1,
            spark=spark,
            store_uri=f"file://{scratch}",
        )
        same = loaded["sample"] == results[0]["sample"]
        print(f"loaded at 1 rank in {loaded['seconds']:.1f} s: {SAMPLE:,} random rows identical: {same}")


def count_driver_traffic() -> dict[str, int]:
    """Bytes that the next fit sends to its ranks and gets from them, by what they are; filled while it runs."""
    real_run, traffic = launch.run, {"programs": 0, "events": 0, "results": 0}

    def run(fn: Any, args: Any, *, num_workers: int, on_event: Any, **named: Any) -> list[Any]:
        def count(event: dict[str, Any]) -> None:
            traffic["events"] += len(json.dumps(event))
            on_event(event)

        traffic["programs"] = num_workers * len(cloudpickle.dumps((fn, args)))
        results = real_run(fn, args, num_workers=num_workers, on_event=count, **named)
        traffic["results"] = len(cloudpickle.dumps(results))
        return results

    launch.run = run
    return traffic


class Network(nn.Module):
    """One table for two id columns, and a layer."""

    def __init__(self, rows: int, dim: int) -> None:
        super().__init__()
        self.rows, self.dim = rows, dim
        self.tables = ShardedEmbeddingCollection(
            [TableConfig("ids", dim, rows, placement="row")], {"first": "ids", "second": "ids"}
        )
        self.out = nn.Linear(2 * dim, 1)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        vectors = self.tables({"first": first, "second": second})
        return self.out(torch.cat(list(vectors.values()), dim=1)).squeeze(1)


def fit(spark: SparkSession, arguments: argparse.Namespace, scratch: str) -> None:
    """10^8 rows from fit to transform, and what travelled through the driver while ranks were running."""
    ids = [F.pmod(F.xxhash64("id", F.lit(k)), F.lit(arguments.rows)) for k in range(2)]
    data = spark.range(0, 1_000_000, 1, 4).select("id", ids[0].alias("first"), ids[1].alias("second"))
    data = data.withColumn("label", (F.col("first") % 2).cast("int"))
    estimator = TorchEstimator(
        model=Network(arguments.rows, arguments.dim),
        loss="bce_with_logits",
        featureCols=["first", "second"],
        labelCol="label",
        batchSize=16384,
        numWorkers=arguments.ranks,
        storeUri=f"file://{scratch}",
    )
    traffic = count_driver_traffic()
    started = time.perf_counter()
    model = estimator.fit(data)
    print(f"fit {time.perf_counter() - started:.1f} s: {model.summary}")
    print(
        f"through the driver while ranks ran: {', '.join(f'{name} {size:,} bytes' for name, size in traffic.items())}"
    )
    started = time.perf_counter()
    scored = model.transform(data).agg(F.avg("prediction"), F.count("prediction")).first()
    print(f"transform {time.perf_counter() - started:.1f} s: mean {scored[0]:.4f} of {scored[1]:,} rows")
    print(
        f"driver: heap limit {spark.sparkContext.getConf().get('spark.driver.memory')}, this process's peak "
        f"{format_bytes(peak_bytes())}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10**8)
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch", type=int, default=8192, help="rows of each rank, of 26 ids each")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--unbounded", action="store_true", help="64-bit ids instead of --rows")
    parser.add_argument("--no-save", action="store_true", help="neither save nor load")
    parser.add_argument("--fit", action="store_true", help="through TorchEstimator and its model")
    parser.add_argument("--scratch", help="where to save; by default a temporary directory")
    arguments = parser.parse_args()
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    spark = (
        SparkSession.builder.master(f"local[{arguments.ranks}]")
        .config("spark.driver.memory", "1g")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")
    with tempfile.TemporaryDirectory(prefix="hvdspark-bench-", dir=arguments.scratch) as scratch:
        (fit if arguments.fit else scale)(spark, arguments, scratch)
    spark.stop()


if __name__ == "__main__":
    main()
