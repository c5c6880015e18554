"""What explainParams() says of each Param: text with its unit, its default and its range. Needs no JVM."""

from __future__ import annotations

import re

import pytest
from pyspark.ml.param import Param, Params, shared

from hvdspark.errors import ConfigurationError
from hvdspark.estimators import CTRClassifier, TorchClassifier, TorchEstimator, TorchRegressor

ESTIMATORS = (CTRClassifier(), TorchClassifier(), TorchRegressor(), TorchEstimator())
PARAMS = [pytest.param(est, one, id=f"{type(est).__name__}.{one.name}") for est in ESTIMATORS for one in est.params]
# Words by which a number can be understood, and those that say where it must lie.
UNITS = "rows|ranks|epochs|passes|seconds|batches|columns|rate|norm|share|fraction|probability|how often|sizes|factor"
RANGES = r"at least|at most|above|between|from \S+ to"
NEEDED = {"featureCols"}


def spark_ml(param: Param[object]) -> bool:
    """Whether text and range are those of Spark ML's own mixin."""
    mixin = getattr(shared, f"Has{param.name[0].upper()}{param.name[1:]}", None)
    return mixin is not None and getattr(mixin, param.name).doc == param.doc


def accepts(param: Param[object], value: object) -> bool:
    try:
        param.typeConverter(value)
    except (TypeError, ConfigurationError):
        return False
    return True


@pytest.mark.parametrize(("estimator", "param"), PARAMS)
def test_a_param_says_what_it_is(estimator: Params, param: Param[object]) -> None:
    said = estimator.explainParam(param)
    assert said.startswith(f"{param.name}: {param.doc}")
    assert len(param.doc.split()) > 2 or spark_ml(param)
    if spark_ml(param):
        return
    assert (
        "default:" in said or param.name in NEEDED or re.search(r"not set|replaces", param.doc)
    ), "what if it is not set?"
    numeric = accepts(param, 1) and not accepts(param, "1")
    if numeric:
        assert re.search(UNITS, param.doc), "the unit"
        assert re.search(RANGES, param.doc), "the range"


@pytest.mark.parametrize(("estimator", "param"), PARAMS)
def test_a_choice_names_all_that_can_be_chosen(estimator: Params, param: Param[object]) -> None:
    try:
        param.typeConverter("zzzz")
    except ConfigurationError as error:
        choices = re.findall(r"one of (.*)$", str(error))
        for choice in re.findall(r"\w+", choices[0] if choices else ""):
            assert re.search(rf"\b{choice}\b", param.doc), choice
    except TypeError:
        pass
