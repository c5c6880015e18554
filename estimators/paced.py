"""Params of training whose values follow from the number of training rows where they are not set."""

from __future__ import annotations

from typing import Any

from hvdspark.estimators import defaults
from hvdspark.estimators.declare import worded
from hvdspark.estimators.defaults import Pace, set_value
from hvdspark.estimators.params import TrainingParams


class PacedParams(TrainingParams):
    """Params of estimators that choose how fast they go through their rows."""

    batchSize = worded(
        TrainingParams.batchSize,
        "rows of the global batch, over all ranks (at least 1). None: it follows from the number of training rows, 2.5 "
        "times its root, from 32 to 8192",
    )
    epochs = worded(
        TrainingParams.epochs,
        "most passes over the training rows (at least 1). None: it follows from the number of training rows, as many "
        "as make 300 steps, up to 20",
    )
    learningRateSchedule = worded(
        TrainingParams.learningRateSchedule,
        "how the learning rates change from step to step: constant, cosine, linear or step. None: they fall to 0 along "
        "a cosine",
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._setDefault(batchSize=None, epochs=None, learningRateSchedule=None)

    def pace(self, rows: int) -> Pace:
        """How fast a fit goes through so many training rows."""
        return defaults.pace(
            rows,
            batch_size=set_value(self, "batchSize"),
            epochs=set_value(self, "epochs"),
            schedule=set_value(self, "learningRateSchedule"),
            accumulation=self.getOrDefault("gradientAccumulationSteps"),
        )
