"""What Spark's UI shows of our jobs, read back from the store that it shows."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyspark import InheritableThread
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

import hvdspark
from hvdspark.errors import HvdSparkError
from hvdspark.estimators import CTRClassificationModel, CTRClassifier
from hvdspark.session import session_of
from tests.spark.listeners import Seen
from tests.spark.toys import linear, separable

pytestmark = pytest.mark.spark

DESCRIPTION, GROUP = "spark.job.description", "spark.jobGroup.id"


@pytest.fixture
def jobs(spark: SparkSession) -> Iterator[Any]:
    """`jobs()`: (description, group) of the jobs since the test began, as Spark's UI has them, each once."""
    context: Any = spark.sparkContext._jsc.sc()

    def listed() -> list[Any]:
        context.listenerBus().waitUntilEmpty()
        found = context.statusStore().jobsList(None)
        return sorted((found.apply(place) for place in range(found.size())), key=lambda job: job.jobId())

    before = len(listed())

    def since() -> list[tuple[str, str]]:
        told = [(_text(job.description()), _text(job.jobGroup())) for job in listed()[before:]]
        return list(dict.fromkeys(told))

    yield since
    for key in (DESCRIPTION, GROUP):
        spark.sparkContext.setLocalProperty(key, None)


def _text(option: Any) -> str:
    return str(option.get()) if option.isDefined() else ""


def test_jobs_of_a_fit_say_which_fit_they_are_of_and_what_for(spark: SparkSession, store_uri: str, jobs: Any) -> None:
    seen = Seen()
    estimator = linear(storeUri=store_uri, epochs=1, listeners=[seen])
    before = [spark.sparkContext.getLocalProperty(key) for key in (DESCRIPTION, GROUP)]
    estimator.fit(separable(spark))
    name, run_id = f"hvdspark fit {estimator.uid}", seen.events[0].run_id
    assert jobs() == [(f"{name}, rows are written", run_id), (f"{name}, generation 0", run_id)]
    assert [spark.sparkContext.getLocalProperty(key) for key in (DESCRIPTION, GROUP)] == before


@pytest.mark.slow
def test_what_the_caller_says_stays(spark: SparkSession, store_uri: str, tmp_path: Path, jobs: Any) -> None:
    """A notebook cancels the jobs of a cell by their group."""
    spark.sparkContext.setJobGroup("cell 7", "nightly")
    clicks = spark.range(300).select(
        (F.col("id") % 7).alias("c"), F.rand(1).alias("n"), (F.col("id") % 2).cast("int").alias("label")
    )
    classifier = CTRClassifier(
        architecture="lr", continuousCols=["n"], categoricalCols=["c"], numWorkers=1, storeUri=store_uri
    )
    model = classifier.fit(clicks)
    name = f"nightly, hvdspark fit {classifier.uid}"
    parts = ("rows are written", "generation 0")  # few rows are looked through without a job
    assert jobs() == [(f"{name}, {part}", "cell 7") for part in parts]
    assert spark.sparkContext.getLocalProperty(DESCRIPTION) == "nightly"
    path = (tmp_path / "model").as_uri()
    model.save(path)
    CTRClassificationModel.load(path)
    done = [f"nightly, hvdspark save {model.uid}", f"nightly, hvdspark load {path}"]
    assert jobs()[len(parts) :] == [(text, "cell 7") for text in done]
    assert "hvdspark_score" in model.transform(clicks)._jdf.queryExecution().toString()


def test_a_fit_that_fails_leaves_no_description(spark: SparkSession, jobs: Any) -> None:
    def fail() -> None:
        raise ValueError("a function's own words")

    with pytest.raises(HvdSparkError):
        hvdspark.run(fail, num_workers=1, spark=spark)
    assert jobs() == [("hvdspark run, generation 0", "")]
    assert spark.sparkContext.getLocalProperty(DESCRIPTION) is None


def test_threads_describe_their_own_jobs(spark: SparkSession, jobs: Any) -> None:
    both = threading.Barrier(2)

    def work(name: str) -> None:
        with session_of(spark).described(name, group=name):
            both.wait(60)
            spark.range(1).collect()

    threads = [InheritableThread(target=work, args=(name,), session=spark) for name in ("one", "other")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(jobs()) == [("one", "one"), ("other", "other")]


def test_the_workers_are_looked_at_by_name(local_cluster: SparkSession) -> None:
    context: Any = local_cluster.sparkContext._jsc.sc()
    hvdspark.run(int, num_workers=2, spark=local_cluster)
    found = context.statusStore().jobsList(None)
    told = [_text(found.apply(place).description()) for place in range(found.size())]
    assert "hvdspark looks at the executors' Python" in told
    assert "hvdspark run, generation 0" in told
