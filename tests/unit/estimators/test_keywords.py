"""Names that are nearly right, in constructors, `setParams` and choices. Needs no JVM."""

from __future__ import annotations

from typing import Any

import pytest

from hvdspark.errors import ConfigurationError
from hvdspark.estimators.keywords import did_you_mean

KNOWN = ("featureCols", "labelCol", "labelCols", "numWorkers", "batchSize", "learningRate", "embeddingDim", "storeUri")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("feature_cols", "did you mean featureCols?"),
        ("featurecols", "did you mean featureCols?"),
        ("featuresCol", "did you mean featureCols?"),
        ("inputCols", "did you mean featureCols?"),
        ("num_proc", "did you mean numWorkers?"),
        ("numWorker", "did you mean numWorkers?"),
        ("embedding_dim", "did you mean embeddingDim?"),
        ("lr", "did you mean learningRate?"),
        ("learningRates", "did you mean learningRate?"),
        ("label_col", "did you mean labelCol?"),
        ("batch", "did you mean batchSize?"),
        ("zzz", "see explainParams()"),
    ],
)
def test_the_name_that_was_meant(name: str, meant: str) -> None:
    assert did_you_mean(name, KNOWN) == meant


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda e: e.TorchEstimator(feature_cols=["x"]), "'feature_cols' .*TorchEstimator.*did you mean featureCols"),
        (lambda e: e.TorchEstimator().setParams(num_proc=2), "'num_proc' .*did you mean numWorkers"),
        (lambda e: e.CTRClassifier(embedding_dim=2), "'embedding_dim' .*CTRClassifier.*did you mean embeddingDim"),
        (lambda e: e.CTRClassifier().setParams(labels="y"), "'labels' .*did you mean labelCol"),
        (lambda e: e.TorchEstimator("net"), "by name.*model=..."),
        (lambda e: e.CTRClassifier(loss="mse"), "'loss' .*CTRClassifier"),
    ],
)
def test_an_unknown_keyword_is_refused_with_the_name_that_was_meant(call: Any, words: str) -> None:
    from hvdspark import estimators

    with pytest.raises(ConfigurationError, match=words) as caught:
        call(estimators)
    assert isinstance(caught.value, TypeError), "as Python's own error for it"


@pytest.mark.parametrize("name", ["DeepFM", "DEEPFM", "deepfm"])
def test_a_choice_is_known_in_any_case(name: str) -> None:
    from hvdspark.estimators import CTRClassifier

    assert CTRClassifier(architecture=name).getArchitecture() == "deepfm"


def test_a_choice_that_is_nearly_right() -> None:
    from hvdspark.estimators import CTRClassifier

    with pytest.raises(ConfigurationError, match="did you mean deepfm"):
        CTRClassifier(architecture="deep_fm")
