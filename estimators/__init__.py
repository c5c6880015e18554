"""The Spark ML face of hvdspark: Estimators and Transformers for Pipelines."""

if __name__ != "hvdspark.estimators":
    raise ImportError("this package is hvdspark.estimators. Hint: from hvdspark.estimators import TorchEstimator")

from hvdspark.estimators.classifier import TorchClassificationModel, TorchClassifier
from hvdspark.estimators.ctr import CTRClassificationModel, CTRClassifier
from hvdspark.estimators.overwriting import swap_when_overwriting
from hvdspark.estimators.regressor import TorchRegressionModel, TorchRegressor
from hvdspark.estimators.summary import TrainingSummary
from hvdspark.estimators.torch import TorchEstimator, TorchModel

__all__ = [
    "CTRClassificationModel",
    "CTRClassifier",
    "TorchClassificationModel",
    "TorchClassifier",
    "TorchEstimator",
    "TorchModel",
    "TorchRegressionModel",
    "TorchRegressor",
    "TrainingSummary",
]

# A Pipeline with stages of ours is saved over itself without losing them.
swap_when_overwriting()

# Spark ML writes the class path into every saved object: the public path is part of the format on disk, whatever file
# a class lives in.
for _public in (
    *(CTRClassifier, CTRClassificationModel, TorchEstimator, TorchModel),
    *(TorchClassifier, TorchClassificationModel, TorchRegressor, TorchRegressionModel),
):
    _public.__module__ = __name__
