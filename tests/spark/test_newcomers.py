"""What newcomers get wrong is answered within seconds, before ranks start, in words that say what to do."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pyspark.ml.linalg import Vectors
from pyspark.sql import DataFrame, SparkSession
from torch import Tensor, nn

from hvdspark import errors
from hvdspark.estimators import CTRClassifier, TorchClassifier, TorchRegressor, default_store
from hvdspark.events import GenerationStarted
from tests.spark.listeners import Seen
from tests.spark.toys import files_in, linear, separable

pytestmark = pytest.mark.spark

SECONDS = 5


class NoParameters(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum(dim=1)


def of_no_row(output: Tensor, label: Tensor) -> Tensor:
    return (output - label).square().mean().reshape(1)


def two_widths(data: DataFrame) -> DataFrame:
    wide = data.sparkSession.createDataFrame([(Vectors.dense([1.0, 2.0, 3.0, 4.0]), 1)], ["x", "y"])
    return data.select("x", "y").unionByName(wide)


def stream(data: DataFrame) -> DataFrame:
    rate = data.sparkSession.readStream.format("rate").load()
    return rate.selectExpr("array(1.0D, 2.0D, 3.0D) AS x", "value % 2 AS y")


@dataclass(frozen=True)
class Elsewhere:
    """A session as on a cluster of many hosts: executors see other files below this path than the driver does."""

    folder: Path

    def enter(self, patch: pytest.MonkeyPatch) -> None:
        # /proc/self/cwd is of each process its own: Spark's workers stay where the session was started.
        patch.chdir(self.folder)
        patch.setattr(default_store, "on_many_hosts", lambda spark: True)
        patch.setenv("XDG_DATA_HOME", "/proc/self/cwd/home")


def other_python(spark: SparkSession, patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Spark starts a Python that says it is 3.9; there is none on this machine."""
    script = folder / "python3.9"
    as_if = 'shift; code="$1"; shift'
    script.write_text(
        f'#!/bin/sh\n{as_if}\nexec "{sys.executable}" -c "import sys; sys.version_info = (3, 9, 1); $code" "$@"\n'
    )
    script.chmod(0o755)
    patch.setattr(spark.sparkContext, "pythonExec", str(script))


def classifier(**changes: Any) -> TorchClassifier:
    return TorchClassifier(**{"model": nn.Linear(3, 1), "featuresCol": "x", "labelCol": "y", **changes})


def regressor(**changes: Any) -> TorchRegressor:
    return TorchRegressor(**{"model": nn.Linear(3, 1), "featuresCol": "x", "labelCol": "y", **changes})


def clicks(**changes: Any) -> CTRClassifier:
    return CTRClassifier(**{"continuousCols": ["w"], "categoricalCols": ["id"], "labelCol": "y", **changes})


MODULES: Mapping[str, Callable[..., Any]] = {
    "TorchEstimator": linear,
    "TorchClassifier": classifier,
    "TorchRegressor": regressor,
}
KINDS: Mapping[str, Callable[..., Any]] = {**MODULES, "CTRClassifier": clicks}


@dataclass(frozen=True)
class Wrong:
    """One wrong usage.

    Attributes:
        error: what is raised.
        says: what is wrong, as a regular expression.
        do: what to do about it, in the hint.
        settings: of the estimator.
        data: of the rows that are right otherwise.
        session: "many hosts", "another Python", or "" for the session as it is.
        of: the estimators that it is possible with.
    """

    error: type[errors.HvdSparkError]
    says: str
    do: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    data: Callable[[DataFrame], DataFrame] = lambda data: data
    session: str = ""
    of: Mapping[str, Callable[..., Any]] = field(default_factory=lambda: KINDS)


CASES: dict[str, Wrong] = {
    "an unknown column": Wrong(
        errors.SchemaError,
        "column not found: 'X1'.*feature columns",
        "the DataFrame has .* columns: id, x, y",
        {"featureCols": ["X1"]},
        of=MODULES,
    ),
    "an unknown column of clicks": Wrong(
        errors.SchemaError,
        "column not found: 'X1'.*continuousCols",
        "the DataFrame has .* columns: id, x, y",
        {"continuousCols": ["X1"]},
        of={"CTRClassifier": clicks},
    ),
    "a label as a string": Wrong(
        errors.SchemaError,
        "column type cannot be used: 'string'.*column 'y'",
        r"cast it, if it holds numbers.*StringIndexer",
        data=lambda data: data.withColumn("y", data.y.cast("string")),
    ),
    "more workers than slots": Wrong(
        errors.NotEnoughSlotsError,
        r"99 ranks need 99 task slots.*has \d+",
        r"lower numWorkers to \d+",
        {"numWorkers": 99},
    ),
    "a module for vectors of another size": Wrong(
        errors.ConfigurationError,
        r"failed on the first rows.*column x arrives as float32 \[8, 3\]",
        "the layer takes 5 numbers in a row and gets 3: let it take 3",
        {"model": nn.Linear(5, 1)},
        of=MODULES,
    ),
    "a vector where one number belongs": Wrong(
        errors.SchemaError,
        "must hold one number in each row.*column 'x'",
        r"take its elements into columns of their own, as with vector_to_array\(\)",
        {"continuousCols": ["x"]},
        of={"CTRClassifier": clicks},
    ),
    "vectors of several sizes": Wrong(errors.DataError, "(?i)length.*x", "same length", data=two_widths, of=MODULES),
    "no storeUri on a cluster": Wrong(
        errors.StoreError,
        "storeUri is not set.*other hosts do not see",
        "set storeUri to .*s3a://",
        {"storeUri": None},
        session="many hosts",
    ),
    "a file: store on many hosts": Wrong(
        errors.StoreError,
        "this directory is on the driver's own disk.*other hosts do not see.*file:///proc/self/cwd/store",
        "set storeUri to .*a path that is mounted on all of them",
        {"storeUri": "file:///proc/self/cwd/store"},
        session="many hosts",
    ),
    "another Python": Wrong(
        errors.DependencyError,
        r"another Python, which is 3\.9; the driver's is 3\.1",
        f"export PYSPARK_PYTHON={re.escape(sys.executable)}",
        session="another Python",
    ),
    "a module without parameters": Wrong(
        errors.ConfigurationError,
        "no parameter to train: 'NoParameters'",
        "give it layers, such as nn.Linear",
        {"model": NoParameters()},
        of=MODULES,
    ),
    "a loss of no row": Wrong(
        errors.ConfigurationError,
        r"must return a scalar or one value for each of the 8 rows.*\(1,\)",
        r"return \[rows\], or their mean",
        {"loss": of_no_row},
        of={"TorchEstimator": linear, "TorchRegressor": regressor},
    ),
    "fit on a stream": Wrong(errors.ConfigurationError, "a stream has no end", "spark.read.*foreachBatch", data=stream),
}


def usages() -> Iterator[Any]:
    """Each case with each estimator. Most of what the regressor does, the classifier does as well."""
    for name, wrong in CASES.items():
        for kind in wrong.of:
            marks = [pytest.mark.slow] if kind == "TorchRegressor" and kind != next(iter(wrong.of)) else []
            yield pytest.param(kind, wrong, id=f"{kind}, {name}", marks=marks)


def check(spark: SparkSession, folder: Path, kind: str, wrong: Wrong) -> float:
    """Seconds until a fit with a store in `folder` is refused. AssertionError where it does not say what is wrong."""
    seen, data = Seen(), wrong.data(separable(spark))
    settings = {"storeUri": (folder / "store").as_uri(), "listeners": [seen], **wrong.settings}
    estimator = KINDS[kind](**settings)
    began = time.monotonic()
    with pytest.raises(wrong.error) as caught:
        estimator.fit(data)
    took = time.monotonic() - began
    message, _, hint = str(caught.value).partition(". Hint: ")
    assert re.search(wrong.says, message), message
    assert re.search(wrong.do, hint), hint or message
    assert not seen.of(GenerationStarted), "no rank was started"
    assert files_in(folder / "store") == []
    return took


def check_in_time(spark: SparkSession, folder: Path, kind: str, wrong: Wrong) -> None:
    """`check`, and that it takes no more than SECONDS."""
    took = check(spark, folder, kind, wrong)
    # A second time where the first had to start what a session starts once, beside other tests.
    assert took < SECONDS or check(spark, folder, kind, wrong) < SECONDS


@pytest.mark.parametrize(("kind", "wrong"), usages())
def test_the_message_says_what_to_do(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, wrong: Wrong
) -> None:
    if wrong.session == "many hosts":
        Elsewhere(tmp_path).enter(monkeypatch)
    elif wrong.session:
        other_python(spark, monkeypatch, tmp_path)
    check_in_time(spark, tmp_path, kind, wrong)
