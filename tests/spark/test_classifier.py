"""TorchClassifier: Spark's own shapes, Spark's own evaluators, plain torch and Spark's own classifiers as oracles."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import (
    LogisticRegression,
    LogisticRegressionModel,
    MultilayerPerceptronClassifier,
)
from pyspark.ml.evaluation import BinaryClassificationEvaluator, MulticlassClassificationEvaluator
from pyspark.ml.feature import StandardScaler, StringIndexer, VectorAssembler
from pyspark.ml.functions import array_to_vector, vector_to_array
from pyspark.ml.tuning import CrossValidator, ParamGridBuilder
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from sklearn.datasets import load_digits
from torch import nn

from hvdspark.artifact import TrainedModel
from hvdspark.errors import ConfigurationError, DataError, SchemaError
from hvdspark.estimators import TorchClassificationModel, TorchClassifier
from hvdspark.estimators.classes import by_rule
from tests.spark.toys import files_in
from tests.unit.artifact.test_classes import CASES

pytestmark = pytest.mark.spark

STILL = functools.partial(torch.optim.SGD, lr=1e-30)  # the weights stay what they are
SHAPES = ["rawPrediction", "probability", "prediction"]


def points(spark: SparkSession, rows: int = 400) -> DataFrame:
    """id, a, b, c (doubles), features (vector of them), label (double, of 0 to 2), yes (int, 0 or 1), w."""
    parts = [((F.hash("id", F.lit(k)) % 1000) / 1000.0).cast("double").alias(name) for k, name in enumerate("abc")]
    noise = (F.hash("id", F.lit(9)) % 1000) / 2000.0
    data = spark.range(0, rows, 1, 2).select("id", *parts, noise.alias("noise"))
    largest = F.greatest("a", "b", "c")
    return data.select(
        *("id", "a", "b", "c"),
        array_to_vector(F.array("a", "b", "c")).alias("features"),
        F.when(F.col("a") == largest, 0.0).when(F.col("b") == largest, 1.0).otherwise(2.0).alias("label"),
        (F.col("a") - F.col("b") + F.col("noise") > 0).cast("int").alias("yes"),
        (1.0 + F.col("id") % 3).alias("w"),
    )


def classifier(module: nn.Module, **changes: Any) -> TorchClassifier:
    settings: dict[str, Any] = {"numWorkers": 1, "precision": "float32", "batchSize": 1000, "epochs": 1}
    return TorchClassifier(model=module, **{**settings, **changes})


def column(frame: DataFrame, name: str) -> np.ndarray:
    """A column of doubles or vectors in the order of id: [rows] or [rows, k]."""
    value = F.col(name) if dict(frame.dtypes)[name] == "double" else vector_to_array(name)
    return np.array([row[0] for row in frame.orderBy("id").select(value).collect()])


def shapes(frame: DataFrame) -> list[np.ndarray]:
    """Raw predictions, probabilities and classes of a classifier in the order of id, by one job."""
    values = [vector_to_array(name) for name in SHAPES[:2]] + [F.col(SHAPES[2])]
    rows = sorted(map(tuple, frame.select("id", *values).collect()), key=lambda row: row[0])
    return [np.array(part) for part in list(zip(*rows, strict=True))[1:]]


@pytest.fixture(scope="module")
def three(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> TorchClassificationModel:
    """Of three classes, by nothing but the module."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 3))
    store = tmp_path_factory.mktemp("store").as_uri()
    return TorchClassifier(model=net, storeUri=store, numWorkers=2, learningRate=0.02).fit(points(spark))


def test_expressions_of_the_plan_are_what_is_said_without_spark(spark: SparkSession) -> None:
    one = spark.range(1)
    for number, (rule, score, *_) in enumerate(CASES):
        values = [*map(float, score)] if hasattr(score, "__len__") else score
        value = F.array(*map(F.lit, values)) if isinstance(values, list) else F.lit(values)
        columns = by_rule(rule, value, len(values) if isinstance(values, list) else 1)
        one = one.withColumns({f"{n}{number}": made for n, made in zip(("r", "p", "c"), columns, strict=True)})
    (row,) = one.collect()
    for number, (rule, score, *_) in enumerate(CASES):
        found = rule.classes(np.array([score], dtype=np.float64))
        assert row[f"r{number}"] == pytest.approx(found.raw[0].tolist(), abs=1e-12, nan_ok=True), CASES[number]
        assert row[f"p{number}"] == pytest.approx(found.probability[0].tolist(), abs=1e-12, nan_ok=True), CASES[number]
        assert row[f"c{number}"] == found.prediction[0], CASES[number]


def test_a_module_alone_makes_a_classifier_of_several_classes(
    spark: SparkSession, three: TorchClassificationModel, tmp_path: Path
) -> None:
    data = points(spark)
    scored = three.transform(data).cache()
    assert scored.columns == [*data.columns, *SHAPES]
    assert [field.dataType.simpleString() for field in scored.schema.fields[-3:]] == ["vector", "vector", "double"]
    assert scored.schema == three.transformSchema(data.schema)
    assert (three.numClasses, three.numFeatures, three.hasSummary) == (3, 3, True)
    evaluate = MulticlassClassificationEvaluator(metricName="accuracy").evaluate
    assert evaluate(scored) > 0.9, three.summary
    raw, probability, prediction = shapes(scored)
    inputs = torch.tensor(column(data, "features"), dtype=torch.float32)
    with torch.inference_mode():
        logits = three.module()(inputs).double()
    np.testing.assert_allclose(raw, logits.numpy(), atol=1e-6)
    np.testing.assert_allclose(probability, logits.softmax(1).numpy(), atol=1e-6)
    assert (prediction == raw.argmax(1)).all()
    few = three.copy({three.predictionCol: "", three.rawPredictionCol: ""}).transform(data)
    assert few.columns == [*data.columns, "probability"]
    with pytest.raises(SchemaError, match="exists already"):
        three.transform(scored)

    biased = three.copy().setThresholds([1.0, 0.1, 1.0])
    classes = column(biased.transform(data), "prediction")
    assert (classes == (probability / [1.0, 0.1, 1.0]).argmax(1)).all()
    assert (classes != prediction).any()
    PipelineModel([biased]).write().overwrite().save(str(tmp_path / "p"))
    loaded = PipelineModel.load(str(tmp_path / "p")).stages[0]
    assert (column(loaded.transform(data), "prediction") == classes).all()
    assert (loaded.numClasses, loaded.getThresholds(), loaded.uid) == (3, [1.0, 0.1, 1.0], three.uid)
    alone = next((tmp_path / "p" / "stages").iterdir())
    said = TrainedModel.read(str(alone)).classify({"features": list(inputs.numpy())})
    np.testing.assert_allclose(said.probability, probability, atol=1e-9)
    np.testing.assert_allclose(said.raw, raw, atol=1e-9)
    assert (said.prediction == classes).all()
    with pytest.raises(ConfigurationError, match="one for each of the 3 classes"):
        three.copy().setThresholds([0.5, 0.5]).transform(data)


def test_one_rank_is_plain_torch(spark: SparkSession, store_uri: str) -> None:
    data = points(spark)
    torch.manual_seed(1)
    module = nn.Linear(3, 3)
    plain = nn.Linear(3, 3)
    plain.load_state_dict(module.state_dict())
    descent = functools.partial(torch.optim.SGD, lr=0.5)
    settings = {"optimizer": descent, "epochs": 4, "learningRateSchedule": "constant", "weightCol": "w"}
    model = classifier(module, storeUri=store_uri, **settings).fit(data)
    inputs, labels, weights = (torch.tensor(column(data, name)) for name in ("features", "label", "w"))
    optimizer = descent(plain.parameters())
    for _ in range(4):
        optimizer.zero_grad()
        rows = nn.functional.cross_entropy(plain(inputs.float()), labels.long(), reduction="none")
        ((rows * weights).sum() / weights.sum()).backward()
        optimizer.step()
    for name, weight in model.module().state_dict().items():
        torch.testing.assert_close(weight, plain.state_dict()[name], rtol=0, atol=1e-6)


def as_ours(theirs: LogisticRegressionModel, width: int, store_uri: str, data: DataFrame) -> TorchClassificationModel:
    """Spark's logistic regression as a module that training leaves as it is."""
    module = nn.Linear(3, width)
    weights, bias = theirs.coefficientMatrix.toArray(), theirs.interceptVector.toArray()
    if width == 2:  # of two classes Spark has the weights of the second one alone
        weights, bias = np.vstack([0 * weights, weights]), np.append(0 * bias, bias)
    with torch.no_grad():
        module.weight.copy_(torch.tensor(weights))
        module.bias.copy_(torch.tensor(bias))
    label = theirs.getLabelCol()
    return classifier(module, optimizer=STILL, labelCol=label, storeUri=store_uri).fit(data)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("label", "width"),
    [("yes", 1), ("yes", 2), ("label", 3)],
)
def test_columns_and_thresholds_are_those_of_logistic_regression(
    spark: SparkSession, store_uri: str, label: str, width: int
) -> None:
    data = points(spark).coalesce(1).cache()
    # Its closures hold its summary, and so the session, which must stay serializable whatever a fit asks of it.
    theirs = LogisticRegression(labelCol=label, maxIter=20, regParam=0.01).fit(data)
    ours = as_ours(theirs, width, store_uri, data)
    assert (ours.numClasses, ours.numFeatures) == (theirs.numClasses, theirs.numFeatures)
    row = data.head()["features"]
    assert ours.predict(row) == theirs.predict(row)
    for name in ("predictRaw", "predictProbability"):
        np.testing.assert_allclose(getattr(ours, name)(row), getattr(theirs, name)(row), atol=1e-5)
    if label == "label":
        thresholds: list[list[float]] = [[], [0.2, 0.5, 0.3], [1.0, 0.0, 1.0], [0.9, 0.9, 0.01]]
    else:
        thresholds = [[], [0.0], [0.3], [1.0], [0.8], [0.0, 1.0], [0.7, 0.0], [0.2, 0.6]]
    for values in thresholds:
        # Spark's own model keeps a threshold when thresholds are set, and then refuses the two: so each time a new one.
        fresh = theirs.copy()
        for model in (ours, fresh):
            if len(values) == 1:
                model.setThreshold(values[0])
            elif values:
                model.setThresholds(values)
        mine, other = ours.transform(data), fresh.transform(data)
        assert mine.dtypes == other.dtypes
        assert [mine.schema[name].metadata for name in SHAPES] == [other.schema[name].metadata for name in SHAPES]
        for found, expected, tolerance in zip(shapes(mine), shapes(other), (1e-5, 1e-6, 0), strict=True):
            np.testing.assert_allclose(found, expected, atol=tolerance, err_msg=f"{values}")
    mine, other = mine.cache(), other.cache()
    if label == "yes":
        for metric in ("areaUnderROC", "areaUnderPR"):
            evaluate = BinaryClassificationEvaluator(labelCol="yes", metricName=metric).evaluate
            assert evaluate(mine) == pytest.approx(evaluate(other), abs=1e-4)
    for metric in ("f1", "accuracy", "logLoss", "weightedPrecision"):
        evaluate = MulticlassClassificationEvaluator(labelCol=label, metricName=metric).evaluate
        assert evaluate(mine) == pytest.approx(evaluate(other), abs=1e-6)


def test_strings_become_labels_and_numbers_features(spark: SparkSession, store_uri: str) -> None:
    """StringIndexer knows the classes, even one that these rows lack; several columns are several arguments."""

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.LazyLinear(3)

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return self.layer(torch.stack([a, b], dim=1))

    data = points(spark, 90).withColumn("kind", F.concat(F.lit("kind "), F.col("label").cast("int")))
    indexer = StringIndexer(inputCol="kind", outputCol="target").fit(data)
    few = data.filter("label != 2.0")
    estimator = classifier(Sum(), featureCols=["a", "b"], labelCol="target", storeUri=store_uri, allowPickle=True)
    model = Pipeline(stages=[indexer, estimator]).fit(few)
    scored = model.transform(data)
    assert model.stages[-1].numClasses == 3
    assert set(column(scored, "prediction")) <= {0.0, 1.0, 2.0}


WRONG: list[Any] = [
    (nn.Linear(3, 1), {}, ConfigurationError, "there are 3 classes, says the largest label in column 'label', 2.*3, 3"),
    (nn.Linear(3, 2), {}, ConfigurationError, "let it return 3: nn.Linear"),
    (nn.Linear(3, 5), {"numClasses": 4}, ConfigurationError, "there are 4 classes, says numClasses"),
    (nn.Linear(3, 2), {"numClasses": 2}, DataError, "labels of 2 classes are 0 to 1.*the largest is 2"),
    (nn.Linear(3, 3), {"loss": "mse"}, ConfigurationError, "cannot tell from this loss.*TorchEstimator"),
    (nn.Linear(3, 3), {"loss": "bce"}, ConfigurationError, "bce takes one number.*leave loss unset"),
    (nn.Linear(3, 3), {"labelCol": "features"}, SchemaError, "a label must be one number"),
    (nn.Linear(3, 3), {"labelCol": "a"}, DataError, "from 0: the smallest is no number of a class.*TorchRegressor"),
    (nn.Linear(3, 3), {"thresholds": [0.5, 0.5]}, ConfigurationError, "one for each of the 3 classes"),
    (nn.Linear(4, 3), {}, ConfigurationError, "the module failed on the first rows.*3"),
    (nn.Linear(3, 3), {"featuresCol": "feature"}, SchemaError, "column not found: 'feature'.*did you mean 'features'"),
]


@pytest.mark.parametrize(("module", "settings", "error", "message"), WRONG)
def test_what_is_no_classifier_is_told_before_ranks_start(
    spark: SparkSession, tmp_path: Path, module: nn.Module, settings: dict[str, Any], error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        classifier(module, storeUri=(tmp_path / "s").as_uri(), **settings).fit(points(spark, 60))
    assert files_in(tmp_path / "s") == []


def digits(spark: SparkSession) -> DataFrame:
    found = load_digits()
    rows = [(image.tolist(), int(digit)) for image, digit in zip(found.data, found.target, strict=True)]
    return spark.createDataFrame(rows, "pixels array<double>, label int").select(
        array_to_vector("pixels").alias("features"), "label"
    )


@pytest.mark.slow
def test_digits_in_a_pipeline_under_cross_validation(spark: SparkSession, store_uri: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    estimator = TorchClassifier(model=net, featuresCol="scaled", storeUri=store_uri, learningRate=1e-2)
    pipeline = Pipeline(stages=[StandardScaler(inputCol="features", outputCol="scaled"), estimator])
    evaluator = MulticlassClassificationEvaluator(metricName="accuracy")
    grid = ParamGridBuilder().addGrid(estimator.learningRate, [1e-2]).build()
    search = CrossValidator(estimator=pipeline, estimatorParamMaps=grid, evaluator=evaluator, numFolds=2, seed=3)
    train, test = digits(spark).randomSplit([0.8, 0.2], seed=1)
    found = search.fit(train)
    assert min(found.avgMetrics) > 0.9, "half of the rows"
    assert evaluator.evaluate(found.transform(test)) > 0.95


@pytest.mark.slow
def test_digits_beside_sparks_own_perceptron(spark: SparkSession, store_uri: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.Sigmoid(), nn.Linear(64, 10))
    train, test = digits(spark).randomSplit([0.7, 0.3], seed=2)
    scale = StandardScaler(inputCol="features", outputCol="scaled").fit(train)
    ours = TorchClassifier(model=net, featuresCol="scaled", storeUri=store_uri, learningRate=1e-2, epochs=30)
    theirs = MultilayerPerceptronClassifier(featuresCol="scaled", layers=[64, 64, 10], seed=1)
    evaluate = MulticlassClassificationEvaluator(metricName="accuracy").evaluate
    accuracies = [evaluate(one.fit(scale.transform(train)).transform(scale.transform(test))) for one in (ours, theirs)]
    assert accuracies[0] > max(0.95, accuracies[1] - 0.01), accuracies


def test_vectors_that_an_assembler_made_of_columns(spark: SparkSession, store_uri: str) -> None:
    """An estimator in a Pipeline is saved and loaded with its module, and so fitted again."""
    stages = [VectorAssembler(inputCols=["a", "b"], outputCol="features"), classifier(nn.Linear(2, 1), labelCol="yes")]
    data = points(spark, 60).drop("features")
    place = f"{store_uri}/pipeline"
    Pipeline(stages=stages).save(place)
    loaded = Pipeline.load(place)
    loaded.getStages()[1].setStoreUri(store_uri)
    scored = loaded.fit(data).transform(data)
    assert scored.columns[-4:] == ["features", *SHAPES]
