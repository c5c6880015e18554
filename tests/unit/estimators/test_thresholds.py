"""Thresholds mean what they mean to Spark ML's classifiers; needs no session."""

from __future__ import annotations

import pytest

from hvdspark.artifact.classes import ClassRule
from hvdspark.errors import ConfigurationError
from hvdspark.estimators import CTRClassificationModel, CTRClassifier, TorchClassificationModel, TorchClassifier
from hvdspark.estimators.class_params import ClassifierParams

KINDS = [TorchClassifier, TorchClassificationModel, CTRClassifier, CTRClassificationModel]


@pytest.mark.parametrize("kind", KINDS)
def test_the_one_that_is_set_last_holds(kind: type[ClassifierParams]) -> None:
    params = kind()
    assert (params.getThreshold(), params.isSet("thresholds")) == (0.5, False)
    assert params.setThreshold(0.25) is params
    assert (params.getThreshold(), params.getThresholds()) == (0.25, [0.75, 0.25])
    assert params.setThresholds([0.4, 0.1]) is params
    assert params.getThreshold() == pytest.approx(0.2)
    assert params.class_rule("bce", 2) == ClassRule("bce", params.getThreshold())
    assert not params.setThreshold(0.7).isSet("thresholds")
    assert params.setThresholds([0.0, 1.0]).getThreshold() == 1.0
    assert params.setThresholds([1.0, 0.0]).getThreshold() == 0.0


def test_thresholds_of_several_classes() -> None:
    params = TorchClassifier(thresholds=[1, 2, 0])
    assert params.class_rule("cross_entropy", 3) == ClassRule("cross_entropy", thresholds=(1.0, 2.0, 0.0))
    assert TorchClassifier(threshold=0.9).class_rule("nll", 3) == ClassRule("nll"), "for two classes only"
    with pytest.raises(ConfigurationError, match="one for each of the 4 classes"):
        params.class_rule("cross_entropy", 4)
    with pytest.raises(ConfigurationError, match="for two classes"):
        params.getThreshold()


def test_what_cannot_be_meant_is_refused() -> None:
    for wrong in ([0.5], [0.0, 0.0], [-0.1, 1.0]):
        with pytest.raises(ConfigurationError, match="one number for each class"):
            TorchClassifier(thresholds=wrong)
    with pytest.raises(ConfigurationError, match="contradict each other"):
        TorchClassifier(threshold=0.5, thresholds=[0.9, 0.1]).class_rule("bce", 2)
    TorchClassifier(threshold=0.5, thresholds=[0.2, 0.2]).class_rule("bce", 2)
